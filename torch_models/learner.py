"""One training step in PyTorch, behind the interface that the training loop asks for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]


class TorchLearner:
    """A model, cross-entropy and an optimizer, on one device.

    Loss and correct predictions come back as tensors on the device: nothing waits for it until the
    loop reports.

    Args:
        model: returns logits (or log-probabilities, whose cross-entropy is the same).
        optimizer: made with ``model.parameters()``.
        device: where to compute.
        autocast_dtype: run the forward pass under autocast in this type; None for the model's own.
        channels_last: keep images and convolutions in channels-last memory layout.
        compiled: compile the model with ``torch.compile``.

    Shapes: images (N, C, H, W), labels (N,), as NumPy arrays or tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        autocast_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.autocast_dtype, self.channels_last = autocast_dtype, channels_last
        self.micro_batch: int | None = None  # images that fit at once, once memory has run out
        self._forward: Any = torch.compile(model) if compiled else model

    def train_step(self, images: Any, labels: Any, lr: float) -> tuple[Tensor, Tensor]:
        """Update the weights on one batch; return its mean loss and its correct predictions.

        When the device runs out of memory, the batch is taken in halves whose gradients add up to
        the same mean, and the smaller size is kept for the steps that follow.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x, y = self.to_device(images, labels)
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss, correct = self._accumulate(x, y)
                break
            except torch.OutOfMemoryError:
                size = self.micro_batch or len(y)
                if size == 1:
                    raise
                self.micro_batch = (size + 1) // 2
            self._say_smaller(len(y))
        self.optimizer.step()
        return loss, correct

    def _accumulate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Run forward and backward over the batch, in pieces that fit."""
        size = self.micro_batch or len(y)
        losses, correct = [], []
        for start in range(0, len(y), size):
            part, target = x[start : start + size], y[start : start + size]
            logits = self._logits(part)
            # The mean over the batch is the weighted mean of the pieces' means.
            loss = nn.functional.cross_entropy(logits, target) * (len(target) / len(y))
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            correct.append((logits.detach().argmax(dim=1) == target).sum())
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    def _say_smaller(self, batch: int) -> None:
        # Outside the except block: the traceback there would keep the failed step's tensors alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(
            f"out of memory: going on with {self.micro_batch} images at a time, "
            f"gradients accumulated to the same batch of {batch}",
            file=sys.stderr,
        )

    @torch.no_grad()
    def eval_step(self, images: Any, labels: Any) -> tuple[Tensor, Array]:
        """Return the mean loss of a batch and the predicted classes (N,)."""
        self.model.eval()
        x, y = self.to_device(images, labels)
        logits = self._logits(x)
        loss = nn.functional.cross_entropy(logits, y)
        return loss, logits.argmax(dim=1).cpu().numpy()

    def _logits(self, x: Tensor) -> Tensor:
        if self.autocast_dtype is None:
            logits: Tensor = self._forward(x)
            return logits
        with torch.autocast(self.device.type, dtype=self.autocast_dtype):
            logits = self._forward(x)
        return logits.float()

    def to_device(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        """Return the batch as tensors on the device, in the memory layout of the model."""
        x, y = torch.as_tensor(images), torch.as_tensor(labels)
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        x = x.to(self.device, non_blocking=True, memory_format=layout)
        return x, y.to(self.device, non_blocking=True)

    def weights(self) -> dict[str, Array]:
        """Return the model's arrays by name, on the host."""
        return {name: _to_numpy(tensor) for name, tensor in self.model.state_dict().items()}

    def load_weights(self, weights: Mapping[str, Array]) -> None:
        """Copy ``weights`` into the model.

        Raises:
            ValueError: the first name that is missing or unknown, or whose shape differs.
        """
        mine = self.model.state_dict()
        for name in (*mine, *weights):
            if name not in weights:
                raise ValueError(f"{name} is missing: was it saved from another architecture?")
            if name not in mine:
                raise ValueError(f"{name} is not part of this network")
            if tuple(mine[name].shape) != np.shape(weights[name]):
                raise ValueError(
                    f"{name} has shape {np.shape(weights[name])}, this network expects "
                    f"{tuple(mine[name].shape)}"
                )
        self.model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})

    def state(self) -> tuple[dict[str, Array], str]:
        """Return the optimizer's arrays and the random generators' states."""
        arrays = {"generator.cpu": torch.get_rng_state().numpy()}
        if self.device.type == "cuda":
            arrays["generator.cuda"] = torch.cuda.get_rng_state(self.device).numpy()
        for i, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    arrays[f"optimizer.{i}.{key}"] = _to_numpy(torch.as_tensor(value))
        return arrays, ""

    def load_state(self, arrays: Mapping[str, Array], text: str) -> None:
        """Restore what :meth:`state` returned; ValueError when it is another optimizer's."""
        mine = self.optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for name, array in arrays.items():
            kind, _, rest = name.partition(".")
            tensor = torch.from_numpy(np.array(array))
            if name == "generator.cpu":
                torch.set_rng_state(tensor)
            elif name == "generator.cuda":
                if self.device.type == "cuda":
                    torch.cuda.set_rng_state(tensor, self.device)
            elif kind == "optimizer":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = tensor
            else:
                raise ValueError(f"{name} is not part of this learner's state")
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        for i, entries in state.items():
            for key, tensor in entries.items():
                if i >= len(params) or tensor.shape not in (params[i].shape, torch.Size([])):
                    raise ValueError(f"optimizer state {i}.{key} does not fit")
                if tensor.shape == params[i].shape:
                    # In the parameter's own memory layout: fused optimizers pair values by where
                    # they lie, so that another layout would mix them up without a word.
                    entries[key] = torch.empty_like(params[i], dtype=tensor.dtype).copy_(tensor)
        self.optimizer.load_state_dict({"state": state, "param_groups": mine["param_groups"]})

    def first_layer(self) -> Array:
        """Return the weights that look at the input, (n_filters, D), for a picture."""
        first = next(p for p in self.model.parameters() if p.dim() > 1)
        return _to_numpy(first).reshape(len(first), -1)


def _to_numpy(tensor: Tensor) -> Array:
    # .copy(): a checkpoint must not change while it is being written.
    array: Array = tensor.detach().cpu().contiguous().numpy().copy()
    return array
