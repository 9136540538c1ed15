"""One training step in NumPy, behind the interface that a training loop asks for."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numpy_mlp.anomaly import detect_anomaly, explain
from numpy_mlp.averaging import WeightAverage
from numpy_mlp.modules import DropoutModule, SoftMaxCrossEntropyModule
from numpy_mlp.modules.losses import class_indices
from numpy_mlp.modules.module import Array, Module, is_parametric, underflow_is_zero
from numpy_mlp.modules.softmax import softmax
from numpy_mlp.network import Network
from numpy_mlp.optim import Optimizer, clip_grad_norm
from numpy_mlp.workspace import Workspace

_TRAINED = "trained."  # before the names of the weights behind an average, in a learner's state


class NumpyLearner:
    """A model, its loss and its optimizer: everything that a step changes.

    Args:
        model: the network.
        optimizer: made with ``model.trained_parameters()``.
        label_smoothing: share of each training label that all classes get alike.
        clip_grad_norm: largest norm of the gradients; see :func:`numpy_mlp.optim.clip_grad_norm`.
        ema: decay of an average of the weights over the steps, which then is what is evaluated and
            what :meth:`weights` returns; 0 for none.
        detect_anomaly: check every output and gradient of every layer, and stop at the first that
            is not finite. Without it the loss is checked, and a gradient is noticed by what it did,
            a step later.

    Shapes: images (N, ...), as the network takes them; labels (N,), integers, or one-hot (N, C).
    """

    def __init__(
        self,
        model: Network,
        optimizer: Optimizer,
        *,
        label_smoothing: float = 0.0,
        clip_grad_norm: float | None = None,
        ema: float = 0.0,
        detect_anomaly: bool = False,
    ) -> None:
        self.model, self.optimizer, self.detect_anomaly = model, optimizer, detect_anomaly
        self.loss = SoftMaxCrossEntropyModule(label_smoothing)
        self.clip_grad_norm = clip_grad_norm
        self.ema = WeightAverage(model.state_dict(), ema) if ema else None
        self.workspace = Workspace()
        # Where the parameters of each layer are among the optimizer's.
        self._places: dict[Module, list[tuple[int, str]]] = {}
        trained = [p for p in model.named_parameters() if p[2] not in p[1].frozen]
        for place, (name, layer, key) in enumerate(trained):
            assert place < len(optimizer.params) and optimizer.params[place] is layer.params[key], (
                f"the optimizer was made with other parameters than {name} and the model's others"
            )
            self._places.setdefault(layer, []).append((place, key))
        assert len(optimizer.params) == sum(map(len, self._places.values())), "too many parameters"

    @underflow_is_zero
    def train_step(self, images: Array, labels: Array, lr: float) -> tuple[float, int]:
        """Update the weights on one batch; return its mean loss and its correct predictions.

        Raises:
            FloatingPointError: the loss is not finite. The message names the first layer where a
                value is not; no parameter is updated.
        """
        self._begin_step(lr)
        with self.workspace.lent_to(self.model.modules()), self._watching():
            logits = self.model.logits(images)
            if np.ndim(labels) != 1:
                labels = class_indices(labels, *logits.shape)
            loss, dlogits = self.loss.loss_and_gradient(logits, labels)
            self._check_loss(loss, images)
            if self.optimizer.whole_steps or self.clip_grad_norm is not None:
                self.model.backward_parameters(dlogits)
                self._end_step(self._grads())
            else:
                self.optimizer.begin_step()
                self.model.backward_parameters(dlogits, self._update)
                self._end_step(None)
            return loss, int((logits.argmax(axis=1) == labels).sum())

    def _begin_step(self, lr: float) -> None:
        if self.ema is not None:
            self.ema.show(False)
        self.model.train()
        self.optimizer.lr = lr

    def _end_step(self, grads: list[Array] | None) -> None:
        """Update the parameters from ``grads``, unless they are already; then their average."""
        if grads is not None:
            if self.clip_grad_norm is not None:
                clip_grad_norm(grads, self.clip_grad_norm)
            self.optimizer.step(grads)
        if self.ema is not None:
            self.ema.update()

    def _update(self, layer: Module) -> None:
        """Update the parameters of a layer, whose gradients have just been made."""
        for place, key in self._places.get(layer, ()):
            assert self.optimizer.params[place] is layer.params[key], (
                f"{key} of {layer} is another array than the optimizer updates; to change a "
                f"parameter, write into its array: params[{key!r}][...] = value"
            )
            self.optimizer.update(place, layer.grads[key])

    def _grads(self) -> list[Array]:
        """Return the gradients in the order of the optimizer's parameters."""
        return [layer.grads[key] for layer, keys in self._places.items() for _, key in keys]

    def _check_loss(self, loss: float, images: Array) -> None:
        if not math.isfinite(loss):
            where = explain(self.model, images)
            raise FloatingPointError(f"the loss became {loss}" + (f", as {where}" if where else ""))

    def _watching(self) -> contextlib.AbstractContextManager[None]:
        if self.detect_anomaly:
            return detect_anomaly(self.model)
        return contextlib.nullcontext()

    @underflow_is_zero
    def eval_step(self, images: Array, labels: Array) -> tuple[float, Array]:
        """Return the mean loss of a batch and the predicted classes (N,)."""
        logits = self._eval_logits(images)
        return SoftMaxCrossEntropyModule().forward(logits, labels), logits.argmax(axis=1)

    @underflow_is_zero
    def probabilities(self, images: Array) -> Array:
        """Return the probabilities of the classes, (N, K), for a batch."""
        return softmax(self._eval_logits(images))

    def _eval_logits(self, images: Array) -> Array:
        """Return the logits in evaluation mode, which hold until the next step."""
        self._begin_evaluation()
        with self.workspace.lent_to(self.model.modules()):
            return self.model.logits(images)

    def _begin_evaluation(self) -> None:
        if self.ema is not None:
            self.ema.show(True)
        self.model.eval()

    def weights(self) -> dict[str, Array]:
        """Return what a user of the trained model needs, by name: the live arrays, no copies."""
        return self.model.state_dict() if self.ema is None else self.ema.average

    def load_weights(self, weights: Mapping[str, Array]) -> None:
        """Copy ``weights`` into the model; ValueError when they are another architecture's."""
        if self.ema is not None:
            self.ema.show(True)
        self.model.load_state_dict(weights)

    def state(self) -> tuple[dict[str, Array], str]:
        """Return what, beside the weights, a resumed run needs: arrays by name, and a JSON text."""
        arrays = self.optimizer.state_dict()
        rest: dict[str, Any] = {"generators": [g.bit_generator.state for g in self._generators()]}
        if self.ema is not None:
            arrays |= {_TRAINED + name: array for name, array in self.ema.trained.items()}
            rest["averaged_steps"] = self.ema.steps
        return arrays, json.dumps(rest)

    def load_state(self, arrays: Mapping[str, Array], text: str) -> None:
        """Restore what :meth:`state` returned; ValueError when it is not this learner's."""
        rest = json.loads(text)
        if self.ema is not None:
            trained = {name: array for name, array in arrays.items() if name.startswith(_TRAINED)}
            arrays = {name: array for name, array in arrays.items() if name not in trained}
            trained = {name.removeprefix(_TRAINED): array for name, array in trained.items()}
            self.ema.load(trained, rest["averaged_steps"])
        self.optimizer.load_state_dict(arrays)
        states: list[Any] = rest["generators"]
        generators = self._generators()
        if len(states) != len(generators):
            raise ValueError(f"{len(states)} random generators saved, {len(generators)} expected")
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state

    def first_layer(self) -> Array:
        """Return the weights that look at the input, (n_filters, D), for a picture."""
        weighted = (m for m in self.model.modules() if is_parametric(m) and m.params)
        weight = next(w for m in weighted if (w := m.params["weight"]).ndim > 1)
        return weight.reshape(len(weight), -1)

    def feature_maps(self, images: Array) -> list[tuple[str, Array]]:
        """Return, by name, outputs (N, C, h, w) on the way: the last of each size, largest first.

        None of a network that does not look at images as such.
        """
        self.model.eval()
        last: dict[tuple[int, ...], tuple[str, Array]] = {}
        x, named = images, zip(self.model.names, self.model.layers[:-1], strict=False)
        for name, layer in named if self.model.chain == self.model.layers[:-1] else ():
            x = layer.forward(x)
            if x.ndim == 4 and min(x.shape[2:]) > 1:
                last[x.shape[2:]] = name, x
        return list(last.values())

    def _generators(self) -> list[np.random.Generator]:
        """Return the generators that training draws from, each once (layers may share one)."""
        shared = (layer.rng for layer in self.model.modules() if isinstance(layer, DropoutModule))
        return list({id(generator): generator for generator in shared}.values())
