"""Datasets, preprocessing, augmentation and batches."""

from training.data.dataset import DATASETS, Dataset, Split, load_dataset
from training.data.loader import BatchLoader

__all__ = ["DATASETS", "BatchLoader", "Dataset", "Split", "load_dataset"]
