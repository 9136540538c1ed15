"""Optimizers on lists of arrays, and learning-rate schedules; definitions are PyTorch's.

An optimizer sees parameters and gradients as arrays, never a model. ``step(grads)`` changes the
parameters in place; ``state_dict`` returns everything needed to go on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from numpy_mlp.modules.module import Array, as_real, underflow_is_zero

Arrays = Iterable[Array] | Mapping[str, Array]

_PIECE = 1 << 16  # values updated at a time: 256 KiB an array in float32


class Optimizer:
    """What all optimizers share: the parameters, the learning rate, the state of each parameter.

    A subclass names the arrays it keeps per parameter in ``slots`` and writes :meth:`_update`, an
    elementwise formula. It is applied to pieces small enough to stay in the processor's cache: a
    formula of ten operations then reads each array from memory once, not ten times.

    Args:
        params: arrays of floats that :meth:`step` changes in place, or a dictionary of them, as
            ``model.params`` is. float16 is updated in float32, and has its state in it.
        lr: learning rate; may be set between steps.
        weight_decay: of all parameters, or of each.

    Attributes:
        whole_steps: whether :meth:`step` is faster than one :meth:`update` after the other.

    Raises:
        ValueError: ``lr`` is negative or not finite, ``weight_decay`` is negative, or a parameter
            is read-only.
        TypeError: a parameter is no array of floats.
    """

    slots: tuple[str, ...] = ()
    whole_steps = False

    def __init__(
        self, params: Arrays, lr: float, weight_decay: float | Sequence[float] = 0.0
    ) -> None:
        if not 0 <= lr < math.inf:
            raise ValueError(f"learning rate must be >= 0 and finite, got {lr!r}")
        self._names = list(params) if isinstance(params, Mapping) else None
        self.params = _parameters(params)
        self._dtypes = [np.result_type(p, np.float32) for p in self.params]
        self.lr = lr
        of_each = weight_decay if isinstance(weight_decay, Sequence) else [weight_decay]
        if not all(decay >= 0 for decay in of_each):
            raise ValueError(f"weight_decay must be >= 0, got {weight_decay!r}")
        self.weight_decay = [*of_each] * (len(self.params) if len(of_each) == 1 else 1)
        assert len(self.weight_decay) == len(self.params), "a weight decay for each parameter"
        self.step_count = 0
        self.state = [
            {slot: np.zeros_like(p, dtype) for slot in self.slots}
            for p, dtype in zip(self.params, self._dtypes, strict=True)
        ]
        self._scratch: Array = np.empty(0)

    @underflow_is_zero
    def step(self, grads: Arrays) -> None:
        """Update every parameter from its gradient.

        Args:
            grads: in the order of the parameters, or a dictionary with their names.
        """
        if isinstance(grads, Mapping):
            if self._names is None:
                raise TypeError(
                    "gradients by name need parameters by name: make the optimizer with "
                    "model.params, or give list(grads.values())"
                )
            for missing in set(self._names) - grads.keys():
                raise ValueError(f"there is no gradient of {missing}, got {list(grads)}")
            grads = [grads[name] for name in self._names]
        grads = list(grads)
        assert len(grads) == len(self.params), (
            f"got {len(grads)} gradients for {len(self.params)} parameters"
        )
        self.begin_step()
        self._update_all(grads)

    def _update_all(self, grads: Sequence[Array]) -> None:
        for index, grad in enumerate(grads):
            self.update(index, grad)

    def begin_step(self) -> None:
        """Count a step, whose parameters :meth:`update` then changes one at a time."""
        self.step_count += 1

    def update(self, index: int, grad: Array) -> None:
        """Update one parameter, as part of a step.

        :meth:`step` updates them all. A gradient is cheapest to read right after it was made,
        though, while it is in the processor's cache: the backward pass may call this as it goes,
        once nothing reads the old value of the parameter any more.
        """
        param, state = self.params[index], self.state[index]
        grad = as_real(grad, "a gradient")
        assert param.shape == grad.shape, f"parameter {param.shape}, gradient {grad.shape}"
        # In the order of the memory, which the filters of a convolution have their own of.
        order = np.argsort([-abs(s) for s in param.strides], kind="stable")
        flat_param, flat_grad = (a.transpose(order).reshape(-1) for a in (param, grad))
        flat_state = {slot: a.transpose(order).reshape(-1) for slot, a in state.items()}
        size, dtype = min(param.size, _PIECE), self._dtypes[index]
        if self._scratch.dtype != dtype or self._scratch.size < size:
            self._scratch = np.empty(size, dtype)
        for start in range(0, param.size, _PIECE):
            piece = slice(start, start + _PIECE)
            part = flat_param[piece]
            if part.dtype != dtype:
                part = part.astype(dtype)
            self._update(
                part,
                flat_grad[piece],
                {slot: array[piece] for slot, array in flat_state.items()},
                self._scratch[: part.size],
                self.weight_decay[index],
            )
            if param.dtype != dtype:
                flat_param[piece] = part
        if not np.may_share_memory(flat_param, param):  # what was updated is a copy
            param.transpose(order)[...] = flat_param.reshape(param.transpose(order).shape)

    def _update(
        self,
        param: Array,
        grad: Array,
        state: dict[str, Array],
        scratch: Array,
        weight_decay: float,
    ) -> None:
        """Change ``param`` and ``state`` in place; ``scratch`` may be used for anything."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Return the state as arrays by name; the arrays themselves, no copies."""
        named = {f"{i}.{k}": v for i, state in enumerate(self.state) for k, v in state.items()}
        return {"step_count": np.array(self.step_count), **named}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy the arrays of ``state`` into this optimizer.

        Raises:
            ValueError: the names or shapes are not this optimizer's.
        """
        mine = self.state_dict()
        for name, array in mine.items():
            if name not in state or np.shape(state[name]) != array.shape:
                raise ValueError(f"optimizer state {name} is missing or of another shape")
        if extra := state.keys() - mine.keys():
            raise ValueError(f"optimizer state {sorted(extra)[0]} is not of {type(self).__name__}")
        self.step_count = int(state["step_count"])
        for name, array in mine.items():
            array[...] = state[name]


def clip_grad_norm(grads: Sequence[Array], max_norm: float) -> float:
    """Shorten gradients, in place, to the norm ``max_norm`` where they are longer.

    All of them together are one vector g, whose direction stays: ``g *= min(1, max_norm / ‖g‖)``,
    1e-6 added to ‖g‖ there, as ``torch.nn.utils.clip_grad_norm_`` does.

    Returns:
        ‖g‖ before.

    Source: Pascanu et al., *On the Difficulty of Training Recurrent Neural Networks*, 2013.
    """
    norm = math.sqrt(sum(float(np.linalg.norm(g)) ** 2 for g in grads))
    factor = max_norm / (norm + 1e-6)
    for grad in grads if factor < 1 else ():
        grad *= factor
    return norm


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD`` defines it.

    ``g = ∇L + weight_decay · θ``;  ``b = momentum · b + g``;  ``θ -= lr · b``, or with Nesterov's
    variant ``θ -= lr · (g + momentum · b)``. The buffer b is a sum of gradients: the learning rate
    is outside it, and the first step is a plain one.

    Args:
        params: arrays to train, or a dictionary of them.
        lr: learning rate.
        momentum: share of the buffer that survives a step, in [0, 1).
        weight_decay: L2 penalty, added to the gradient; of all parameters, or of each.
        nesterov: look ahead along the buffer.

    Raises:
        ValueError: a value is out of range, or ``nesterov`` without momentum.

    Source: Sutskever et al., *On the importance of initialization and momentum*, ICML 2013.
    """

    slots: tuple[str, ...] = ("momentum_buffer",)

    def __init__(
        self,
        params: Arrays,
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float | Sequence[float] = 0.0,
        nesterov: bool = False,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if not momentum:
            self.slots = ()
        super().__init__(params, lr, weight_decay)
        self.momentum, self.nesterov = momentum, nesterov

    def _update(
        self,
        param: Array,
        grad: Array,
        state: dict[str, Array],
        scratch: Array,
        weight_decay: float,
    ) -> None:
        if weight_decay:
            np.multiply(param, weight_decay, out=scratch)
            scratch += grad
            grad = scratch  # g
        if self.momentum:
            buffer = state["momentum_buffer"]
            buffer *= self.momentum
            buffer += grad  # b
        if not self.momentum or self.nesterov:
            np.multiply(grad, self.lr, out=scratch)
            param -= scratch  # θ -= lr · g
        if self.momentum:
            np.multiply(buffer, self.lr * (self.momentum if self.nesterov else 1), out=scratch)
            param -= scratch  # θ -= lr · b, or lr · momentum · b


class AdamW(Optimizer):
    """Adam with decoupled weight decay, as ``torch.optim.AdamW`` defines it.

    ``θ -= lr · weight_decay · θ``; ``m = β₁ m + (1-β₁) g``; ``v = β₂ v + (1-β₂) g²``;
    ``θ -= lr · m̂ / (√v̂ + eps)`` with ``m̂ = m / (1-β₁ᵗ)`` and ``v̂ = v / (1-β₂ᵗ)``, t counted from 1.
    With ``decoupled=False`` it is ``torch.optim.Adam``: weight decay is an L2 penalty, g = ∇L +
    weight_decay · θ.

    Args:
        params: arrays to train, or a dictionary of them.
        lr: learning rate.
        betas: decay rates (β₁, β₂) of the two moments, each in [0, 1).
        eps: added to the denominator.
        weight_decay: share of lr by which the parameters shrink each step; of all, or of each.
        decoupled: whether it is; otherwise it is added to the gradient.

    Raises:
        ValueError: a value is out of range.

    Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019.
    """

    slots: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Sequence[float] = 0.01,
        decoupled: bool = True,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas!r}")
        if not eps >= 0:
            raise ValueError(f"eps must be >= 0, got {eps!r}")
        super().__init__(params, lr, weight_decay)
        self.betas, self.eps, self.decoupled = betas, eps, decoupled

    def _update(
        self,
        param: Array,
        grad: Array,
        state: dict[str, Array],
        scratch: Array,
        weight_decay: float,
    ) -> None:
        beta1, beta2 = self.betas
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if weight_decay and self.decoupled:
            param *= 1 - self.lr * weight_decay
        elif weight_decay:
            grad = grad + weight_decay * param
        m *= beta1
        np.multiply(grad, 1 - beta1, out=scratch)
        m += scratch
        v *= beta2
        np.multiply(grad, grad, out=scratch)
        scratch *= 1 - beta2
        v += scratch
        np.sqrt(v, out=scratch)
        scratch *= 1 / math.sqrt(1 - beta2**self.step_count)
        scratch += self.eps  # √v̂ + eps
        np.divide(m, scratch, out=scratch)
        scratch *= self.lr / (1 - beta1**self.step_count)  # lr · m̂ / (√v̂ + eps)
        param -= scratch


def _parameters(params: Arrays) -> list[Array]:
    """Return the arrays; an error unless they are floats that may be written to."""
    if isinstance(params, np.ndarray):
        raise TypeError("params is one array, expected a list of arrays; give [array]")
    if not isinstance(params, Iterable):
        raise TypeError(f"params is {type(params).__name__}; of a model give model.params")
    params = list(params.values() if isinstance(params, Mapping) else params)
    for i, param in enumerate(params):
        if not isinstance(param, np.ndarray) or param.dtype.kind != "f":
            kind = param.dtype if isinstance(param, np.ndarray) else type(param).__name__
            hint = "; give the node's value" if hasattr(param, "value") else ""
            raise TypeError(f"parameter {i} is {kind}, expected an array of floats{hint}")
        if not param.flags.writeable:
            raise ValueError(
                f"parameter {i} is read-only, but training changes it in place; give a copy"
            )
    return params


Schedule = Callable[[int], float]
"""The learning rate of each step, counted from 0."""

SCHEDULES = ("constant", "step", "cosine", "linear")


def constant_schedule(lr: float, *, warmup_steps: int = 0) -> Schedule:
    """Return ``lr`` at every step, after a linear warm-up."""
    return _with_warmup(lambda step: lr, lr, warmup_steps)


def step_schedule(
    lr: float, *, step_size: int, gamma: float = 0.1, warmup_steps: int = 0
) -> Schedule:
    """Return ``lr · gamma^⌊t / step_size⌋``: one drop every ``step_size`` steps.

    Raises:
        ValueError: ``step_size`` is not positive.
    """
    if step_size < 1:
        raise ValueError(f"step_size must be >= 1, got {step_size!r}")
    return _with_warmup(lambda step: lr * gamma ** (step // step_size), lr, warmup_steps)


def cosine_schedule(
    lr: float, *, total_steps: int, min_lr: float = 0.0, warmup_steps: int = 0
) -> Schedule:
    """Return half a cosine from ``lr`` after the warm-up to ``min_lr`` at ``total_steps``.

    ``min_lr + (lr - min_lr) (1 + cos(π t/T)) / 2`` with t and T counted from the end of the
    warm-up (Loshchilov and Hutter, *SGDR*, ICLR 2017, without restarts).

    Raises:
        ValueError: the warm-up is longer than the training.
    """
    progress = _progress(total_steps, warmup_steps)
    return _with_warmup(
        lambda step: min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress(step))) / 2,
        lr,
        warmup_steps,
    )


def linear_schedule(lr: float, *, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Return ``lr (1 - t/T)``, t and T counted from the end of the warm-up: 0 at ``total_steps``.

    Raises:
        ValueError: the warm-up is longer than the training.
    """
    progress = _progress(total_steps, warmup_steps)
    return _with_warmup(lambda step: lr * (1 - progress(step)), lr, warmup_steps)


def _progress(total_steps: int, warmup_steps: int) -> Schedule:
    """Return the share done, at each step, of what follows the warm-up."""
    if warmup_steps > total_steps:
        raise ValueError(f"warm-up of {warmup_steps} steps exceeds the {total_steps} of the run")
    return lambda step: min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))


def _with_warmup(schedule: Schedule, lr: float, warmup_steps: int) -> Schedule:
    """Rise linearly over the first ``warmup_steps`` steps; the last of them has the full ``lr``."""
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be >= 0, got {warmup_steps!r}")
    return lambda step: lr * (step + 1) / warmup_steps if step < warmup_steps else schedule(step)
