"""torchvision's stronger augmentations, made to repeat from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def randaugment(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply two random operations of middling strength to each image; (N, C, H, W) -> the same.

    Source: Cubuk et al., *RandAugment*, 2020, with N = 2 and M = 9, torchvision's defaults.

    Args:
        images: uint8, of one or three channels.
        rng: decides; torchvision's own draws come from PyTorch's generator, which is left as it
            was.
    """
    if not len(images):
        return images
    transform = v2.RandAugment()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reset the generators of the GPUs too.
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        changed = [transform(image) for image in torch.from_numpy(np.ascontiguousarray(images))]
    augmented: NDArray[np.uint8] = torch.stack(changed).numpy()
    return augmented


def make_mix(mixup: float, cutmix: float, n_classes: int) -> Mix | None:
    """Return what blends the images of a batch, and their labels, with one another.

    Sources: Zhang et al., *mixup*, 2018; Yun et al., *CutMix*, 2019.

    Args:
        mixup: α of the Beta(α, α) that the shares in MixUp come from; 0 for none.
        cutmix: the same for CutMix. Of both, a coin chooses for each batch.
        n_classes: number of classes K.

    Shapes: images (N, C, H, W) and labels (N,) -> images and shares of the classes (N, K).
    """
    kinds: list[Any] = []
    if mixup:
        kinds.append(v2.MixUp(alpha=mixup, num_classes=n_classes))
    if cutmix:
        kinds.append(v2.CutMix(alpha=cutmix, num_classes=n_classes))
    return v2.RandomChoice(kinds) if kinds else None
