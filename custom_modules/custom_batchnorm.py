"""Batch normalisation: with autograd's backward, and with a backward pass written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from custom_modules.affine import (
    AffineModule,
    channels,
    check_input,
    formula_wanted,
    statistics_dtype,
    transformed,
)


class _BatchNorm(AffineModule):
    """Parameters and running statistics of the two modules below."""

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        n_neurons: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = False,
    ) -> None:
        super().__init__(n_neurons, eps)
        self.momentum, self.track_running_stats = momentum, track_running_stats
        on = track_running_stats
        self.register_buffer("running_mean", torch.zeros(n_neurons) if on else None)
        self.register_buffer("running_var", torch.ones(n_neurons) if on else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if on else None)

    def _check_and_count(self, x: Tensor) -> float:
        """Check the input, count a training batch, return its weight in the running statistics."""
        batch_statistics = self.training or not self.track_running_stats
        check_batch(type(self).__name__, x, self.n_neurons, batch_statistics)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum

    def _formula(self, input: Tensor) -> Tensor:
        """Return ``gamma · x_hat + beta`` by operations that autograd knows."""
        try:
            return self._operations(input)
        except RuntimeError as error:
            if not (transformed() and self.training and self.track_running_stats):
                raise
            raise RuntimeError(
                f"{type(self).__name__}: this transform of torch.func cannot change running "
                f"statistics in place; use .eval(), or track_running_stats=False"
            ) from error

    def _operations(self, input: Tensor) -> Tensor:
        momentum = self._check_and_count(input)
        x = input.to(statistics_dtype(input))
        dims, shape, n = layout(x)
        if self.training or self.running_mean is None or self.running_var is None:
            mean = x.mean(dims)  # (C,)
            centred = x - mean.view(shape)
            var = centred.square().mean(dims)  # (C,)
            update_running(self.running_mean, self.running_var, mean, var, n, momentum)
        else:
            centred, var = x - self.running_mean.view(shape), self.running_var.to(x.dtype)
        x_hat = centred * torch.rsqrt(var + self.eps).view(shape)
        return (self.gamma.view(shape) * x_hat + self.beta.view(shape)).to(input.dtype)

    def extra_repr(self) -> str:
        """Show the arguments when the module is printed."""
        return (
            f"{super().extra_repr()}, momentum={self.momentum}, "
            f"track_running_stats={self.track_running_stats}"
        )


class CustomBatchNormAutograd(_BatchNorm):
    """Standardise each channel over the batch, then scale and shift it; autograd differentiates.

    ``x_hat = (x - μ) / √(σ² + eps)``, ``y = gamma · x_hat + beta``, with μ and σ² the mean and the
    biased variance of a channel over all other dimensions: N values for (N, C), N·H·W for
    (N, C, H, W).

    Args:
        n_neurons: number of channels C.
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics, which is not the optimizer's
            momentum; ``None`` averages all batches equally.
        track_running_stats: keep ``running = (1 - momentum) · running + momentum · batch`` of the
            mean and of the *unbiased* variance (divided by n - 1), and normalise with it in
            evaluation mode, as ``torch.nn.BatchNorm1d`` does. Without, evaluation uses the
            statistics of its batch, like training.

    Shapes: ``x``, ``y`` (N, C) or (N, C, H, W); ``gamma``, ``beta``, running statistics (C,).

    Raises:
        ValueError: another shape, or statistics from a single value per channel.
        TypeError: an input that is not floating-point.

    To take over the weights of ``bn = torch.nn.BatchNorm2d(C)``, whose names are ``weight`` and
    ``bias``::

        state = bn.state_dict()
        state["gamma"], state["beta"] = state.pop("weight"), state.pop("bias")
        CustomBatchNormAutograd(C, track_running_stats=True).load_state_dict(state)

    Source: Ioffe and Szegedy, *Batch Normalization*, ICML 2015.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``gamma · x_hat + beta``."""
        return self._formula(input)


class CustomBatchNormManualFunction(torch.autograd.Function):
    """Batch normalisation whose backward pass is :meth:`backward`, not autograd's.

    ``apply(input, gamma, beta, eps=1e-5)`` normalises with the statistics of the batch. Four more
    arguments, meant for :class:`CustomBatchNormManualModule`, are those of
    ``torch.nn.functional.batch_norm``: ``running_mean, running_var, training, momentum``.

    Formula, shapes, errors and source: see :class:`CustomBatchNormAutograd`.

    Kept for backward: ``input`` and ``gamma`` themselves, and (C,) for mean and inv_std; of these,
    only what the gradients that are asked for read. x_hat, as large as the input, is recomputed.

    For torch.func's transforms, take :class:`CustomBatchNormManualModule`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float = 1e-5,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        training: bool = True,
        momentum: float = 0.1,
    ) -> Tensor:
        """Return ``gamma · x_hat + beta``.

        Mean, scale and shift of a channel are one multiply-add per value:

            y = gamma · (x - mean) · inv_std + beta
              = x · scale + (beta - mean · scale)              with scale = gamma · inv_std

        The variance is the mean of (x - mean)², not E[x²] - mean², which would lose all digits when
        the mean is large.
        """
        batch_statistics = training or running_mean is None or running_var is None
        n_neurons = channels("CustomBatchNormManualFunction", gamma, beta)
        check_batch("CustomBatchNormManualFunction", input, n_neurons, batch_statistics)
        x = input.to(statistics_dtype(input))
        dims, shape, n = layout(x)
        if training or running_mean is None or running_var is None:
            mean = x.sum(dims).div_(n)  # (C,)
            y = x - mean.view(shape)
            var = y.square_().sum(dims).div_(n)  # (C,)
            update_running(running_mean, running_var, mean, var, n, momentum)
        else:
            mean, var = running_mean.to(x.dtype), running_var.to(x.dtype)
            y = torch.empty_like(x)
        inv_std = torch.rsqrt(var + eps)  # (C,)
        scale = gamma * inv_std
        torch.addcmul((beta - mean * scale).view(shape), x, scale.view(shape), out=y)

        need_dx, need_dgamma = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            input if need_dgamma or (need_dx and batch_statistics) else None,
            gamma if need_dx else None,
            mean if need_dx or need_dgamma else None,
            inv_std if need_dx or need_dgamma else None,
        )
        ctx.eps, ctx.batch_statistics = eps, batch_statistics
        return y.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return ∂L/∂input, ∂L/∂gamma, ∂L/∂beta, those that are needed, and None for the rest.

        Write δ = ``dout`` = ∂L/∂y. One channel at a time, i and j run over its n values (N, or
        N·H·W), and s = inv_std. Scale and shift are elementwise, and one gamma and one beta serve
        all n values:

            y[i] = gamma · x_hat[i] + beta
            dgamma = Σ_i δ[i] · x_hat[i] = inv_std · Σ_i δ[i] · (x[i] - mean)
            dbeta  = Σ_i δ[i]

        x[j] reaches x_hat[i] = (x[i] - mean) · s directly, through the mean, and through the
        variance var = 1/n Σ_i (x[i] - mean)². From ∂mean/∂x[j] = 1/n,

            ∂var/∂x[j] = 2/n Σ_i (x[i] - mean) ([i = j] - 1/n) = 2/n (x[j] - mean),

        as deviations from the mean sum to zero; and from s = (var + eps)^(-1/2),

            ∂s/∂x[j] = -1/2 s³ · 2/n (x[j] - mean) = -s² x_hat[j] / n.

        Together, by the product rule,

            ∂x_hat[i]/∂x[j] = s ([i = j] - 1/n) + (x[i] - mean) · (-s² x_hat[j] / n)
                            = s ([i = j] - 1/n - x_hat[i] x_hat[j] / n).

        Summing ∂L/∂x_hat[i] = gamma · δ[i] times this over i, which finds dbeta and dgamma again:

            dx[j] = gamma · s (δ[j] - dbeta / n - x_hat[j] · dgamma / n)

        That is linear in δ and x, with three coefficients per channel:

            dx = a · dout + b · x + c,     a = gamma · inv_std
                                           b = -a · inv_std · dgamma / n
                                           c = -a · dbeta / n - b · mean

        Running statistics (evaluation mode) do not depend on x; there, dx = a · dout.
        """
        need_dx, need_dgamma, need_dbeta = ctx.needs_input_grad[:3]
        input, gamma, mean, inv_std = ctx.saved_tensors
        (dout,) = grad_outputs
        dout = dout.to(statistics_dtype(dout))
        x: Any = None if input is None else input.to(dout.dtype)
        dims, shape, n = layout(dout)
        others = (None,) * (len(ctx.needs_input_grad) - 3)  # eps and what follows it
        dx: Any = None
        dgamma: Any = None
        dbeta: Any = None

        if torch.is_grad_enabled():
            # create_graph=True: this pass will be differentiated in its turn, also through the
            # statistics. They are computed again from x, and nothing is done in place.
            if x is not None:
                if ctx.batch_statistics:
                    var, mean = torch.var_mean(x, dims, correction=0)
                    inv_std = torch.rsqrt(var + ctx.eps)
                x_hat = (x - mean.view(shape)) * inv_std.view(shape)
                dgamma = (dout * x_hat).sum(dims)
            dbeta = dout.sum(dims)
            if need_dx:
                dx = dout
                if ctx.batch_statistics:
                    dx = dout - dbeta.view(shape) / n - x_hat * dgamma.view(shape) / n
                dx = (gamma * inv_std).view(shape) * dx
        else:
            if need_dbeta or (need_dx and ctx.batch_statistics):
                dbeta = dout.sum(dims)  # (C,)
            if x is not None:
                dx = x - mean.view(shape)  # the one large temporary, whose memory becomes dx
                # Centred before the sum: Σ δ·x - mean · Σ δ would cancel when the mean is large.
                dgamma = dx.mul_(dout).sum(dims).mul_(inv_std)  # (C,)
            if need_dx:
                a = gamma * inv_std  # (C,)
                if ctx.batch_statistics:
                    b = a * inv_std * dgamma / -n
                    c = a * dbeta / -n - b * mean
                    torch.addcmul(c.view(shape), x, b.view(shape), out=dx).addcmul_(
                        dout, a.view(shape)
                    )
                else:
                    dx = dout * a.view(shape)
        # The engine casts each gradient to the dtype of its input.
        return (
            dx if need_dx else None,
            dgamma if need_dgamma else None,
            dbeta if need_dbeta else None,
            *others,
        )


class CustomBatchNormManualModule(_BatchNorm):
    """:class:`CustomBatchNormAutograd` with the backward pass written by hand.

    Arguments, shapes, errors and results are the same. Under torch.func's transforms, torch.export
    and torch.jit.trace, which cannot use it, the backward pass is autograd's.

    Example:
        >>> layer = CustomBatchNormManualModule(3)
        >>> x = torch.randn(8, 3, 5, 5, requires_grad=True)
        >>> layer(x).square().sum().backward()
        >>> x.grad.shape
        torch.Size([8, 3, 5, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``gamma · x_hat + beta``."""
        if formula_wanted():
            return self._formula(input)
        momentum = self._check_and_count(input)
        y: Tensor = CustomBatchNormManualFunction.apply(
            input,
            self.gamma,
            self.beta,
            self.eps,
            self.running_mean,
            self.running_var,
            self.training,
            momentum,
        )
        return y


def check_batch(layer: str, x: Tensor, n_neurons: int, batch_statistics: bool) -> None:
    """Check the input; the statistics of a batch need more than one value per channel."""
    check_input(layer, x, n_neurons)
    if batch_statistics and x.numel() <= n_neurons:
        raise ValueError(
            f"{layer}: expected more than one value per channel to compute a variance, "
            f"got an input of shape {tuple(x.shape)}"
        )


def layout(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return the dimensions a channel's statistics run over, (C,)'s view beside x, and n."""
    dims, shape = ((0,), (-1,)) if x.ndim == 2 else ((0, 2, 3), (-1, 1, 1))
    return dims, shape, x.numel() // x.shape[1]


@torch.no_grad()
def update_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    n: int,
    momentum: float,
) -> None:
    """Move the running statistics, if there are any, towards those of a batch of n values."""
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (n / (n - 1))).to(running_var.dtype), momentum)
