"""One training step in PyTorch, behind the interface that the training loop asks for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torch_models.anomaly import check_finite, explain, watch
from torch_models.averaging import WeightAverage
from torch_models.device import is_out_of_memory
from torch_models.distributed import ProcessTeam

Array = NDArray[Any]
Result = TypeVar("Result")


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
        label_smoothing: share ε of each training label that all classes get alike (Szegedy et
            al., *Rethinking the Inception Architecture*, CVPR 2016). Training losses include it.
        clip_grad_norm: largest norm of all gradients together; longer ones are shortened to it.
        ema: decay of an average of the weights over the steps, which then is what is evaluated and
            what :meth:`weights` returns; 0 for none.
        mix: blends the images of a training batch with one another: images and labels ->
            images and shares of the classes (N, K). A prediction then counts as correct where it
            is the class of the largest share.
        team: the processes that each take a share of every batch. Their gradients are averaged
            before the update, and their running statistics after it.
        detect_anomaly: check every output and gradient of every module, and stop at the first
            that is not finite. Without it, and only on the host, the loss is checked: elsewhere
            each step would wait for the device. A gradient is noticed by what it did, a step later.

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
        label_smoothing: float = 0.0,
        clip_grad_norm: float | None = None,
        ema: float = 0.0,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        team: ProcessTeam | None = None,
        detect_anomaly: bool = False,
    ) -> None:
        self._watched = detect_anomaly
        if detect_anomaly:
            watch(model)
        self.model, self.optimizer, self.device = model, optimizer, device
        self.autocast_dtype, self.channels_last = autocast_dtype, channels_last
        self.label_smoothing, self.mix, self.team = label_smoothing, mix, team
        self.clip_grad_norm = clip_grad_norm
        self.ema = WeightAverage(model, ema) if ema else None
        self.micro_batch: int | None = None  # images that fit at once, once memory has run out
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        # One graph for each shape. One for all shapes, made when a second comes along, would
        # round otherwise, and a resumed run meets the shapes in another order.
        self._forward: Any = torch.compile(model, dynamic=False) if compiled else model

    def train_step(self, images: Any, labels: Any, lr: float) -> tuple[Any, Any]:
        """Update the weights on one batch; return its mean loss and its correct predictions.

        When the device runs out of memory, the batch is taken in pieces whose gradients add up to
        the same mean, and their size is kept for the steps that follow. Batch normalisation then
        looks at a piece at a time.

        Raises:
            MemoryError: not even one image fits.
            FloatingPointError: the loss is not finite; no parameter is updated.
        """
        if self.ema is not None:
            self.ema.show(False)
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x, y = self.to_device(images, labels)
        if self.mix is not None and len(y):
            x, y = self.mix(x, y)
            x = x.contiguous(memory_format=self._layout)
        loss, correct = self._as_memory_allows(len(y), lambda: self._accumulate(x, y))
        if self.team is not None:
            self._average(self.team, len(y))
        if self.device.type == "cpu" or self._watched:
            self._check(loss, x, y)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._trained(), self.clip_grad_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        if self.device.type == "cpu":  # nothing to wait for
            return loss.item(), int(correct)
        return loss, correct

    def _accumulate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Run forward and backward over the batch, in pieces that fit."""
        self.optimizer.zero_grad(set_to_none=True)
        losses, correct = [x.new_zeros(())], [torch.zeros((), dtype=torch.int64, device=x.device)]
        for part, target in self._pieces(x, y):
            logits = self._logits(part)
            # The mean over the batch is the weighted mean of the pieces' means.
            loss = nn.functional.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
            loss = loss * (len(target) / len(y))
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            best = target if target.dim() == 1 else target.argmax(dim=1)
            correct.append((logits.detach().argmax(dim=1) == best).sum())
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    def _check(self, loss: Tensor, x: Tensor, y: Tensor) -> None:
        """Raise FloatingPointError when the loss is not finite; when watched, or a gradient."""
        if not loss.isfinite():
            where = explain(self.model, lambda: [self._logits(x) for x, _ in self._pieces(x, y)])
            raise FloatingPointError(
                f"the loss became {loss.item()}" + (f", as {where}" if where else "")
            )
        if self._watched:
            for name, parameter in reversed(list(self.model.named_parameters())):
                if parameter.grad is not None:
                    check_finite(parameter.grad, f"the gradient of {name}")

    def _pieces(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batch in as few pieces as memory allows, all of nearly the same size.

        None is then a single image where there are others: batch normalisation could not use it.
        """
        if len(y):
            n = -(-len(y) // (self.micro_batch or len(y)))
            yield from zip(torch.tensor_split(x, n), torch.tensor_split(y, n), strict=True)

    def _as_memory_allows(self, n: int, attempt: Callable[[], Result]) -> Result:
        """Return ``attempt()``, taking smaller pieces of ``n`` images while memory runs out."""
        while True:
            generators = self._generators()
            try:
                return attempt()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                size = min(self.micro_batch or n, n)
                if size <= 1:
                    raise MemoryError(f"not even one image fits on {self.device}") from None
                self.micro_batch = (size + 1) // 2
            # Outside the except block: the traceback there would keep the failed tensors alive.
            for kind, state in generators.items():
                self._set_generator(kind, state)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            print(
                f"out of memory: going on with {self.micro_batch} images at a time, "
                f"gradients accumulated to the same batch of {n}",
                file=sys.stderr,
            )

    def _trained(self) -> list[Any]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _average(self, team: ProcessTeam, n: int) -> None:
        """Give every process the gradients of the whole batch, and the same running statistics."""
        params = self._trained()
        for p in params:
            if p.grad is None:  # without a share of this batch
                p.grad = torch.zeros_like(p)
        statistics = [b for b in self.model.buffers() if b.is_floating_point()]
        team.average([*(p.grad for p in params), *statistics], weight=n)

    @torch.no_grad()
    def eval_step(self, images: Any, labels: Any) -> tuple[Any, Array]:
        """Return the mean loss of a batch and the predicted classes (N,)."""
        x, y = self.to_device(images, labels)
        logits = self._eval_logits(x, y)
        loss = nn.functional.cross_entropy(logits, y)
        return loss, logits.argmax(dim=1).cpu().numpy()

    @torch.no_grad()
    def probabilities(self, images: Any) -> Array:
        """Return the probabilities of the classes, (N, K), for a batch."""
        logits = self._eval_logits(*self.to_device(images, np.zeros(len(images), np.int64)))
        return _to_numpy(logits.softmax(dim=1))

    def _eval_logits(self, x: Tensor, y: Tensor) -> Tensor:
        if self.ema is not None:
            self.ema.show(True)
        self.model.eval()
        return self._as_memory_allows(
            len(y), lambda: torch.cat([self._logits(part) for part, _ in self._pieces(x, y)])
        )

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
        x = x.to(self.device, non_blocking=True, memory_format=self._layout)
        return x, y.to(self.device, non_blocking=True)

    def weights(self) -> dict[str, Array]:
        """Return the model's arrays by name, on the host."""
        state = self.model.state_dict() if self.ema is None else self.ema.average
        return {name: _to_numpy(tensor) for name, tensor in state.items()}

    def load_weights(self, weights: Mapping[str, Array]) -> None:
        """Copy ``weights`` into the model.

        Raises:
            ValueError: the first name that is missing or unknown, or whose shape differs.
        """
        if self.ema is not None:
            self.ema.show(True)
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
        """Return the optimizer's arrays and the random generators' states, a row a process."""
        arrays = {
            f"generator.{kind}": self._of_all(state) for kind, state in self._generators().items()
        }
        for i, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    arrays[f"optimizer.{i}.{key}"] = _to_numpy(torch.as_tensor(value))
        rest = {"micro_batch": self.micro_batch}
        if self.ema is not None:
            for name, tensor in self.ema.trained.items():
                arrays[f"trained.{name}"] = _to_numpy(tensor)
            rest["averaged_steps"] = self.ema.steps
        return arrays, json.dumps(rest)

    def load_state(self, arrays: Mapping[str, Array], text: str) -> None:
        """Restore what :meth:`state` returned; ValueError when it is another optimizer's."""
        mine = self.optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        trained: dict[str, Array] = {}
        for name, array in arrays.items():
            kind, _, rest = name.partition(".")
            tensor = torch.from_numpy(np.array(array))
            if kind == "generator":
                self._load_generator(rest, tensor)
            elif kind == "optimizer":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = tensor
            elif kind == "trained" and self.ema is not None:
                trained[rest] = array
            else:
                raise ValueError(f"{name} is not part of this learner's state")
        params = self._trained()
        for i, entries in state.items():
            for key, tensor in entries.items():
                if i >= len(params) or tensor.shape not in (params[i].shape, torch.Size([])):
                    raise ValueError(f"optimizer state {i}.{key} does not fit")
                if tensor.shape == params[i].shape:
                    # In the parameter's own memory layout: fused optimizers pair values by where
                    # they lie, so that another layout would mix them up without a word.
                    entries[key] = torch.empty_like(params[i], dtype=tensor.dtype).copy_(tensor)
        said = json.loads(text)
        self.micro_batch = said["micro_batch"]
        if self.ema is not None:
            self.ema.load(trained, said["averaged_steps"])
        self.optimizer.load_state_dict({"state": state, "param_groups": mine["param_groups"]})

    def _of_all(self, state: Tensor) -> Array:
        rows: Array = state.numpy()[None]
        return rows if self.team is None else self.team.gather(rows)

    def _load_generator(self, kind: str, states: Tensor) -> None:
        rank, size = (0, 1) if self.team is None else (self.team.rank, self.team.size)
        if len(states) != size and rank == 0 and kind == "cpu":
            print(
                f"the run had {len(states)} processes and has {size} now: it goes on, but not as "
                f"it would have",
                file=sys.stderr,
            )
        if rank >= len(states):
            return
        # A copy: PyTorch reads a view from where its storage begins.
        self._set_generator(kind, states[rank].clone())

    def _generators(self) -> dict[str, Tensor]:
        """Return the states of the generators that a step may draw from."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _set_generator(self, kind: str, state: Tensor) -> None:
        if kind == "cpu":
            torch.set_rng_state(state)
        elif kind == "cuda" and self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)

    def feature_maps(self, images: Any) -> list[tuple[str, Array]]:
        """Return none: the NumPy networks are those to look into."""
        return []

    def first_layer(self) -> Array:
        """Return the weights that look at the input, (n_filters, D), for a picture."""
        first = next(p for p in self.model.parameters() if p.dim() > 1)
        return _to_numpy(first).reshape(len(first), -1)


def _to_numpy(tensor: Tensor) -> Array:
    # .copy(): a checkpoint must not change while it is being written.
    array: Array = tensor.detach().cpu().contiguous().numpy().copy()
    return array
