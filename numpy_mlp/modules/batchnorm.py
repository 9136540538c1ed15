"""Batch normalisation, of vectors and of images."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from numpy_mlp.modules.module import Array, Module, check_dtype
from numpy_mlp.modules.window import channels_first, channels_last
from numpy_mlp.parallel import for_chunks

_CHUNK_BYTES = 1 << 18  # of images: what a pass reads stays in the cache for its next operation


class BatchNormModule(Module, takes_workspace=True):
    """Standardise each feature over the batch, then scale and shift it.

    ``x_hat = (x - μ) / √(σ² + eps)``, ``y = weight · x_hat + bias``, with μ and σ² the mean and the
    biased variance (divided by N) of each column. Evaluation uses running statistics instead:
    ``running = (1 - momentum) · running + momentum · batch``, of the mean and of the *unbiased*
    variance (divided by N - 1), exactly as ``torch.nn.BatchNorm1d`` does; this momentum is not the
    optimizer's.

    Args:
        num_features: number of columns D.
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics.
        dtype: ``float32`` or ``float64``.

    Shapes: ``x``, ``y``, ``dout``, ``dx`` (N, D); ``weight``, ``bias``, running statistics (D,).

    Raises:
        ValueError: ``num_features`` or ``eps`` is not positive; a training batch of one row, whose
            variance says nothing.

    Source: Ioffe and Szegedy, *Batch Normalization*, ICML 2015.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        dtype: DTypeLike = np.float64,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be a positive integer, got {num_features!r}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps!r}")
        check_dtype(dtype)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.params = {
            "weight": np.ones(num_features, dtype=dtype),
            "bias": np.zeros(num_features, dtype=dtype),
        }
        self.grads = {name: np.zeros_like(param) for name, param in self.params.items()}
        self.buffers = {
            "running_mean": np.zeros(num_features, dtype=dtype),
            "running_var": np.ones(num_features, dtype=dtype),
            "num_batches_tracked": np.zeros((), dtype=np.int64),
        }

    @property
    def running_mean(self) -> Array:
        """Running mean of each feature, (D,)."""
        return self.buffers["running_mean"]

    @property
    def running_var(self) -> Array:
        """Running unbiased variance of each feature, (D,)."""
        return self.buffers["running_var"]

    def forward(self, x: Array) -> Array:
        """Return ``weight · x_hat + bias``, (N, D) -> (N, D)."""
        x = self._real(x)
        assert x.ndim == 2 and x.shape[1] == self.num_features, (
            f"BatchNormModule.forward: x has shape {x.shape}, expected (N, {self.num_features})"
        )
        if self.training:
            mean, var = self._batch_statistics(x)
        else:
            mean, var = self.running_mean, self.running_var
        inv_std = 1 / np.sqrt(var + self.eps)  # (D,)
        x_hat = self._new("x_hat", x.shape, np.result_type(x, self.params["weight"]))
        np.subtract(x, mean, out=x_hat)
        x_hat *= inv_std  # (N, D)
        self._remember(x_hat, inv_std)
        y: Array = np.multiply(self.params["weight"], x_hat, out=self._over("y", x, x_hat))
        y += self.params["bias"]
        return y

    def _batch_statistics(self, x: Array) -> tuple[Array, Array]:
        n = x.shape[0]
        if n < 2:
            raise ValueError(
                f"batch normalisation needs more than one row to train on, got shape {x.shape}"
            )
        mean = x.mean(axis=0)
        deviation = np.subtract(
            x, mean, out=self._new("deviation", x.shape, np.result_type(x, 0.0))
        )
        var = np.einsum("nd,nd->d", deviation, deviation) / n
        self._track(mean, var, n)
        return mean, var

    def _track(self, mean: Array, var: Array, n: int) -> None:
        """Let the running statistics follow those of a batch of n."""
        self.running_mean[...] += self.momentum * (mean - self.running_mean)
        self.running_var[...] += self.momentum * (var * (n / (n - 1)) - self.running_var)
        self.buffers["num_batches_tracked"] += 1

    def backward(self, dout: Array) -> Array:
        """Store ∂L/∂weight and ∂L/∂bias in ``grads`` and return ∂L/∂x.

        Write δ = ``dout`` and g = δ · weight = ∂L/∂x_hat. Scale and shift are elementwise:

            dweight = Σ_n δ[n] · x_hat[n],          dbias = Σ_n δ[n].

        One x[m] reaches every x_hat[n] = (x[n] - μ) s, where s = inv_std = (σ² + eps)^(-1/2), on
        three paths. Directly, for n = m. Through the mean, ∂μ/∂x[m] = 1/N. And through the variance
        σ² = 1/N Σ_n (x[n] - μ)², whose part through μ vanishes, as deviations sum to 0:

            ∂σ²/∂x[m] = 2/N (x[m] - μ),   ∂s/∂σ² = -s³/2   ⇒   ∂s/∂x[m] = -s² x_hat[m] / N

        The product rule puts them together, one term a path; [n = m] is 1 if n = m, else 0:

            ∂x_hat[n]/∂x[m] = s [n = m]  -  s/N  -  s x_hat[n] x_hat[m] / N

        Summing g[n] times this over n:

            dx = s (g - mean_n(g) - x_hat · mean_n(g · x_hat))
               = s · weight (δ - dbias/N - x_hat · dweight/N)
        """
        x_hat, inv_std = self._recall()
        dout = self._upstream(dout, x_hat.shape)
        n = x_hat.shape[0]
        dweight = np.einsum("nd,nd->d", dout, x_hat)  # (D,)
        dbias = np.ones(n, dout.dtype) @ dout  # (D,)
        self._grad("weight")[...], self._grad("bias")[...] = dweight, dbias
        dx: Array = np.multiply(
            x_hat, dweight / n, out=self._new("dx", x_hat.shape, np.result_type(x_hat, dout))
        )
        np.subtract(dout, dx, out=dx)
        dx -= dbias / n
        dx *= inv_std * self.params["weight"]
        return dx

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.num_features}, eps={self.eps}, momentum={self.momentum})"
        )


class BatchNorm2dModule(BatchNormModule, takes_workspace=True):
    """Standardise each channel over the images and their pixels, then scale and shift it.

    :class:`BatchNormModule` with a row for every pixel of every image, M = N·H·W of them: ``x_hat =
    (x - μ) / √(σ² + eps)``, ``y = weight · x_hat + bias``, with μ and σ² over (N, H, W). Arguments
    and errors are those of that class, as ``torch.nn.BatchNorm2d``'s.

    Shapes: ``x``, ``y``, ``dout``, ``dx`` (N, C, H, W); ``weight``, ``bias``, running statistics
    (C,).

    Source: Ioffe and Szegedy, *Batch Normalization*, ICML 2015, section 3.2; the statistics of a
    batch are put together from those of its parts after Chan, Golub and LeVeque, 1983.
    """

    def forward(self, x: Array) -> Array:
        """Return ``weight · x_hat + bias``, (N, C, H, W) -> the same."""
        x = self._real(x)
        assert x.ndim == 4 and x.shape[1] == self.num_features, (
            f"BatchNorm2dModule.forward: x has shape {x.shape}, expected "
            f"(N, {self.num_features}, H, W)"
        )
        rows = channels_last(x, np.result_type(x, self.params["weight"]))
        if self.training:
            mean, var = self._batch_statistics(rows)
        else:
            mean, var = self.running_mean, self.running_var
        inv_std = 1 / np.sqrt(var + self.eps)  # (C,)
        self._remember(rows, mean, inv_std)
        y = self._new("y", rows.shape, rows.dtype)
        scale, bias = self.params["weight"] * inv_std, self.params["bias"]

        def work(chunk: slice, lane: int) -> None:
            part = np.subtract(rows[chunk], mean, out=y[chunk])
            part *= scale
            part += bias

        for_chunks(len(rows), self._images_at_once(rows), work)
        return channels_first(y)

    def _batch_statistics(self, rows: Array) -> tuple[Array, Array]:
        n = rows[..., 0].size
        if n < 2:
            raise ValueError(
                f"batch normalisation needs more than one value of a channel to train on, got "
                f"{len(rows)} image of {rows.shape[1]}×{rows.shape[2]}"
            )
        parts: dict[int, tuple[int, Array, Array]] = {}  # by place: how many, their mean, variance

        def work(chunk: slice, lane: int) -> None:
            part = rows[chunk].reshape(-1, self.num_features)
            mean = _ones(part) @ part / len(part)
            deviation = self._scratch("deviation", lane, part.shape, part.dtype)
            np.subtract(part, mean, out=deviation)
            np.multiply(deviation, deviation, out=deviation)
            parts[chunk.start] = len(part), mean, _ones(part) @ deviation

        for_chunks(len(rows), self._images_at_once(rows), work)
        counts, means, squares = map(
            np.array, zip(*(parts[at] for at in sorted(parts)), strict=True)
        )
        share = (counts / n)[:, None]  # float64: a batch is up to a million values a channel
        mean = (share * means).sum(axis=0)
        var = squares.sum(axis=0) / n + (share * (means - mean) ** 2).sum(axis=0)
        mean, var = mean.astype(rows.dtype), var.astype(rows.dtype)
        self._track(mean, var, n)
        return mean, var

    def backward(self, dout: Array) -> Array:
        """Store ∂L/∂weight and ∂L/∂bias in ``grads`` and return ∂L/∂x.

        As :meth:`BatchNormModule.backward` derives it, with a row m for each pixel of each image:

            dweight = Σ_m δ[m] · x_hat[m],  dbias = Σ_m δ[m],
            dx = s · weight (δ - dbias/M - x_hat · dweight/M),   s = (σ² + eps)^(-1/2)
        """
        rows, mean, inv_std = self._recall()
        n_images, height, width, channels = rows.shape
        dout = self._upstream(dout, (n_images, channels, height, width))
        upstream, n = channels_last(dout, rows.dtype), n_images * height * width
        parts: dict[int, tuple[Array, Array]] = {}

        def sums(chunk: slice, lane: int) -> None:
            δ = upstream[chunk].reshape(-1, channels)
            x_hat = self._scratch("deviation", lane, δ.shape, δ.dtype)
            np.subtract(rows[chunk].reshape(-1, channels), mean, out=x_hat)
            np.multiply(x_hat, δ, out=x_hat)
            parts[chunk.start] = _ones(δ) @ x_hat, _ones(δ) @ δ

        for_chunks(n_images, self._images_at_once(rows), sums)
        dweight, dbias = (
            np.sum(part, axis=0, dtype=np.float64)
            for part in zip(*(parts[at] for at in sorted(parts)), strict=True)
        )
        dweight *= inv_std
        for name, grad in (("weight", dweight), ("bias", dbias)):
            self._grad(name)[...] = grad
        scale = self.params["weight"] * inv_std
        slope = (scale * inv_std * dweight / n).astype(rows.dtype)
        shift = (dbias / n).astype(rows.dtype)
        dx = channels_last(self._over("dx", channels_first(upstream)))

        def work(chunk: slice, lane: int) -> None:
            along = self._scratch("deviation", lane, rows[chunk].shape, rows.dtype)
            np.subtract(rows[chunk], mean, out=along)
            along *= slope
            part = np.subtract(upstream[chunk], shift, out=dx[chunk])
            part *= scale
            part -= along

        for_chunks(n_images, self._images_at_once(rows), work)
        return channels_first(dx)

    def _images_at_once(self, rows: Array) -> int:
        return max(1, _CHUNK_BYTES // max(1, rows[:1].nbytes))


def _ones(rows: Array) -> Array:
    """Return ones: their product with ``rows`` is the sum over the rows, at the speed of BLAS."""
    return np.ones(len(rows), rows.dtype)
