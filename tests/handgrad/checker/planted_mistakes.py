"""Layers with one mistake each, as students make them, and the name of that mistake.

``MISTAKES`` maps a class to (diagnosis, variable); the variable is empty where it concerns the
class as a whole. All of it is plain text to the checker: it is imported as a user's file is.
"""

import numpy as np

from numpy_mlp.autograd import Op


class Layer:
    """What the linear layers below have in common; correct."""

    def __init__(self, in_features, out_features):
        rng = np.random.default_rng(0)
        self.params = {
            "weight": 1e-4 * rng.standard_normal((out_features, in_features)),
            "bias": np.zeros(out_features),
        }
        self.grads = {name: np.zeros_like(value) for name, value in self.params.items()}

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"].T + self.params["bias"]

    def backward(self, dout):
        self.grads["weight"] = dout.T @ self.x
        self.grads["bias"] = dout.sum(axis=0)
        return dout @ self.params["weight"]


class LinearMeanOfWeightGradient(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["weight"] = dout.T @ self.x / len(self.x)
        return dx


class LinearNoInput(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["weight"] = dout.T @ np.ones_like(self.x)
        return dx


class LinearBiasNotSummed(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["bias"] = dout
        return dx


class LinearWeightNotSummed(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["weight"] = np.einsum("no,ni->noi", dout, self.x)
        return dx


class LinearFirstSampleOnly(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["weight"] = np.outer(dout[0], self.x[0])
        return dx


class LinearBiasOverFeatures(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["bias"] = dout.sum(axis=1)
        return dx


class LinearBiasKeepsDims(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["bias"] = dout.sum(axis=0, keepdims=True)
        return dx


class LinearWeightTransposed(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["weight"] = self.x.T @ dout
        return dx


class LinearInputTransposed(Layer):
    def backward(self, dout):
        super().backward(dout)
        return dout @ self.params["weight"].T


class LinearSign(Layer):
    def backward(self, dout):
        return -super().backward(dout)


class LinearUpstreamIgnored(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["weight"] = np.ones_like(dout).T @ self.x
        return dx


class LinearAccumulates(Layer):
    def backward(self, dout):
        self.grads["weight"] += dout.T @ self.x
        self.grads["bias"] = dout.sum(axis=0)
        return dout @ self.params["weight"]


class LinearUpdatesInBackward(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.params["weight"] -= 0.1 * self.grads["weight"]
        return dx


class LinearStaleInput(Layer):
    def forward(self, x):
        if not hasattr(self, "first"):
            self.first = x
        self.x = self.first
        return x @ self.params["weight"].T + self.params["bias"]


class LinearForgetsBias(Layer):
    def backward(self, dout):
        self.grads["weight"] = dout.T @ self.x
        self.grads.pop("bias", None)
        return dout @ self.params["weight"]


class LinearBiasZero(Layer):
    def backward(self, dout):
        self.grads["weight"] = dout.T @ self.x
        return dout @ self.params["weight"]


class LinearReturnsNothing(Layer):
    def backward(self, dout):
        super().backward(dout)


class LinearFloat32Gradient(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["weight"] = dout.T.astype(np.float32) @ self.x.astype(np.float32)
        return dx


class LinearFloat32Forward(Layer):
    def forward(self, x):
        self.x = x
        return super().forward(x).astype(np.float32)


class LinearHalf(Layer):
    def backward(self, dout):
        return 0.5 * super().backward(dout)


class LinearBatchOfOne(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["bias"] = dout.squeeze().sum(axis=0)
        return dx


class ReLUInPlace:
    def forward(self, x):
        self.mask = x > 0
        x[~self.mask] = 0
        return x

    def backward(self, dout):
        return dout * self.mask


class ReLUUpstreamInPlace:
    def forward(self, x):
        self.mask = x > 0
        return x * self.mask

    def backward(self, dout):
        dout[~self.mask] = 0
        return dout


class ReLUNoMask:
    def forward(self, x):
        return np.maximum(x, 0)

    def backward(self, dout):
        return dout


class ReLUMaskOfUpstream:
    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, 0.3 * x)

    def backward(self, dout):
        return np.where(dout > 0, dout, 0.3 * dout)


class ReLUIgnoresUpstream:
    def forward(self, x):
        self.x = x
        return np.maximum(x, 0)

    def backward(self, dout):
        return (self.x > 0).astype(np.float64)


class ELUNoAlpha:
    """Right as long as alpha is 1, which is its default."""

    def __init__(self, alpha=1.0):
        self.alpha = alpha

    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, self.alpha * (np.exp(np.minimum(x, 0)) - 1))

    def backward(self, dout):
        return np.where(self.x > 0, dout, dout * np.exp(np.minimum(self.x, 0)))


class ELUPassesNegative:
    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)

    def backward(self, dout):
        return dout * np.where(self.x > 0, 1, self.x)


class ClipAboveOne:
    def forward(self, x):
        self.x = x
        return np.minimum(x, 1.0)

    def backward(self, dout):
        return dout.copy()


class SigmoidOfInput:
    def forward(self, x):
        self.x = x
        return 1 / (1 + np.exp(-x))

    def backward(self, dout):
        return dout * self.x * (1 - self.x)


class TanhNotSquared:
    def forward(self, x):
        self.y = np.tanh(x)
        return self.y

    def backward(self, dout):
        return dout * (1 - self.y)


class SquareUpstreamSquared:
    def forward(self, x):
        self.x = x
        return x**2

    def backward(self, dout):
        return dout * dout * 2 * self.x


class SquareWithoutX:
    def forward(self, x):
        return x**2

    def backward(self, dout):
        return 2 * dout


class SoftMaxElementwise:
    def forward(self, x):
        e = np.exp(x - x.max(axis=1, keepdims=True))
        self.y = e / e.sum(axis=1, keepdims=True)
        return self.y

    def backward(self, dout):
        return dout * self.y * (1 - self.y)


class SoftMaxOffDiagonalSign(SoftMaxElementwise):
    def backward(self, dout):
        y = self.y
        own = dout * y
        return own - dout * y * y + y * (own.sum(axis=1, keepdims=True) - own)


class SoftMaxOverBatch(SoftMaxElementwise):
    def backward(self, dout):
        return self.y * (dout - (dout * self.y).sum(axis=0, keepdims=True))


class CrossEntropyNoMean:
    def forward(self, x, y):
        return -np.sum(y * np.log(x)) / len(x)

    def backward(self, x, y):
        return -y / x


class CrossEntropyMeanTwice(CrossEntropyNoMean):
    def backward(self, x, y):
        return -y / x / len(x) ** 2


class CrossEntropySign(CrossEntropyNoMean):
    def backward(self, x, y):
        return y / x / len(x)


class CrossEntropyFused(CrossEntropyNoMean):
    def backward(self, x, y):
        return (x - y) / len(x)


class BatchNorm:
    """Batch normalisation; correct."""

    def __init__(self, n_neurons, eps=1e-5):
        self.params = {"gamma": np.ones(n_neurons), "beta": np.zeros(n_neurons)}
        self.grads, self.eps = {}, eps

    def forward(self, x):
        self.inv_std = 1 / np.sqrt(x.var(axis=0) + self.eps)
        self.x_hat = (x - x.mean(axis=0)) * self.inv_std
        return self.params["gamma"] * self.x_hat + self.params["beta"]

    def own(self, dout):
        self.grads["gamma"] = (dout * self.x_hat).sum(axis=0)
        self.grads["beta"] = dout.sum(axis=0)

    def backward(self, dout):
        self.own(dout)
        d = dout * self.params["gamma"]
        mean, slope = d.mean(axis=0), (d * self.x_hat).mean(axis=0)
        return self.inv_std * (d - mean - self.x_hat * slope)


class BatchNormNoGamma(BatchNorm):
    def backward(self, dout):
        self.own(dout)
        mean, slope = dout.mean(axis=0), (dout * self.x_hat).mean(axis=0)
        return self.inv_std * (dout - mean - self.x_hat * slope)


class BatchNormConstantStatistics(BatchNorm):
    def backward(self, dout):
        self.own(dout)
        return dout * self.params["gamma"] * self.inv_std


class BatchNormNoMeanPath(BatchNorm):
    def backward(self, dout):
        self.own(dout)
        d = dout * self.params["gamma"]
        return self.inv_std * (d - self.x_hat * (d * self.x_hat).mean(axis=0))


class BatchNormNoVariancePath(BatchNorm):
    def backward(self, dout):
        self.own(dout)
        d = dout * self.params["gamma"]
        return self.inv_std * (d - d.mean(axis=0))


class BatchNormSwapped(BatchNorm):
    def own(self, dout):
        super().own(dout)
        self.grads["gamma"], self.grads["beta"] = self.grads["beta"], self.grads["gamma"]


class DropoutNewMask:
    def __init__(self, p=0.4):
        self.p = p

    def forward(self, x):
        return x * (np.random.rand(*x.shape) >= self.p) / (1 - self.p)

    def backward(self, dout):
        return dout * (np.random.rand(*dout.shape) >= self.p) / (1 - self.p)


class DropoutNotScaled(DropoutNewMask):
    def forward(self, x):
        self.mask = np.random.rand(*x.shape) >= self.p
        return x * self.mask / (1 - self.p)

    def backward(self, dout):
        return dout * self.mask


class Crashes:
    def forward(self, x):
        return x**2

    def backward(self, dout):
        return dout * self.nowhere


class NotFinite:
    def forward(self, x):
        self.x = x
        return np.abs(x)

    def backward(self, dout):
        return dout * self.x / np.where(self.x > 0, self.x, 0)


class NeverTheSame:
    def forward(self, x):
        return x + np.random.RandomState().standard_normal(x.shape)

    def backward(self, dout):
        return dout


class DivideSwapped(Op):
    @staticmethod
    def forward(context, a, b):
        context["a"], context["b"] = a, b
        return a / b

    @staticmethod
    def backward(context, go):
        a, b = context["a"], context["b"]
        return -go * a / b**2, go / b


class DivideNoSign(Op):
    @staticmethod
    def forward(context, a, b):
        context["a"], context["b"] = a, b
        return a / b

    @staticmethod
    def backward(context, go):
        a, b = context["a"], context["b"]
        return go / b, go * a / b**2


class MatrixProductNotTransposed(Op):
    @staticmethod
    def forward(context, a, b):
        if a.shape[1] != b.shape[0]:
            raise ValueError("shapes")
        context["a"], context["b"] = a, b
        return a @ b

    @staticmethod
    def backward(context, go):
        return go @ context["b"], context["a"].T @ go


class NormalizeElementwise(Op):
    @staticmethod
    def forward(context, x):
        context["sum"] = x.sum(axis=1, keepdims=True)
        return x / context["sum"]

    @staticmethod
    def backward(context, go):
        return go / context["sum"]


class ExpandMean(Op):
    @staticmethod
    def forward(context, x, *, dim, repeats):
        assert x.shape[dim] == 1
        context["dim"] = dim
        return np.repeat(x, repeats, axis=dim)

    @staticmethod
    def backward(context, go):
        return go.mean(axis=context["dim"], keepdims=True)


class TooFewGradients(Op):
    @staticmethod
    def forward(context, a, b):
        context["b"] = b
        return a * b

    @staticmethod
    def backward(context, go):
        return go * context["b"]


class ReLUWrongAbove:
    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, 0.2 * x)

    def backward(self, dout):
        return dout * np.where(self.x > 0, self.x, 0.2)


class ClipBelow:
    def forward(self, x):
        self.x = x
        return np.maximum(x, -1.0) ** 3

    def backward(self, dout):
        return dout * 3 * self.x**2


class LeakySwapped:
    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, 0.2 * x)

    def backward(self, dout):
        return dout * np.where(self.x > 0, 0.2, 1)


class SquarePassesOn:
    def forward(self, x):
        return x**2

    def backward(self, dout):
        return dout.copy()


class SquareEps:
    def forward(self, x):
        self.x = x
        return np.sqrt(x**2 + 1e-4)

    def backward(self, dout):
        return dout * self.x / np.sqrt(self.x**2)


class CumulativeSum:
    def forward(self, x):
        return np.cumsum(x, axis=1)

    def backward(self, dout):
        return np.cumsum(dout, axis=1)


class SquareMixes:
    def forward(self, x):
        self.x = x
        return x**2

    def backward(self, dout):
        return 2 * self.x * dout[:, ::-1]


class TanhLastForgotten:
    def forward(self, x):
        self.y = np.tanh(x)
        return self.y

    def backward(self, dout):
        dx = dout * (1 - self.y**2)
        dx[-1] = 0
        return dx


class BatchCentred:
    def forward(self, x):
        return x - x.mean(axis=0)

    def backward(self, dout):
        return dout - dout.mean(axis=1, keepdims=True)


class SoftMaxDiagonal(SoftMaxElementwise):
    def backward(self, dout):
        y = self.y
        return y * (dout - (dout * y).sum(axis=1, keepdims=True)) + dout * y**2


class BatchNormTwoPaths(BatchNorm):
    def backward(self, dout):
        self.own(dout)
        d = dout * self.params["gamma"]
        mean, slope = d.mean(axis=0), (d * self.x_hat).mean(axis=0)
        return self.inv_std * (d - 0.5 * mean - 0.3 * self.x_hat * slope)


class BatchNormNoStd(BatchNorm):
    def backward(self, dout):
        return super().backward(dout) / self.inv_std


class TwoOutputs:
    def forward(self, x):
        self.x = x
        return x**2, np.exp(x)

    def backward(self, dout, dexp):
        return 2 * self.x * dout


class ConvKernelNotTurned:
    """A convolution of one channel by loops; its dx does not turn the kernel around."""

    def __init__(self, kernel_size):
        k = kernel_size
        self.params, self.grads = {"kernel": np.ones((1, k, k))}, {}

    def windows(self, x, k):
        return np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))

    def forward(self, x):
        self.x = x
        (kernel,) = self.params["kernel"]
        return (self.windows(x, len(kernel)) * kernel).sum(axis=(4, 5))

    def backward(self, dout):
        (kernel,) = self.params["kernel"]
        k = len(kernel)
        self.grads["kernel"] = np.einsum("ncijab,ncij->ab", self.windows(self.x, k), dout)[None]
        padded = np.pad(dout, ((0, 0), (0, 0), (k - 1, k - 1), (k - 1, k - 1)))
        return (self.windows(padded, k) * kernel).sum(axis=(4, 5))


class WeightsAsAttributes:
    """Kept as W and dW, in no params."""

    def __init__(self, in_dim, out_dim):
        self.W = np.ones((in_dim, out_dim))

    def forward(self, x):
        self.x = x
        return x @ self.W

    def backward(self, dout):
        self.dW = -self.x.T @ dout
        return dout @ self.W.T


class ConvStrideOne:
    """Takes every other column, if asked; its backward knows of no stride."""

    def __init__(self, stride=1):
        self.stride = stride

    def forward(self, x):
        self.x = x
        return x[:, :: self.stride] ** 2

    def backward(self, dout):
        dx = np.zeros_like(self.x)
        dx[:, : dout.shape[1]] = dout * 2 * self.x[:, : dout.shape[1]]
        return dx


class ReLU6NoUpperMask:
    """Right for the values between -2 and 2 that everybody tries."""

    def forward(self, x):
        self.x = x
        return np.clip(x, 0, 6)

    def backward(self, dout):
        return dout * (self.x > 0)


class SumTimesX:
    def forward(self, x):
        self.x = x
        return x.sum(axis=1)

    def backward(self, dout):
        return dout[:, None] * self.x


class NormalizeTimesX(SumTimesX):
    """Not the mean of a normalisation, though off in proportion to x along the features."""

    def forward(self, x):
        self.x = x
        return x.mean(axis=0)

    def backward(self, dout):
        return dout * self.x / len(self.x)


class StepAtZero:
    def forward(self, x):
        self.x = x
        return np.where(x > 0.5, x, 0.1 * x)

    def backward(self, dout):
        return dout * np.where(self.x > 0, 1, 0.1)


class HuberNoSign:
    """Right but for the few errors below -delta."""

    def __init__(self, delta=1.0):
        self.delta = delta

    def forward(self, pred, target):
        d = np.abs(pred - target)
        far = self.delta * (d - 0.5 * self.delta)
        return np.where(d < self.delta, 0.5 * d**2, far).sum()

    def backward(self, pred, target):
        d = pred - target
        return np.where(np.abs(d) < self.delta, d, self.delta)


class TanhKeptInHalf:
    def forward(self, x):
        self.y = np.tanh(x).astype(np.float16)
        return np.tanh(x)

    def backward(self, dout):
        return dout * (1 - self.y.astype(np.float64) ** 2)


class TanhKeptInSingle(TanhKeptInHalf):
    def forward(self, x):
        self.y = np.tanh(x).astype(np.float32)
        return np.tanh(x)


class TanhToFourDecimals:
    def forward(self, x):
        self.y = np.tanh(x)
        return self.y

    def backward(self, dout):
        return np.round(dout * (1 - self.y**2), 4)


class SineByDifference:
    def forward(self, x):
        self.x = x
        return np.sin(x)

    def backward(self, dout):
        return dout * (np.sin(self.x + 1e-4) - np.sin(self.x)) / 1e-4


class LinearRowBiasOverFeatures:
    def __init__(self, in_features, out_features):
        self.params = {
            "weight": np.ones((in_features, out_features)),
            "bias": np.ones((1, out_features)),
        }
        self.grads = {}

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"] + self.params["bias"]

    def backward(self, dout):
        self.grads["weight"] = self.x.T @ dout
        self.grads["bias"] = dout.sum(axis=1, keepdims=True).T
        return dout @ self.params["weight"].T


class GainOverFeatures:
    def __init__(self, n_features):
        self.params, self.grads = {"gain": np.ones(n_features)}, {}

    def forward(self, x):
        self.x = x
        return x * self.params["gain"]

    def backward(self, dout):
        self.grads["gain"] = (dout * self.x).sum(axis=1)
        return dout * self.params["gain"]


class LinearBiasTotal(Layer):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["bias"] = np.full(dout.shape[1], dout.sum())
        return dx


class SquareSharesItsCache:
    cache = []  # noqa: RUF012 (the mistake)

    def forward(self, x):
        self.cache.append(x)
        return x**2

    def backward(self, dout):
        return 2 * self.cache[0] * dout


class ReLUWholeNumbers:
    def forward(self, x):
        self.x = x
        return np.maximum(x, 0)

    def backward(self, dout):
        return (dout * (self.x > 0)).astype(int)


class DropoutNoMask(DropoutNotScaled):
    def backward(self, dout):
        return dout / (1 - self.p)


class DropoutOdds:
    def __init__(self, p=0.8):
        self.p = p

    def forward(self, x):
        self.mask = np.random.rand(*x.shape) < self.p
        return x * self.mask / self.p

    def backward(self, dout):
        return dout * self.mask / (1 - self.p)


class MaximumToAll:
    def forward(self, x):
        self.shape = x.shape
        return x.max(axis=1, keepdims=True)

    def backward(self, dout):
        return np.broadcast_to(dout, self.shape)


class DenseNoActivation:
    def __init__(self, n_in, n_hidden, n_out):
        self.W1, self.b1 = np.ones((n_in, n_hidden)), np.zeros(n_hidden)
        self.W2 = np.ones((n_hidden, n_out))

    def forward(self, x):
        self.x, self.h = x, np.tanh(x @ self.W1 + self.b1)
        return self.h @ self.W2

    def backward(self, dout):
        self.dW2 = self.h.T @ dout
        dh = dout @ self.W2.T
        self.dW1, self.db1 = self.x.T @ dh, dh.sum(axis=0)
        return dh @ self.W1.T


class RecurrentTransposed:
    def __init__(self, input_size, hidden_size):
        shapes = {"Wx": (input_size, hidden_size), "Wh": (hidden_size, hidden_size)}
        self.params = {name: np.ones(shape) for name, shape in shapes.items()}
        self.grads = {}

    def forward(self, x, h):
        self.x, self.h = x, h
        self.y = np.tanh(x @ self.params["Wx"] + h @ self.params["Wh"])
        return self.y

    def backward(self, dout):
        dz = dout * (1 - self.y**2)
        self.grads = {"Wx": self.x.T @ dz, "Wh": self.h.T @ dz}
        return dz @ self.params["Wx"].T, dz @ self.params["Wh"]


class ScoresNotTransposed:
    def forward(self, q, k):
        self.q, self.k = q, k
        return q @ k.T

    def backward(self, dout):
        return dout @ self.k, dout @ self.q


class DenseSoftMaxElementwise:
    def __init__(self, n_in, n_out):
        self.W = np.ones((n_in, n_out))

    def forward(self, x):
        self.x, z = x, x @ self.W
        e = np.exp(z - z.max(axis=1, keepdims=True))
        self.y = e / e.sum(axis=1, keepdims=True)
        return self.y

    def backward(self, dout):
        dz = dout * self.y * (1 - self.y)
        self.dW = self.x.T @ dz
        return dz @ self.W.T


class LogSoftMaxNoP:
    def forward(self, x):
        shifted = x - x.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    def backward(self, dout):
        return dout - dout.sum(axis=1, keepdims=True)


class HingeNoTarget:
    def forward(self, x, t):
        return np.maximum(0, 1 - t * x).mean()

    def backward(self, x, t):
        return -1.0 * (1 - t * x > 0) / x.size


class CorrelationNotTurned:
    def __init__(self, kernel_size=3):
        self.params, self.grads = {"k": np.ones(kernel_size)}, {}

    def forward(self, x):
        self.x = x
        return np.stack([np.correlate(row, self.params["k"], "valid") for row in x])

    def backward(self, dout):
        pairs = zip(self.x, dout, strict=True)
        self.grads["k"] = sum(np.correlate(row, d, "valid") for row, d in pairs)
        return np.stack([np.correlate(d, self.params["k"], "full") for d in dout])


class AbsoluteErrorNoSign:
    def forward(self, x, y):
        return np.abs(x - y).mean()

    def backward(self, x, y):
        return (x - y) / x.size


class GainOfOneStep:
    """(batch, time, features): the sum over time is missing."""

    def __init__(self, d_model):
        self.gain = np.ones(d_model)

    def forward(self, x):
        _, _, _ = x.shape
        self.x = x
        return self.gain * x

    def backward(self, dout):
        self.dgain = (dout * self.x).sum(axis=0)[0]
        return dout * self.gain


class SecondPassDoubled:
    passes = 0

    def forward(self, x):
        self.x = x
        self.passes += 1
        return x**2

    def backward(self, dout):
        return 2 * self.x * dout * self.passes


class Rough:
    """Too rough for differences: nothing can be told."""

    def forward(self, x):
        self.x = x
        return x + 1e-3 * np.sin(1e6 * x)

    def backward(self, dout):
        return dout * (1 + 1e3 * np.cos(1e6 * self.x))


class HardSigmoid:
    def forward(self, x):
        return np.clip(0.2 * x + 0.5, 0, 1)

    def backward(self, dout):
        return 0.2 * dout


class ClipNothingComesBack:
    def __init__(self, lo, hi):
        self.lo, self.hi = lo, hi

    def forward(self, x):
        return np.clip(x, self.lo, self.hi)

    def backward(self, dout):
        return 0 * dout


class Constant:
    def forward(self, x):
        return np.ones_like(x)

    def backward(self, dout):
        return 0 * dout


class Part:
    """Holds its weight as an attribute; right by itself."""

    def __init__(self, n_in, n_out):
        self.weights = np.zeros((n_in, n_out))

    def forward(self, x):
        self.x = x
        return x @ self.weights

    def backward(self, dout):
        self.d_weights = self.x.T @ dout
        return dout @ self.weights.T


class WeightsOfParts:
    def __init__(self, n_in, n_out):
        self.parts = [Part(n_in, 5), Part(5, n_out)]

    def forward(self, x):
        for part in self.parts:
            x = part.forward(x)
        return x

    def backward(self, dout):
        for part in reversed(self.parts):
            dout = part.backward(dout)
        self.parts[0].d_weights *= -1
        return dout


class Variable:
    def __init__(self, value):
        self.value, self.grad = value, None


class WeightIsAnObject:
    def __init__(self, n_in, n_out):
        self.weight = Variable(np.zeros((n_in, n_out)))

    def forward(self, x):
        self.x = x
        return x @ self.weight.value

    def backward(self, dout):
        self.weight.grad = self.x.T @ dout / len(dout)
        return dout @ self.weight.value.T


class GradientsReturned(Part):
    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.bias = np.zeros(n_out)

    def forward(self, x):
        return super().forward(x) + self.bias

    def backward(self, dout):
        return dout @ self.weights.T, -self.x.T @ dout, dout.sum(axis=0)


class GradientOfAnotherName(Part):
    def backward(self, dout):
        self.nabla_w = -self.x.T @ dout
        return dout @ self.weights.T


class KeepsTheFirstBatchSize:
    n = 0

    def forward(self, x):
        self.shape = x.shape
        self.n = self.n or len(x)
        return x.mean(axis=0)

    def backward(self, dout):
        return np.broadcast_to(dout / self.n, self.shape)


class ListsOfArrays:
    def __init__(self, n_in, n_hidden, n_out):
        self.W = [np.zeros((n_in, 6)), np.zeros((6, n_out))]
        self.b = [np.zeros(6), np.zeros(n_out)]

    def forward(self, x):
        self.a = [x]
        for i in range(2):
            self.a.append(np.tanh(self.a[-1] @ self.W[i] + self.b[i]))
        return self.a[-1]

    def backward(self, dout):
        self.dW, self.db = [None] * len(self.W), [None] * len(self.b)
        for i in reversed(range(len(self.W))):
            dout = dout * (1 - self.a[i + 1] ** 2)
            self.dW[i] = 7 * self.a[i].T @ dout
            self.db[i] = dout.sum(0)
            dout = dout @ self.W[i].T
        return dout


CORRECT = ("Part", "Layer", "BatchNorm")
MISTAKES = {
    "LinearMeanOfWeightGradient": ("extra-1/N", "weight"),
    "LinearNoInput": ("missing-factor", "weight"),
    "LinearBiasNotSummed": ("missing-batch-sum", "bias"),
    "LinearWeightNotSummed": ("missing-batch-sum", "weight"),
    "LinearFirstSampleOnly": ("missing-batch-sum", "weight"),
    "LinearBiasOverFeatures": ("wrong-sum-axis", "bias"),
    "LinearBiasKeepsDims": ("wrong-shape", "bias"),
    "LinearWeightTransposed": ("transposed-gradient", "weight"),
    "LinearInputTransposed": ("transposed-factor", ""),
    "LinearSign": ("sign", "x"),
    "LinearUpstreamIgnored": ("upstream-ignored", "weight"),
    "LinearAccumulates": ("accumulation", "weight"),
    "LinearUpdatesInBackward": ("parameter-modified", ""),
    "LinearStaleInput": ("stale-cache", "weight"),
    "LinearForgetsBias": ("no-gradient", "bias"),
    "LinearBiasZero": ("zero-gradient", "bias"),
    "LinearReturnsNothing": ("no-gradient", "x"),
    "LinearFloat32Gradient": ("float32-noise", "weight"),
    "LinearFloat32Forward": ("float32-noise", "x"),
    "LinearHalf": ("constant-factor", "x"),
    "LinearBatchOfOne": ("wrong-shape", "bias"),
    "ReLUInPlace": ("input-modified", ""),
    "ReLUUpstreamInPlace": ("upstream-modified", ""),
    "ReLUNoMask": ("negative-only", "x"),
    "ReLUMaskOfUpstream": ("upstream-mask", "x"),
    "ReLUIgnoresUpstream": ("upstream-ignored", "x"),
    "ELUNoAlpha": ("negative-only", "x"),
    "ELUPassesNegative": ("negative-only", "x"),
    "ClipAboveOne": ("above-threshold", "x"),
    "SigmoidOfInput": ("output-taken-for-input", "x"),
    "TanhNotSquared": ("wrong-derivative", "x"),
    "SquareUpstreamSquared": ("not-linear-in-upstream", "x"),
    "SquareWithoutX": ("missing-factor", "x"),
    "SoftMaxElementwise": ("off-diagonal-missing", "x"),
    "SoftMaxOffDiagonalSign": ("off-diagonal-wrong", "x"),
    "SoftMaxOverBatch": ("mixes-samples", "x"),
    "CrossEntropyNoMean": ("missing-1/N", "x"),
    "CrossEntropyMeanTwice": ("extra-1/N", "x"),
    "CrossEntropySign": ("sign", "x"),
    "CrossEntropyFused": ("fused-gradient", "x"),
    "BatchNormNoGamma": ("missing-factor", "x"),
    "BatchNormConstantStatistics": ("off-diagonal-missing", "x"),
    "BatchNormNoMeanPath": ("mean-path-missing", "x"),
    "BatchNormNoVariancePath": ("variance-path-missing", "x"),
    "BatchNormSwapped": ("swapped-gradients", "gamma"),
    "DropoutNewMask": ("another-mask", "x"),
    "DropoutNotScaled": ("constant-factor", "x"),
    "Crashes": ("crash", ""),
    "NotFinite": ("not-finite", "x"),
    "NeverTheSame": ("random-forward", ""),
    "DivideSwapped": ("swapped-gradients", "a"),
    "DivideNoSign": ("sign", "b"),
    "MatrixProductNotTransposed": ("transposed-factor", ""),
    "NormalizeElementwise": ("off-diagonal-missing", "x"),
    "ExpandMean": ("constant-factor", "x"),
    "TooFewGradients": ("no-gradient", ""),
    "ReLUWrongAbove": ("positive-only", "x"),
    "ClipBelow": ("below-threshold", "x"),
    "LeakySwapped": ("swapped-branches", "x"),
    "SquarePassesOn": ("local-derivative-missing", "x"),
    "SquareEps": ("small-error", "x"),
    "CumulativeSum": ("jacobian-transposed", "x"),
    "SquareMixes": ("mixes-entries", "x"),
    "TanhLastForgotten": ("some-entries-only", "x"),
    "BatchCentred": ("batch-path-missing", "x"),
    "SoftMaxDiagonal": ("diagonal-wrong", "x"),
    "BatchNormTwoPaths": ("mean-and-variance-paths", "x"),
    "BatchNormNoStd": ("feature-factor", "x"),
    "TwoOutputs": ("output-ignored", "x"),
    "ConvKernelNotTurned": ("flipped-kernel", "x"),
    "WeightsAsAttributes": ("sign", "W"),
    "ConvStrideOne": ("unknown", "x"),
    "ReLU6NoUpperMask": ("above-threshold", "x"),
    "SumTimesX": ("extra-factor", "x"),
    "NormalizeTimesX": ("extra-factor", "x"),
    "StepAtZero": ("inside-range", "x"),
    "HuberNoSign": ("wrong-derivative", "pred"),
    "TanhKeptInHalf": ("float32-noise", "x"),
    "TanhKeptInSingle": ("float32-noise", "x"),
    "TanhToFourDecimals": ("small-error", "x"),
    "SineByDifference": ("small-error", "x"),
    "LinearRowBiasOverFeatures": ("wrong-sum-axis", "bias"),
    "GainOverFeatures": ("wrong-sum-axis", "gain"),
    "LinearBiasTotal": ("wrong-sum-axis", "bias"),
    "SquareSharesItsCache": ("stale-cache", "x"),
    "ReLUWholeNumbers": ("wrong-type", "x"),
    "DropoutNoMask": ("missing-mask", "x"),
    "DropoutOdds": ("constant-factor", "x"),
    "MaximumToAll": ("missing-mask", "x"),
    "DenseNoActivation": ("local-derivative-missing", "W1"),
    "RecurrentTransposed": ("transposed-factor", "h"),
    "ScoresNotTransposed": ("transposed-factor", "k"),
    "DenseSoftMaxElementwise": ("off-diagonal-missing", "W"),
    "LogSoftMaxNoP": ("missing-factor", "x"),
    "HingeNoTarget": ("missing-factor", "x"),
    "CorrelationNotTurned": ("flipped-kernel", "x"),
    "AbsoluteErrorNoSign": ("wrong-derivative", "x"),
    "GainOfOneStep": ("missing-batch-sum", "gain"),
    "SecondPassDoubled": ("state", "x"),
    "Rough": ("not-smooth", "x"),
    "HardSigmoid": ("outside-range", "x"),
    "ClipNothingComesBack": ("zero-gradient", "x"),
    "Constant": ("constant", "x"),
    "WeightsOfParts": ("sign", "parts.0.weights"),
    "WeightIsAnObject": ("extra-1/N", "weight.value"),
    "GradientsReturned": ("sign", "weights"),
    "GradientOfAnotherName": ("sign", "weights"),
    "ListsOfArrays": ("constant-factor", "W.0"),
    "KeepsTheFirstBatchSize": ("stale-cache", "x"),
}
