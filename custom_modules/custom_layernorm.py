"""Layer normalisation: with autograd's backward, and with a backward pass written by hand."""

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
)


class _LayerNorm(AffineModule):
    """What the two modules below share."""

    def _formula(self, input: Tensor) -> Tensor:
        """Return ``gamma · x_hat + beta`` by operations that autograd knows."""
        check_input(type(self).__name__, input, self.n_neurons)
        x = input.to(statistics_dtype(input))
        dims, shape = ((1,), (-1,)) if x.ndim == 2 else ((1, 2, 3), (-1, 1, 1))
        centred = x - x.mean(dims, keepdim=True)
        var = centred.square().mean(dims, keepdim=True)
        x_hat = centred * torch.rsqrt(var + self.eps)
        return (self.gamma.view(shape) * x_hat + self.beta.view(shape)).to(input.dtype)


class CustomLayerNormAutograd(_LayerNorm):
    """Standardise each sample over all its values, then scale and shift; autograd differentiates.

    ``x_hat = (x - μ) / √(σ² + eps)``, ``y = gamma · x_hat + beta``, with μ and σ² the mean and the
    biased variance of one sample: over its C values for (N, C), over its C·H·W values for
    (N, C, H, W). gamma and beta have one entry per channel in both cases. On (N, C) this is
    ``torch.nn.LayerNorm(C)``; on (N, C, H, W) it is ``torch.nn.GroupNorm(1, C)``, and differs from
    ``torch.nn.LayerNorm([C, H, W])`` only in that the latter has a gamma and a beta for every
    single value. No sample sees another, so training and evaluation are the same.

    Args:
        n_neurons: number of channels C.
        eps: added to the variance.

    Shapes: ``x``, ``y`` (N, C) or (N, C, H, W); ``gamma``, ``beta`` (C,).

    Raises:
        ValueError: another shape.
        TypeError: an input that is not floating-point.

    Source: Ba, Kiros and Hinton, *Layer Normalization*, 2016 (arXiv 1607.06450).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``gamma · x_hat + beta``."""
        return self._formula(input)


class CustomLayerNormManualFunction(torch.autograd.Function):
    """Layer normalisation whose backward pass is :meth:`backward`, not autograd's.

    ``apply(input, gamma, beta, eps=1e-5)``. Formula, shapes, errors and source: see
    :class:`CustomLayerNormAutograd`.

    Kept for backward: ``input`` and ``gamma`` themselves, and (N,) for mean and inv_std; of these,
    only what the gradients that are asked for read. x_hat, as large as the input, is recomputed.

    For torch.func's transforms, take :class:`CustomLayerNormManualModule`.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
        """Return ``gamma · x_hat + beta``.

        After centring, one multiply-add per value, with a scale per sample and channel:

            y = (x - mean) · scale + beta                       with scale = gamma · inv_std

        Folding the mean into the shift too, x · scale + (beta - mean · scale), would save a pass
        but cancel in a sample whose values lie far from 0 and close together.
        """
        n_neurons = channels("CustomLayerNormManualFunction", gamma, beta)
        check_input("CustomLayerNormManualFunction", input, n_neurons)
        x = three_dimensional(input.to(statistics_dtype(input)))  # (N, C, L)
        n = x[0].numel() if len(x) else 1
        mean = x.sum((1, 2), keepdim=True).div_(n)  # (N, 1, 1)
        y = x - mean
        var = y.square_().sum((1, 2), keepdim=True).div_(n)  # (N, 1, 1)
        inv_std = torch.rsqrt(var + eps)
        scale = gamma.view(-1, 1) * inv_std  # (N, C, 1)
        torch.sub(x, mean, out=y)
        torch.addcmul(beta.view(-1, 1), y, scale, out=y)

        need_dx, need_dgamma = ctx.needs_input_grad[:2]
        reads_x = need_dx or need_dgamma
        ctx.save_for_backward(
            input if reads_x else None,
            gamma if need_dx else None,
            mean if reads_x else None,
            inv_std if reads_x else None,
        )
        ctx.eps = eps
        return y.view_as(input).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return ∂L/∂input, ∂L/∂gamma, ∂L/∂beta, those that are needed, and None for the rest.

        Write δ = ``dout`` = ∂L/∂y as (N, C, L), with L = 1 or H·W. One gamma[k] and beta[k] serve
        channel k of every sample, so their gradients sum over samples and positions:

            dout_sum[n,k] = Σ_l δ[n,k,l]                        dbeta  = Σ_n dout_sum[n]
            dout_dot[n,k] = Σ_l δ[n,k,l] · x_hat[n,k,l]         dgamma = Σ_n dout_dot[n]

        Now one sample with its n = C·L values, i and j running over them, s = inv_std and
        g = ∂L/∂x_hat = gamma · δ. x[j] reaches x_hat[i] = (x[i] - mean) · s directly, through the
        mean (∂mean/∂x[j] = 1/n), and through s = (var + eps)^(-1/2), where
        ∂var/∂x[j] = 2/n (x[j] - mean) and so ∂s/∂x[j] = -s² x_hat[j] / n:

            ∂x_hat[i]/∂x[j] = s ([i = j] - 1/n - x_hat[i] x_hat[j] / n)

        Summing g[i] times this over i:

            dx[j] = s (g[j] - g_sum / n - x_hat[j] · g_dot / n),
            g_sum = Σ_i g[i]          = Σ_k gamma[k] · dout_sum[k]
            g_dot = Σ_i g[i] x_hat[i] = Σ_k gamma[k] · dout_dot[k]

        That is linear in δ and x:

            dx = a · dout + b · x + c,     a = gamma · inv_std                    (one per channel)
                                           b = -inv_std² · g_dot / n
                                           c = -inv_std · g_sum / n - b · mean
        """
        need_dx, need_dgamma, need_dbeta = ctx.needs_input_grad[:3]
        input, gamma, mean, inv_std = ctx.saved_tensors
        (dout,) = grad_outputs
        shape = dout.shape
        dout = three_dimensional(dout.to(statistics_dtype(dout)))  # (N, C, L)
        n = dout.shape[1] * dout.shape[2]
        others = (None,) * (len(ctx.needs_input_grad) - 3)  # eps, if it was given
        dx = dout_dot = None

        dout_sum = dout.sum(2)  # (N, C)
        if input is not None:
            x = three_dimensional(input.to(dout.dtype))
            if torch.is_grad_enabled():
                # create_graph=True: this pass will be differentiated in its turn, also through
                # the statistics. They are computed again from x, and nothing is done in place.
                var, mean = torch.var_mean(x, (1, 2), correction=0, keepdim=True)
                inv_std = torch.rsqrt(var + ctx.eps)
                dout_dot = (dout * ((x - mean) * inv_std)).sum(2)  # (N, C)
            else:
                dx = x - mean  # the one large temporary, whose memory becomes dx
                # Centred before the sum, which would otherwise cancel when the mean is large.
                dout_dot = dx.mul_(dout).sum(2).mul_(inv_std.view(-1, 1))  # (N, C)
        if need_dx:
            a = gamma.view(-1, 1) * inv_std  # (N, C, 1)
            # Not a matrix product, which autocast would round to bf16 where it is on.
            g_sum = (dout_sum * gamma).sum(1).view(-1, 1, 1)  # (N, 1, 1)
            g_dot = (dout_dot * gamma).sum(1).view(-1, 1, 1)
            b = inv_std.square() * g_dot / -n
            c = inv_std * g_sum / -n - b * mean
            if torch.is_grad_enabled():
                dx = (a * dout + b * x + c).view(shape)
            else:
                dx = torch.addcmul(c, x, b, out=dx).addcmul_(dout, a).view(shape)
        # The engine casts each gradient to the dtype of its input.
        return (
            dx if need_dx else None,
            dout_dot.sum(0) if need_dgamma and dout_dot is not None else None,
            dout_sum.sum(0) if need_dbeta else None,
            *others,
        )


class CustomLayerNormManualModule(_LayerNorm):
    """:class:`CustomLayerNormAutograd` with the backward pass written by hand.

    Arguments, shapes, errors and results are the same. Under torch.func's transforms, torch.export
    and torch.jit.trace, which cannot use it, the backward pass is autograd's.

    Example:
        >>> layer = CustomLayerNormManualModule(3)
        >>> layer(torch.randn(8, 3, 5, 5)).shape
        torch.Size([8, 3, 5, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``gamma · x_hat + beta``."""
        if formula_wanted():
            return self._formula(input)
        check_input("CustomLayerNormManualModule", input, self.n_neurons)
        y: Tensor = CustomLayerNormManualFunction.apply(input, self.gamma, self.beta, self.eps)
        return y


def three_dimensional(x: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1) and (N, C, H, W) -> (N, C, H·W), in the memory it has."""
    return x.unsqueeze(2) if x.ndim == 2 else x.flatten(2)
