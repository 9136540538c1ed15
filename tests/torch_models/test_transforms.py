"""torchvision's augmentations: what goes in and comes out, and that a seed repeats them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torch_models.learner import TorchLearner
from torch_models.transforms import make_mix, randaugment


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_repeats_and_leaves_the_generator(
    channels: int, rng: np.random.Generator
) -> None:
    images = rng.integers(0, 256, (9, channels, 16, 16), dtype=np.uint8)
    before, state = images.copy(), torch.get_rng_state()
    one, again, other = (randaugment(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == np.uint8 and one.shape == images.shape
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one != images).any(axis=(1, 2, 3)).sum() >= 5  # each image has its own operations
    np.testing.assert_array_equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_mixup_blends_images_and_labels_alike() -> None:
    torch.manual_seed(0)
    mix = make_mix(0.8, 0.0, 4)
    assert mix is not None
    labels = torch.tensor([0, 1, 2, 3])
    images = torch.eye(4).reshape(4, 1, 2, 2)  # image i is the one-hot vector of its label
    mixed, shares = mix(images, labels)
    torch.testing.assert_close(mixed.reshape(4, 4), shares)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    assert ((shares > 0) & (shares < 1)).any()


def test_cutmix_shares_are_areas() -> None:
    torch.manual_seed(1)
    mix = make_mix(0.0, 1.0, 2)
    assert mix is not None
    labels = torch.tensor([0, 1])
    images = labels.reshape(2, 1, 1, 1).expand(2, 1, 8, 8).float()
    mixed, shares = mix(images, labels)
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares[:, 1])
    assert 0 < shares[0, 1] < 1


def test_neither_and_both() -> None:
    assert make_mix(0.0, 0.0, 3) is None
    torch.manual_seed(0)
    mix = make_mix(1.0, 1.0, 10)
    assert mix is not None
    images = torch.randn(6, 3, 8, 8)
    boxes = 0
    for _ in range(20):
        mixed, shares = mix(images, torch.arange(6))
        assert shares.shape == (6, 10)
        boxes += int((mixed == images).any())
    assert 3 < boxes < 17


def test_training_on_mixed_labels(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    device = torch.device("cpu")
    learner = TorchLearner(model, optimizer, device, mix=make_mix(0.4, 0.0, 4))
    x, y = rng.standard_normal((8, 3, 2, 2)).astype(np.float32), rng.integers(0, 4, 8)
    torch.manual_seed(5)
    mix = make_mix(0.4, 0.0, 4)
    assert mix is not None
    images, shares = mix(torch.from_numpy(x), torch.from_numpy(y))
    logits = model(images).detach()
    expected = -(shares * logits.log_softmax(dim=1)).sum(dim=1).mean()
    right = (logits.argmax(dim=1) == shares.argmax(dim=1)).sum()
    torch.manual_seed(5)
    loss, correct = learner.train_step(x, y, 0.1)
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert int(correct) == int(right)
