"""Datasets, preprocessing, augmentation and batches."""

from handgrad.data.dataset import DATASETS, Dataset, Split, load_dataset
from handgrad.data.loader import BatchLoader

__all__ = ["DATASETS", "BatchLoader", "Dataset", "Split", "load_dataset"]
