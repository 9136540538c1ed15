"""Optimizers on lists of arrays, and learning-rate schedules; definitions are PyTorch's.

An optimizer sees parameters and gradients as arrays, never a model. ``step(grads)`` changes the
parameters in place; ``state_dict`` returns everything needed to go on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from numpy_mlp.modules.module import Array
from numpy_mlp.parallel import for_chunks

_PIECE = 1 << 16  # values updated at a time: 256 KiB an array in float32


class Optimizer:
    """What all optimizers share: the parameters, the learning rate, the state of each parameter.

    A subclass names the arrays it keeps per parameter in ``slots`` and writes :meth:`_update`, an
    elementwise formula. It is applied to pieces small enough to stay in the processor's cache: a
    formula of ten operations then reads each array from memory once, not ten times.

    Args:
        params: arrays without gaps in memory that :meth:`step` changes in place.
        lr: learning rate; may be set between steps.
        weight_decay: of all parameters, or of each.

    Attributes:
        whole_steps: whether :meth:`step` is faster than one :meth:`update` after the other.

    Raises:
        ValueError: ``lr`` is negative or not finite, or ``weight_decay`` is negative.
    """

    slots: tuple[str, ...] = ()
    whole_steps = False

    def __init__(
        self, params: Sequence[Array], lr: float, weight_decay: float | Sequence[float] = 0.0
    ) -> None:
        if not 0 <= lr < math.inf:
            raise ValueError(f"learning rate must be >= 0 and finite, got {lr!r}")
        self.params = list(params)
        self.lr = lr
        of_each = weight_decay if isinstance(weight_decay, Sequence) else [weight_decay]
        if not all(decay >= 0 for decay in of_each):
            raise ValueError(f"weight_decay must be >= 0, got {weight_decay!r}")
        self.weight_decay = [*of_each] * (len(self.params) if len(of_each) == 1 else 1)
        assert len(self.weight_decay) == len(self.params), "a weight decay for each parameter"
        self.step_count = 0
        self.state = [{slot: np.zeros_like(p) for slot in self.slots} for p in self.params]
        self._scratch: Array = np.empty(0)

    def step(self, grads: Sequence[Array]) -> None:
        """Update every parameter from its gradient."""
        assert len(grads) == len(self.params), (
            f"got {len(grads)} gradients for {len(self.params)} parameters"
        )
        self.begin_step()
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
        assert param.shape == grad.shape, f"parameter {param.shape}, gradient {grad.shape}"
        if grad.strides != param.strides:
            same = np.empty_like(param)
            same[...] = grad
            grad = same
        flat_param, flat_grad = _flat(param), _flat(grad)
        flat_state = {slot: _flat(array) for slot, array in state.items()}
        size = min(param.size, _PIECE)
        if self._scratch.dtype != param.dtype or self._scratch.size < size:
            self._scratch = np.empty(size, param.dtype)
        for start in range(0, param.size, _PIECE):
            piece = slice(start, start + _PIECE)
            part = flat_param[piece]
            self._update(
                part,
                flat_grad[piece],
                {slot: array[piece] for slot, array in flat_state.items()},
                self._scratch[: part.size],
                self.weight_decay[index],
            )

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


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD`` defines it.

    ``g = ∇L + weight_decay · θ``;  ``b = momentum · b + g``;  ``θ -= lr · b``, or with Nesterov's
    variant ``θ -= lr · (g + momentum · b)``. The buffer b is a sum of gradients: the learning rate
    is outside it, and the first step is a plain one.

    Args:
        params: arrays to train.
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
        params: Sequence[Array],
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
        params: arrays to train.
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
        params: Sequence[Array],
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


class Muon(Optimizer):
    """Momentum made orthogonal for filters, Nesterov's momentum for all other parameters.

    A filter bank is a matrix, O rows of C·kH·kW. Its step has the directions of the momentum, all
    of the same size: ``b = momentum · b + ∇L``, ``θ -= lr · orthogonalize(∇L + momentum · b)``.
    Before it, θ is scaled to the norm √O, as batch normalisation after a convolution makes its
    outputs independent of the filters' scale. Everything else is trained as by :class:`SGD` with
    ``nesterov``, with a learning rate of its own and a decoupled decay: ``θ *= 1 - share ·
    weight_decay``, ``b = rest_momentum · b + ∇L``, ``θ -= rate · (∇L + rest_momentum · b)``, where
    share = lr / ``top_lr``, the place in the schedule.

    Args:
        params: arrays to train; those of four axes are filters.
        lr: learning rate of the filters, at its highest.
        momentum: share of the filters' buffer that survives a step, in [0, 1).
        rest_lr: learning rate of each parameter that is no filter, when the filters' is ``lr``.
        rest_momentum: of those.
        weight_decay: share by which those shrink in a step, when the filters' rate is ``lr``.
        steps: of the iteration in :func:`orthogonalize`.

    Raises:
        ValueError: a value is out of range.

    Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024.
    """

    slots: tuple[str, ...] = ("momentum_buffer",)
    whole_steps = True

    def __init__(
        self,
        params: Sequence[Array],
        lr: float,
        *,
        momentum: float = 0.6,
        rest_lr: float | Sequence[float] = 0.1,
        rest_momentum: float = 0.85,
        weight_decay: float | Sequence[float] = 0.0,
        steps: int = 3,
    ) -> None:
        for name, value in (("momentum", momentum), ("rest_momentum", rest_momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value!r}")
        super().__init__(params, lr, weight_decay)
        rates = rest_lr if isinstance(rest_lr, Sequence) else [rest_lr] * len(self.params)
        if len(rates) != len(self.params) or not all(0 <= rate < math.inf for rate in rates):
            raise ValueError(
                f"rest_lr must be >= 0 and finite, for each parameter, got {rest_lr!r}"
            )
        self.top_lr, self.rest_lr = lr, list(rates)
        self.momentum, self.rest_momentum, self.steps = momentum, rest_momentum, steps

    def step(self, grads: Sequence[Array]) -> None:
        """Update every parameter from its gradient, several at the same time."""
        self.begin_step()

        def work(chunk: slice, lane: int) -> None:
            self.update(chunk.start, grads[chunk.start])

        for_chunks(len(grads), 1, work)

    def update(self, index: int, grad: Array) -> None:
        """Update one parameter, as part of a step."""
        param, buffer = self.params[index], self.state[index]["momentum_buffer"]
        assert param.shape == grad.shape, f"parameter {param.shape}, gradient {grad.shape}"
        momentum = self.momentum if param.ndim == 4 else self.rest_momentum
        buffer *= momentum
        buffer += grad
        direction = momentum * buffer
        direction += grad
        if param.ndim == 4:
            param *= math.sqrt(len(param)) / np.linalg.norm(param)
            # A view of the filters as columns, which is how a convolution keeps them.
            filters = direction.transpose(2, 3, 1, 0)
            update = orthogonalize(filters.reshape(-1, len(param)), self.steps)
            update *= self.lr
            param -= update.reshape(filters.shape).transpose(3, 2, 0, 1)
            return
        share = self.lr / self.top_lr if self.top_lr else 0.0
        param *= 1 - share * self.weight_decay[index]
        direction *= share * self.rest_lr[index]
        param -= direction


def orthogonalize(matrix: Array, steps: int = 3) -> Array:
    """Return U S Vᵀ for a matrix U diag(σ) Vᵀ, where S is near 1 instead of σ.

    A step of Newton and Schulz's iteration, ``X ← (a + b G + c G²) X`` with G = X Xᵀ, changes no
    singular vector and every singular value by the same polynomial, σ ← a σ + b σ³ + c σ⁵. From
    anywhere in (0, 1] a few steps bring it between 0.7 and 1.2: the coefficients trade the limit 1
    for a steep rise at 0. As the steps' factors are polynomials in the same G, they commute, and
    only G and their product are iterated, which are the smaller matrices: G ← P G P, Q ← P Q, and
    X = Q X₀ at the end.

    Args:
        matrix: (M, N), not changed.
        steps: of the iteration.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    if len(matrix) > matrix.shape[1]:
        return orthogonalize(matrix.T, steps).T
    x = matrix / (np.linalg.norm(matrix) + 1e-7)  # so that no singular value is above 1
    gram = x @ x.T
    product = np.eye(len(gram), dtype=gram.dtype)
    for _ in range(steps):
        factor = b * gram + c * (gram @ gram)
        factor[np.diag_indices_from(factor)] += a
        product = factor @ product
        gram = factor @ gram @ factor
    result: Array = product @ x
    return result


def _flat(array: Array) -> Array:
    """Return a 1-d view of ``array`` in the order of its memory: changing one changes the other."""
    flat = array.ravel(order="K")
    assert np.may_share_memory(flat, array) or not array.size, (
        "parameters and their state must have no gaps in memory"
    )
    return flat


Schedule = Callable[[int], float]
"""The learning rate of each step, counted from 0."""

SCHEDULES = ("constant", "step", "cosine")


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
    if warmup_steps > total_steps:
        raise ValueError(f"warm-up of {warmup_steps} steps exceeds the {total_steps} of the run")

    def cosine(step: int) -> float:
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2

    return _with_warmup(cosine, lr, warmup_steps)


def _with_warmup(schedule: Schedule, lr: float, warmup_steps: int) -> Schedule:
    """Rise linearly over the first ``warmup_steps`` steps; the last of them has the full ``lr``."""
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be >= 0, got {warmup_steps!r}")
    return lambda step: lr * (step + 1) / warmup_steps if step < warmup_steps else schedule(step)
