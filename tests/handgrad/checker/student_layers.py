"""Layers and losses in the many ways in which students write them, all of them correct."""

import math

import numpy as np

erf = np.vectorize(math.erf)


class LinearModule(object):
    def __init__(self, in_features, out_features):
        self.params = {
            "weight": np.random.normal(0, 0.0001, (out_features, in_features)),
            "bias": np.zeros((out_features, 1)),
        }
        self.grads = {"weight": None, "bias": None}

    def forward(self, x):
        self.x = x
        out = x @ self.params["weight"].T + self.params["bias"].T
        return out

    def backward(self, dout):
        self.grads["weight"] = dout.T @ self.x
        self.grads["bias"] = dout.sum(axis=0).reshape(-1, 1)
        dx = dout @ self.params["weight"]
        return dx


class LinearRow(object):
    def __init__(self, in_features, out_features, input_layer=False):
        self.params = {}
        self.grads = {}
        std = np.sqrt(1 / in_features) if input_layer else np.sqrt(2 / in_features)
        self.params["weight"] = np.random.randn(in_features, out_features) * std
        self.params["bias"] = np.zeros((1, out_features))
        self.grads["weight"] = np.zeros_like(self.params["weight"])
        self.grads["bias"] = np.zeros_like(self.params["bias"])
        self.cache = None

    def forward(self, x):
        self.cache = x
        return np.dot(x, self.params["weight"]) + self.params["bias"]

    def backward(self, dout):
        x = self.cache
        self.grads["weight"][:] = np.dot(x.T, dout)
        self.grads["bias"][:] = np.sum(dout, axis=0, keepdims=True)
        return np.dot(dout, self.params["weight"].T)

    def clear_cache(self):
        self.cache = None


class LinearColumnMajor(object):
    """2018: x is (in, batch)? no, (batch, in) with bias (out, 1) tiled"""

    def __init__(self, in_features, out_features):
        self.params = {
            "weight": np.random.normal(0, 0.0001, (out_features, in_features)),
            "bias": np.zeros((out_features, 1)),
        }
        self.grads = {
            "weight": np.zeros((out_features, in_features)),
            "bias": np.zeros((out_features, 1)),
        }

    def forward(self, x):
        self.x = x.T
        return (self.params["weight"] @ self.x + np.tile(self.params["bias"], (1, x.shape[0]))).T

    def backward(self, dout):
        d = dout.T
        self.grads["weight"] = d @ self.x.T
        self.grads["bias"] = d @ np.ones((d.shape[1], 1))
        return (self.params["weight"].T @ d).T


class LeakyReLUModule(object):
    def __init__(self, neg_slope):
        self.neg_slope = neg_slope

    def forward(self, x):
        self.mask = (x > 0).astype(float)
        return np.maximum(0, x) + self.neg_slope * np.minimum(0, x)

    def backward(self, dout):
        return dout * np.where(self.mask, 1, self.neg_slope)


class ELUModule(object):
    def forward(self, x):
        self.x = x
        out = np.copy(x)
        out[x < 0] = np.exp(x[x < 0]) - 1
        return out

    def backward(self, dout):
        dx = dout.copy()
        dx[self.x < 0] *= np.exp(self.x[self.x < 0])
        return dx


class ELUAlpha(object):
    def __init__(self, alpha):
        self.alpha = alpha

    def forward(self, x):
        self.out = np.where(x > 0, x, self.alpha * (np.exp(x) - 1))
        return self.out

    def backward(self, dout):
        return dout * np.where(self.out > 0, 1, self.out + self.alpha)


class SoftMaxModule(object):
    def forward(self, x):
        b = x.max(axis=1, keepdims=True)
        y = np.exp(x - b)
        self.out = y / y.sum(axis=1, keepdims=True)
        return self.out

    def backward(self, dout):
        s = self.out
        dx = np.zeros_like(s)
        for i in range(s.shape[0]):
            jac = np.diag(s[i]) - np.outer(s[i], s[i])
            dx[i] = dout[i] @ jac
        return dx


class SoftMaxEinsum(object):
    def forward(self, x):
        y = np.exp(x - np.max(x, axis=1)[:, np.newaxis])
        self.s = y / np.sum(y, axis=1)[:, np.newaxis]
        return self.s

    def backward(self, dout):
        n, d = self.s.shape
        diag = np.zeros((n, d, d))
        ii = np.arange(d)
        diag[:, ii, ii] = self.s
        jac = diag - np.einsum("ij,ik->ijk", self.s, self.s)
        return np.einsum("ij,ijk->ik", dout, jac)


class CrossEntropyModule(object):
    def forward(self, x, y):
        return -np.sum(np.log(x + 1e-10) * y) / x.shape[0]

    def backward(self, x, y):
        return -(y / (x + 1e-10)) / x.shape[0]


class CrossEntropyLabels(object):
    def forward(self, x, y):
        n = x.shape[0]
        loss = -np.log(x[np.arange(n), y]).mean()
        return loss

    def backward(self, x, y):
        dx = np.zeros_like(x)
        n = x.shape[0]
        dx[np.arange(n), y] = -1 / x[np.arange(n), y]
        return dx / n


class CrossEntropyOneHotInside(object):
    def forward(self, x, y):
        n, c = x.shape
        self.onehot = np.eye(c)[y]
        return np.mean(-np.sum(self.onehot * np.log(x), axis=1))

    def backward(self, x, y):
        return -self.onehot / x / len(x)


class CrossEntropyBigEps(object):
    def __init__(self, eps=1e-2):
        self.eps = eps

    def forward(self, x, y):
        return -(y * np.log(x + self.eps)).sum(1).mean()

    def backward(self, x, y):
        return -y / (x + self.eps) / x.shape[0]


class SoftmaxCE(object):
    def forward(self, x, y):
        m = x.max(1, keepdims=True)
        self.p = np.exp(x - m) / np.exp(x - m).sum(1, keepdims=True)
        return -np.log(self.p[range(len(y)), y]).mean()

    def backward(self, x, y):
        d = self.p.copy()
        d[range(len(y)), y] -= 1
        return d / len(y)


class NLL(object):
    def forward(self, x, y):
        return -x[np.arange(len(y)), y].mean()

    def backward(self, x, y):
        dx = np.zeros_like(x)
        dx[np.arange(len(y)), y] = -1 / len(y)
        return dx


class NLLLogProbs:
    def forward(self, log_probs, labels):
        self.shape = log_probs.shape
        self.labels = labels
        return -np.mean(log_probs[np.arange(log_probs.shape[0]), labels])

    def backward(self):
        dx = np.zeros(self.shape)
        dx[np.arange(self.shape[0]), self.labels] = -1.0 / self.shape[0]
        return dx


class MSE:
    def forward(self, x, y):
        return np.mean((x - y) ** 2)

    def backward(self, x, y):
        return 2 * (x - y) / x.size


class MSEPred:
    def forward(self, pred, target):
        self.d = pred - target
        return 0.5 * np.sum(self.d**2) / len(pred)

    def backward(self, dout=1.0):
        return dout * self.d / len(self.d)


class MSEyhat:
    def forward(self, y_hat, y):
        self.cache = (y_hat, y)
        return ((y_hat - y) ** 2).mean()

    def backward(self):
        y_hat, y = self.cache
        return 2 * (y_hat - y) / y.size


class MSEyfirst:
    """y_true first, as keras"""

    def forward(self, y_true, y_pred):
        return ((y_true - y_pred) ** 2).mean()

    def backward(self, y_true, y_pred):
        return 2 * (y_pred - y_true) / y_true.size


class Hinge:
    def forward(self, x, y):
        n = len(y)
        m = np.maximum(0, x - x[np.arange(n), y][:, None] + 1)
        m[np.arange(n), y] = 0
        return m.sum() / n

    def backward(self, x, y):
        n = len(y)
        m = (x - x[np.arange(n), y][:, None] + 1 > 0).astype(float)
        m[np.arange(n), y] = 0
        m[np.arange(n), y] = -m.sum(1)
        return m / n


class BinaryHinge:
    def forward(self, x, y):
        return np.mean(np.maximum(0, 1 - x * y))

    def backward(self, x, y):
        return np.where(x * y < 1, -y, 0) / x.size


class BCE:
    def forward(self, x, y):
        return -np.mean(y * np.log(x) + (1 - y) * np.log(1 - x))

    def backward(self, x, y):
        return (x - y) / (x * (1 - x)) / x.size


class BCEColumn:
    """for x (N,1), y (N,)"""

    def forward(self, x, y):
        y = y.reshape(-1, 1)
        assert x.shape[1] == 1
        return -np.mean(y * np.log(x) + (1 - y) * np.log(1 - x))

    def backward(self, x, y):
        y = y.reshape(-1, 1)
        return (x - y) / (x * (1 - x)) / x.shape[0]


class BCELogits:
    def forward(self, logits, targets):
        return np.mean(np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits))))

    def backward(self, logits, targets):
        return (1 / (1 + np.exp(-logits)) - targets) / logits.size


class LossWithUpstream:
    def forward(self, x, y):
        self.x, self.y = x, y
        return np.sum((x - y) ** 2)

    def backward(self, dloss):
        return dloss * 2 * (self.x - self.y)


class LossBothGrads:
    def forward(self, x, y):
        return np.sum((x - y) ** 2)

    def backward(self, x, y):
        return 2 * (x - y), -2 * (x - y)


class Huber:
    def __init__(self, delta=1.0):
        self.delta = delta

    def forward(self, x, y):
        d = np.abs(x - y)
        return np.where(d <= self.delta, 0.5 * d**2, self.delta * (d - 0.5 * self.delta)).mean()

    def backward(self, x, y):
        return np.clip(x - y, -self.delta, self.delta) / x.size


class KLDiv:
    def forward(self, log_q, p):
        return np.sum(p * (np.log(p) - log_q)) / len(p)

    def backward(self, log_q, p):
        return -p / len(p)


class L1Loss:
    def forward(self, x, y):
        return np.abs(x - y).mean()

    def backward(self, x, y):
        return np.sign(x - y) / x.size


class Sigmoid:
    def forward(self, x):
        self.out = 1 / (1 + np.exp(-x))
        return self.out

    def backward(self, dout):
        return dout * self.out * (1 - self.out)


class Tanh:
    def forward(self, x):
        self.out = np.tanh(x)
        return self.out

    def backward(self, dout):
        return dout * (1 - self.out**2)


class GELU:
    def forward(self, x):
        self.x = x
        return 0.5 * x * (1 + erf(x / np.sqrt(2)))

    def backward(self, dout):
        x = self.x
        return dout * (
            0.5 * (1 + erf(x / np.sqrt(2))) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
        )


class GELUTanh:
    def forward(self, x):
        self.x = x
        self.c = np.sqrt(2 / np.pi)
        self.t = np.tanh(self.c * (x + 0.044715 * x**3))
        return 0.5 * x * (1 + self.t)

    def backward(self, dout):
        x, t = self.x, self.t
        return dout * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * self.c * (1 + 3 * 0.044715 * x**2))


class Softplus:
    def __init__(self, beta=1):
        self.beta = beta

    def forward(self, x):
        self.x = x
        return np.log1p(np.exp(self.beta * x)) / self.beta

    def backward(self, dout):
        return dout / (1 + np.exp(-self.beta * self.x))


class PReLU:
    def __init__(self, init=0.25):
        self.params = {"alpha": np.array(init)}
        self.grads = {"alpha": np.array(0.0)}

    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, self.params["alpha"] * x)

    def backward(self, dout):
        self.grads["alpha"] = np.array((dout * np.where(self.x > 0, 0, self.x)).sum())
        return dout * np.where(self.x > 0, 1, self.params["alpha"])


class PReLUFloat:
    """parameter is a Python float"""

    def __init__(self, init=0.25):
        self.params = {"alpha": init}
        self.grads = {"alpha": 0.0}

    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, self.params["alpha"] * x)

    def backward(self, dout):
        self.grads["alpha"] = (dout * np.where(self.x > 0, 0, self.x)).sum()
        return dout * np.where(self.x > 0, 1, self.params["alpha"])


class Swish:
    def forward(self, x):
        self.x = x
        self.s = 1 / (1 + np.exp(-x))
        return x * self.s

    def backward(self, dout):
        return dout * (self.s + self.x * self.s * (1 - self.s))


class HardTanh:
    def __init__(self, min_val=-1, max_val=1):
        self.a, self.b = min_val, max_val

    def forward(self, x):
        self.x = x
        return np.clip(x, self.a, self.b)

    def backward(self, dout):
        return dout * ((self.x > self.a) & (self.x < self.b))


class Dropout:
    def __init__(self, p=0.5):
        self.p = p
        self.training = True

    def forward(self, x):
        if not self.training:
            return x
        self.mask = (np.random.rand(*x.shape) > self.p) / (1 - self.p)
        return x * self.mask

    def backward(self, dout):
        return dout * self.mask


class DropoutRng:
    def __init__(self, p, rng=None):
        self.p = p
        self.rng = rng or np.random.default_rng()

    def forward(self, x):
        self.mask = (self.rng.random(x.shape) >= self.p) / (1 - self.p)
        return x * self.mask

    def backward(self, dout):
        return dout * self.mask


class DropoutModuleRng:
    RNG = np.random.default_rng(0)

    def __init__(self, p=0.5):
        self.p = p

    def forward(self, x):
        self.mask = (self.RNG.random(x.shape) >= self.p) / (1 - self.p)
        return x * self.mask

    def backward(self, dout):
        return dout * self.mask


_rng = np.random.default_rng(3)


class DropoutGlobalRng:
    def __init__(self, p=0.5):
        self.p = p

    def forward(self, x):
        self.mask = (_rng.random(x.shape) >= self.p) / (1 - self.p)
        return x * self.mask

    def backward(self, dout):
        return dout * self.mask


class DropoutUnseeded:
    def __init__(self, p=0.5):
        self.p = p

    def forward(self, x):
        self.mask = (np.random.default_rng().random(x.shape) >= self.p) / (1 - self.p)
        return x * self.mask

    def backward(self, dout):
        return dout * self.mask


class DropoutTrainFlag:
    def __init__(self, keep_prob):
        self.keep_prob = keep_prob
        self.mode = "train"

    def forward(self, x, train=True):
        if train:
            self.mask = (np.random.rand(*x.shape) < self.keep_prob) / self.keep_prob
            return x * self.mask
        self.mask = 1
        return x

    def backward(self, dout):
        return dout * self.mask


class Flatten:
    def forward(self, x):
        self.s = x.shape
        return x.reshape(x.shape[0], -1)

    def backward(self, dout):
        return dout.reshape(self.s)


class BatchNorm:
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        self.eps, self.momentum = eps, momentum
        self.params = {"gamma": np.ones(num_features), "beta": np.zeros(num_features)}
        self.grads = {"gamma": np.zeros(num_features), "beta": np.zeros(num_features)}
        self.running_mean = np.zeros(num_features)
        self.running_var = np.ones(num_features)
        self.training = True

    def forward(self, x):
        if self.training:
            mu = x.mean(0)
            var = x.var(0)
            self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mu
            self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var
        else:
            mu, var = self.running_mean, self.running_var
        self.std = np.sqrt(var + self.eps)
        self.xh = (x - mu) / self.std
        return self.params["gamma"] * self.xh + self.params["beta"]

    def backward(self, dout):
        N = len(dout)
        self.grads["gamma"] = (dout * self.xh).sum(0)
        self.grads["beta"] = dout.sum(0)
        dxh = dout * self.params["gamma"]
        return (N * dxh - dxh.sum(0) - self.xh * (dxh * self.xh).sum(0)) / (N * self.std)


class BatchNormGraph:
    """cs231n step by step; (1, D) params"""

    def __init__(self, dim):
        self.params = {"gamma": np.ones((1, dim)), "beta": np.zeros((1, dim))}
        self.grads = {}

    def forward(self, x):
        N, D = x.shape
        mu = 1.0 / N * np.sum(x, axis=0)
        xmu = x - mu
        sq = xmu**2
        var = 1.0 / N * np.sum(sq, axis=0)
        sqrtvar = np.sqrt(var + 1e-8)
        ivar = 1.0 / sqrtvar
        xhat = xmu * ivar
        self.cache = (xhat, xmu, ivar, sqrtvar, var)
        return self.params["gamma"] * xhat + self.params["beta"]

    def backward(self, dout):
        xhat, xmu, ivar, sqrtvar, var = self.cache
        N, D = dout.shape
        self.grads["beta"] = np.sum(dout, axis=0, keepdims=True)
        self.grads["gamma"] = np.sum(dout * xhat, axis=0, keepdims=True)
        dxhat = dout * self.params["gamma"]
        divar = np.sum(dxhat * xmu, axis=0)
        dxmu1 = dxhat * ivar
        dsqrtvar = -1.0 / (sqrtvar**2) * divar
        dvar = 0.5 * 1.0 / np.sqrt(var + 1e-8) * dsqrtvar
        dsq = 1.0 / N * np.ones((N, D)) * dvar
        dxmu2 = 2 * xmu * dsq
        dx1 = dxmu1 + dxmu2
        dmu = -1 * np.sum(dx1, axis=0)
        return dx1 + 1.0 / N * np.ones((N, D)) * dmu


class BatchNormUnbiased:
    def __init__(self, dim):
        self.params = {"gamma": np.ones(dim), "beta": np.zeros(dim)}
        self.grads = {}

    def forward(self, x):
        self.xm = x - x.mean(0)
        self.std = np.sqrt(x.var(0, ddof=1) + 1e-5)
        self.xh = self.xm / self.std
        return self.xh * self.params["gamma"] + self.params["beta"]

    def backward(self, dout):
        n = len(dout)
        d = dout * self.params["gamma"]
        self.grads["gamma"] = (dout * self.xh).sum(0)
        self.grads["beta"] = dout.sum(0)
        return (d - d.mean(0) - self.xh * (d * self.xh).sum(0) / (n - 1)) / self.std


class LayerNorm:
    def __init__(self, normalized_shape, eps=1e-5):
        self.eps = eps
        self.params = {"gamma": np.ones(normalized_shape), "beta": np.zeros(normalized_shape)}
        self.grads = {"gamma": None, "beta": None}

    def forward(self, x):
        self.std = np.sqrt(x.var(-1, keepdims=True) + self.eps)
        self.xh = (x - x.mean(-1, keepdims=True)) / self.std
        return self.xh * self.params["gamma"] + self.params["beta"]

    def backward(self, dout):
        ax = tuple(range(dout.ndim - 1))
        d = dout * self.params["gamma"]
        self.grads["gamma"] = (dout * self.xh).sum(ax)
        self.grads["beta"] = dout.sum(ax)
        return (
            d - d.mean(-1, keepdims=True) - self.xh * (d * self.xh).mean(-1, keepdims=True)
        ) / self.std


class RMSNorm:
    def __init__(self, dim, eps=1e-6):
        self.eps = eps
        self.params = {"g": np.ones(dim)}
        self.grads = {"g": np.zeros(dim)}

    def forward(self, x):
        self.x = x
        self.r = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps)
        return x * self.r * self.params["g"]

    def backward(self, dout):
        x, r = self.x, self.r
        self.grads["g"] = (dout * x * r).sum(0)
        d = dout * self.params["g"]
        return d * r - x * r**3 * (d * x).mean(-1, keepdims=True)


class Conv2d:
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0):
        self.k, self.s, self.p = kernel_size, stride, padding
        self.params = {
            "weight": np.random.randn(out_channels, in_channels, kernel_size, kernel_size) * 0.1,
            "bias": np.zeros(out_channels),
        }
        self.grads = {k: np.zeros_like(v) for k, v in self.params.items()}

    def forward(self, x):
        p, s, k = self.p, self.s, self.k
        self.xp = xp = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        N, C, H, W = xp.shape
        W_, b = self.params["weight"], self.params["bias"]
        Ho, Wo = (H - k) // s + 1, (W - k) // s + 1
        out = np.zeros((N, W_.shape[0], Ho, Wo))
        for n in range(N):
            for f in range(W_.shape[0]):
                for i in range(Ho):
                    for j in range(Wo):
                        out[n, f, i, j] = (
                            xp[n, :, i * s : i * s + k, j * s : j * s + k] * W_[f]
                        ).sum() + b[f]
        return out

    def backward(self, dout):
        p, s, k = self.p, self.s, self.k
        dxp = np.zeros_like(self.xp)
        dW = np.zeros_like(self.params["weight"])
        N, F, Ho, Wo = dout.shape
        for n in range(N):
            for f in range(F):
                for i in range(Ho):
                    for j in range(Wo):
                        dW[f] += (
                            self.xp[n, :, i * s : i * s + k, j * s : j * s + k] * dout[n, f, i, j]
                        )
                        dxp[n, :, i * s : i * s + k, j * s : j * s + k] += (
                            self.params["weight"][f] * dout[n, f, i, j]
                        )
        self.grads["weight"] = dW
        self.grads["bias"] = dout.sum((0, 2, 3))
        H, W = dxp.shape[2:]
        return dxp[:, :, p : H - p, p : W - p]


class MaxPool2d:
    def __init__(self, kernel_size=2, stride=2):
        self.k, self.s = kernel_size, stride

    def forward(self, x):
        self.x = x
        N, C, H, W = x.shape
        k, s = self.k, self.s
        out = np.zeros((N, C, (H - k) // s + 1, (W - k) // s + 1))
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                out[:, :, i, j] = x[:, :, i * s : i * s + k, j * s : j * s + k].max((2, 3))
        self.out = out
        return out

    def backward(self, dout):
        dx = np.zeros_like(self.x)
        k, s = self.k, self.s
        for i in range(dout.shape[2]):
            for j in range(dout.shape[3]):
                w = self.x[:, :, i * s : i * s + k, j * s : j * s + k]
                first = w.reshape(*w.shape[:2], -1).argmax(-1)[..., None] == np.arange(k * k)
                dx[:, :, i * s : i * s + k, j * s : j * s + k] += (
                    first.reshape(w.shape) * dout[:, :, i, j][:, :, None, None]
                )
        return dx


class MaxPoolReshape:
    def __init__(self, pool_size):
        self.k = pool_size

    def forward(self, x):
        N, C, H, W = x.shape
        k = self.k
        self.xr = x.reshape(N, C, H // k, k, W // k, k)
        self.out = self.xr.max(3).max(4)
        return self.out

    def backward(self, dout):
        N, C, h, _, w, _ = self.xr.shape
        k = self.k
        m = self.xr == self.out[:, :, :, None, :, None]
        m = m / m.sum((3, 5), keepdims=True)  # equal entries share the gradient
        return (m * dout[:, :, :, None, :, None]).reshape(N, C, h * k, w * k)


class AvgPool2d:
    def __init__(self, kernel_size):
        self.k = kernel_size

    def forward(self, x):
        N, C, H, W = x.shape
        k = self.k
        self.s = x.shape
        x = x[:, :, : H // k * k, : W // k * k]
        return x.reshape(N, C, H // k, k, W // k, k).mean((3, 5))

    def backward(self, dout):
        k = self.k
        dx = np.zeros(self.s)
        d = np.repeat(np.repeat(dout, k, 2), k, 3) / k**2
        dx[:, :, : d.shape[2], : d.shape[3]] = d
        return dx


class ColumnDense:
    """Samples are columns, (in, N)."""

    def __init__(self, n_in, n_out):
        self.W = np.random.randn(n_out, n_in)
        self.b = np.zeros((n_out, 1))

    def forward(self, A):
        self.A = A
        return self.W @ A + self.b

    def backward(self, dZ):
        self.dW = dZ @ self.A.T
        self.db = dZ.sum(axis=1, keepdims=True)
        return self.W.T @ dZ


class ColumnMatMul:
    def __init__(self, n_in, n_out):
        self.W = np.random.randn(n_out, n_in)

    def forward(self, A):
        self.A = A
        return self.W @ A

    def backward(self, dZ):
        self.dW = dZ @ self.A.T
        return self.W.T @ dZ


class OneSample:
    def __init__(self, n_in, n_out):
        self.W = np.random.randn(n_out, n_in)

    def forward(self, x):
        self.x = x
        return self.W @ x

    def backward(self, dout):
        self.dW = np.outer(dout, self.x)
        return self.W.T @ dout


class Pointwise:
    """A convolution of kernel size 1 of (N, C, L)."""

    def __init__(self, c_in, c_out):
        self.W = np.random.randn(c_out, c_in)

    def forward(self, x):
        self.x = x
        return self.W @ x

    def backward(self, dout):
        self.dW = (dout @ self.x.transpose(0, 2, 1)).sum(0)
        return self.W.T @ dout


class Upsample:
    """Runs on a matrix by chance."""

    def __init__(self, scale_factor=2):
        self.k = scale_factor

    def forward(self, x):
        return np.kron(x, np.ones((1, 1, self.k, self.k)))

    def backward(self, dout):
        N, C, H, W = dout.shape
        k = self.k
        return dout.reshape(N, C, H // k, k, W // k, k).sum((3, 5))


class GivenAffine:
    def __init__(self, W, b):
        self.W, self.b = W, b
        self.dW = self.db = None

    def forward(self, x):
        self.x = x
        return np.dot(x, self.W) + self.b

    def backward(self, dout):
        self.dW = self.x.T @ dout
        self.db = dout.sum(axis=0)
        return dout @ self.W.T


class GivenOutIn:
    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def forward(self, x):
        self.x = x
        return x @ self.weight.T + self.bias

    def backward(self, dout):
        self.dweight, self.dbias = dout.T @ self.x, dout.sum(0)
        return dout @ self.weight


class GivenColumns:
    def __init__(self, W, b):
        self.W, self.b = W, b

    def forward(self, X):
        self.X = X
        return self.W @ X + self.b

    def backward(self, dZ):
        self.dW, self.db = dZ @ self.X.T, dZ.sum(1, keepdims=True)
        return self.W.T @ dZ


class GivenMatMul:
    def __init__(self, W):
        self.params = [W]
        self.grads = [np.zeros_like(W)]

    def forward(self, x):
        self.x = x
        return x @ self.params[0]

    def backward(self, dout):
        self.grads[0][...] = self.x.T @ dout
        return dout @ self.params[0].T


class GivenConvolution:
    def __init__(self, W, b, stride=1):
        self.W, self.b, self.s = W, b, stride

    def forward(self, x):
        self.x = x
        s, k = self.s, self.W.shape[2]
        H, W = (x.shape[2] - k) // s + 1, (x.shape[3] - k) // s + 1
        out = np.zeros((len(x), len(self.W), H, W))
        for i in range(H):
            for j in range(W):
                patch = x[:, :, i * s : i * s + k, j * s : j * s + k]
                out[:, :, i, j] = np.tensordot(patch, self.W, ((1, 2, 3), (1, 2, 3))) + self.b
        return out

    def backward(self, dout):
        s, k = self.s, self.W.shape[2]
        dx, self.dW = np.zeros_like(self.x), np.zeros_like(self.W)
        self.db = dout.sum((0, 2, 3))
        for i in range(dout.shape[2]):
            for j in range(dout.shape[3]):
                d = dout[:, :, i, j]
                patch = (slice(None), slice(None), slice(i * s, i * s + k), slice(j * s, j * s + k))
                self.dW += np.tensordot(d, self.x[patch], ((0,), (0,)))
                dx[patch] += np.tensordot(d, self.W, ((1,), (0,)))
        return dx


class GivenScale:
    def __init__(self, gamma, beta):
        self.gamma, self.beta = gamma, beta

    def forward(self, x):
        self.x = x
        return self.gamma * x + self.beta

    def backward(self, dout):
        self.dgamma, self.dbeta = (dout * self.x).sum(0), dout.sum(0)
        return dout * self.gamma


class GivenSwish:
    """One beta, which is trained."""

    def __init__(self, beta):
        self.beta = beta

    def forward(self, x):
        self.x, self.s = x, 1 / (1 + np.exp(-self.beta * x))
        return x * self.s

    def backward(self, dout):
        slope = self.x * self.s * (1 - self.s)
        self.dbeta = (dout * self.x * slope).sum()
        return dout * (self.s + self.beta * slope)


class GivenRadial:
    """One gamma, which is not; with one for each feature the gradient would be another."""

    def __init__(self, gamma):
        self.gamma = gamma

    def forward(self, x):
        self.x = x
        self.y = np.exp(-self.gamma * (x**2).sum(1, keepdims=True))
        return self.y

    def backward(self, dout):
        return -2 * self.gamma * self.x * self.y * dout


class Triplet:
    def forward(self, a, p, n):
        self.dp, self.dn = a - p, a - n
        self.v = (self.dp**2).sum(1) - (self.dn**2).sum(1) + 0.5
        return np.maximum(self.v, 0).sum()

    def backward(self):
        m = (self.v > 0)[:, None]
        return 2 * m * (self.dp - self.dn), -2 * m * self.dp, 2 * m * self.dn


class SquaredErrors:
    """One for each sample."""

    def forward(self, x, y):
        self.d = x - y
        return (self.d**2).mean(axis=1)

    def backward(self, dout):
        return 2 * self.d * dout[:, None] / self.d.shape[1]


class Ridge:
    """A loss with a parameter."""

    def __init__(self, n_in, n_out, reg=0.1):
        self.params, self.grads, self.reg = {"W": np.random.randn(n_in, n_out)}, {}, reg

    def forward(self, x, y):
        self.x, self.d = x, x @ self.params["W"] - y
        return 0.5 * np.sum(self.d**2) / len(x) + 0.5 * self.reg * np.sum(self.params["W"] ** 2)

    def backward(self, x, y):
        d = self.d / len(x)
        self.grads["W"] = self.x.T @ d + self.reg * self.params["W"]
        return d @ self.params["W"].T


class HuberSum:
    def forward(self, x, y):
        d = np.abs(x - y)
        return np.where(d < 1, 0.5 * d**2, d - 0.5).sum()

    def backward(self, x, y):
        return np.clip(x - y, -1, 1)


class WideLinear:
    def __init__(self, in_features=11, out_features=7):
        self.params, self.grads = {"W": np.random.randn(in_features, out_features)}, {}

    def forward(self, x):
        self.x = x
        return x @ self.params["W"]

    def backward(self, dout):
        self.grads["W"] = self.x.T @ dout
        return dout @ self.params["W"].T


class Conv1dChannelsLast:
    def __init__(self, in_channels, out_channels, width=2):
        self.W = np.random.randn(width, in_channels, out_channels)

    def forward(self, x):
        self.x, k = x, len(self.W)
        L = x.shape[1] - k + 1
        return sum(x[:, i : i + L] @ self.W[i] for i in range(k))

    def backward(self, dout):
        k, L = len(self.W), dout.shape[1]
        self.dW = np.stack([np.einsum("nlc,nlo->co", self.x[:, i : i + L], dout) for i in range(k)])
        dx = np.zeros_like(self.x)
        for i in range(k):
            dx[:, i : i + L] += dout @ self.W[i].T
        return dx


class GlobalAvgPool:
    def forward(self, x):
        self.s = x.shape
        return x.mean((2, 3))

    def backward(self, dout):
        return np.ones(self.s) * dout[:, :, None, None] / (self.s[2] * self.s[3])


class Linear0:
    def __init__(self, in_dim, out_dim):
        self.params = {"W": np.random.randn(in_dim, out_dim), "b": np.zeros(out_dim)}
        self.grads = {}

    def forward(self, x):
        self.x = x
        return x @ self.params["W"] + self.params["b"]

    def backward(self, dout):
        self.grads = {"W": self.x.T @ dout, "b": dout.sum(0)}
        return dout @ self.params["W"].T


class ReLU:
    def forward(self, x):
        self.m = x > 0
        return x * self.m

    def backward(self, dout):
        return dout * self.m


class ResidualBlock:
    def __init__(self, dim, hidden):
        self.l1 = Linear0(dim, hidden if isinstance(hidden, int) else hidden[0])
        self.act = ReLU()
        self.l2 = Linear0(hidden if isinstance(hidden, int) else hidden[0], dim)

    def forward(self, x):
        return x + self.l2.forward(self.act.forward(self.l1.forward(x)))

    def backward(self, dout):
        return dout + self.l1.backward(self.act.backward(self.l2.backward(dout)))


class MLP:
    def __init__(self, n_inputs, n_hidden, n_classes):
        self.layers = []
        d = n_inputs
        for h in n_hidden:
            self.layers += [Linear0(d, h), ReLU()]
            d = h
        self.layers.append(Linear0(d, n_classes))

    def forward(self, x):
        for l in self.layers:
            x = l.forward(x)
        return x

    def backward(self, dout):
        for l in reversed(self.layers):
            dout = l.backward(dout)


class MLPDict:
    def __init__(self, n_inputs, n_hidden, n_classes):
        self.layers = {
            "l1": Linear0(n_inputs, n_hidden[0]),
            "r": ReLU(),
            "l2": Linear0(n_hidden[0], n_classes),
        }

    def forward(self, x):
        for l in self.layers.values():
            x = l.forward(x)
        return x

    def backward(self, dout):
        for l in reversed(list(self.layers.values())):
            dout = l.backward(dout)
        return dout


class MLPBatchNorm:
    def __init__(self, n_inputs, n_hidden, n_classes, use_batch_norm=True):
        self.layers = []
        d = n_inputs
        for h in n_hidden:
            self.layers += [Linear0(d, h), BatchNorm(h), ReLU()]
            d = h
        self.layers.append(Linear0(d, n_classes))

    def forward(self, x):
        for l in self.layers:
            x = l.forward(x)
        return x

    def backward(self, dout):
        for l in reversed(self.layers):
            dout = l.backward(dout)
        return dout


class WeightTied:
    def __init__(self, dim):
        self.params = {"w": np.random.randn(dim, dim)}
        self.grads = {"w": np.zeros((dim, dim))}

    def forward(self, x):
        self.x = x
        self.h = x @ self.params["w"]
        return self.h @ self.params["w"].T

    def backward(self, dout):
        W = self.params["w"]
        dh = dout @ W
        self.grads["w"] = dout.T @ self.h + self.x.T @ dh
        return dh @ W.T


class Attention:
    def forward(self, q, k, v):
        s = q @ k.T / np.sqrt(q.shape[1])
        a = np.exp(s - s.max(1, keepdims=True))
        a /= a.sum(1, keepdims=True)
        self.c = (q, k, v, a)
        return a @ v

    def backward(self, dout):
        q, k, v, a = self.c
        dv = a.T @ dout
        da = dout @ v.T
        ds = a * (da - (da * a).sum(1, keepdims=True)) / np.sqrt(q.shape[1])
        return ds @ k, ds.T @ q, dv


class LogSoftmax:
    def forward(self, x):
        m = x - x.max(1, keepdims=True)
        self.o = m - np.log(np.exp(m).sum(1, keepdims=True))
        return self.o

    def backward(self, dout):
        return dout - np.exp(self.o) * dout.sum(1, keepdims=True)


class Maxout:
    def __init__(self, in_features, out_features, k=2):
        self.params = {
            "weight": np.random.randn(k, in_features, out_features),
            "bias": np.zeros((k, out_features)),
        }
        self.grads = {}

    def forward(self, x):
        self.x = x
        z = np.einsum("ni,kio->kno", x, self.params["weight"]) + self.params["bias"][:, None]
        self.a = z.argmax(0)
        return z.max(0)

    def backward(self, dout):
        k = len(self.params["bias"])
        m = np.stack([(self.a == i) * dout for i in range(k)])
        self.grads["weight"] = np.einsum("ni,kno->kio", self.x, m)
        self.grads["bias"] = m.sum(1)
        return np.einsum("kno,kio->ni", m, self.params["weight"])


class Identity:
    def forward(self, x):
        return x

    def backward(self, dout):
        return dout


class Exp:
    def forward(self, x):
        self.y = np.exp(5 * x)
        return self.y

    def backward(self, dout):
        return 5 * self.y * dout


class Sin10:
    def forward(self, x):
        self.x = x
        return np.sin(10 * x)

    def backward(self, dout):
        return 10 * np.cos(10 * self.x) * dout


class Log:
    def forward(self, x):
        self.x = x
        return np.log(x)

    def backward(self, dout):
        return dout / self.x


class Abs:
    def forward(self, x):
        self.x = x
        return np.abs(x)

    def backward(self, dout):
        return dout * np.sign(self.x)


class Sum:
    def forward(self, x):
        self.s = x.shape
        return x.sum()

    def backward(self, dout):
        return np.full(self.s, dout)


class Dictionaries:
    """Parameters W1 and b1, gradients dW1 and db1."""

    def __init__(self, n_in, n_out):
        self.params = {"W1": np.zeros((n_in, n_out)), "b1": np.zeros(n_out)}
        self.grads = {}

    def forward(self, x):
        self.x = x
        return x @ self.params["W1"] + self.params["b1"]

    def backward(self, dout):
        self.grads["dW1"] = self.x.T @ dout
        self.grads["db1"] = dout.sum(0)
        return dout @ self.params["W1"].T


class HandsItsCacheOn:
    def __init__(self, n_in, n_out):
        self.W, self.b = np.zeros((n_in, n_out)), np.zeros(n_out)

    def forward(self, x):
        return x @ self.W + self.b, (x, self.W)

    def backward(self, dout, cache):
        x, W = cache
        return dout @ W.T, x.T @ dout, dout.sum(0)


class Tensor:
    def __init__(self, data):
        self.data, self.grad = data, np.zeros_like(data)


class AddsUpOnPurpose:
    def __init__(self, n_features):
        self.gain = Tensor(np.ones(n_features))

    def zero_grad(self):
        self.gain.grad[:] = 0

    def forward(self, x):
        self.x = x
        return x * self.gain.data

    def backward(self, dout):
        self.gain.grad += (dout * self.x).sum(0)
        return dout * self.gain.data


class Stack:
    def __init__(self, n_features):
        self.layers = {"first": AddsUpOnPurpose(n_features), "then": AddsUpOnPurpose(n_features)}

    def zero_grad(self):
        for layer in self.layers.values():
            layer.zero_grad()

    def forward(self, x):
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def backward(self, dout):
        for layer in reversed(self.layers.values()):
            dout = layer.backward(dout)
        return dout


class ReturnsDictionaries:
    def __init__(self, n_in, n_out):
        self.W, self.b = np.zeros((n_in, n_out)), np.zeros(n_out)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout):
        return dout @ self.W.T, {"W": self.x.T @ dout, "b": dout.sum(0)}


class MaskedMSE:
    def forward(self, pred, target, mask):
        self.d = (pred - target) * mask
        self.mask = mask
        return 0.5 * np.sum(self.d**2)

    def backward(self):
        return self.d * self.mask


class LinearRegression:
    def __init__(self, dim):
        self.params = {"w": np.zeros((dim, 1))}
        self.grads = {}

    def forward(self, X, Y):
        self.X, self.r = X, X @ self.params["w"] - Y
        return np.mean(self.r**2)

    def backward(self, X, Y):
        n = len(X)
        self.grads["w"] = 2 * X.T @ self.r / n
        return 2 * self.r @ self.params["w"].T / n


class LeavesWhatComesOut:
    def __init__(self, n_inputs, n_neurons):
        self.weights = np.random.randn(n_inputs, n_neurons)
        self.biases = np.zeros((1, n_neurons))

    def forward(self, inputs):
        self.inputs = inputs
        self.output = np.dot(inputs, self.weights) + self.biases

    def backward(self, dvalues):
        self.dweights = np.dot(self.inputs.T, dvalues)
        self.dbiases = np.sum(dvalues, axis=0, keepdims=True)
        self.dinputs = np.dot(dvalues, self.weights.T)


class Callable:
    def __call__(self, *args):
        self.args = args
        return self.forward(*args)


class RemembersInCall(Callable):
    def __init__(self, n_in, n_out):
        self.w = np.zeros((n_in, n_out))

    def forward(self, x):
        return x @ self.w

    def backward(self, dout):
        (x,) = self.args
        self.dw = x.T @ dout
        return dout @ self.w.T


class Accumulator:
    def __init__(self, v):
        self.value, self.grad = v, np.zeros_like(v)


class AddsUpInObjects:
    def __init__(self, n_input, n_output):
        self.W = Accumulator(np.zeros((n_input, n_output)))

    def forward(self, X):
        self.X = X.copy()
        return X @ self.W.value

    def backward(self, d_out):
        self.W.grad += self.X.T @ d_out
        return d_out @ self.W.value.T


class ReturnsInputsLast:
    def __init__(self, n_in, n_out):
        self.W, self.b = np.zeros((n_in, n_out)), np.zeros(n_out)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout):
        return self.x.T @ dout, dout.sum(0), dout @ self.W.T


class MaskedMean:
    def forward(self, x, mask):
        self.m, self.k = mask, mask.sum(1, keepdims=True)
        return (x * mask[..., None]).sum(1) / self.k

    def backward(self, dout):
        return (dout / self.k)[:, None, :] * self.m[..., None]


class TwoWidths:
    def __init__(self, n_in, n_out):
        self.W, self.U = np.zeros((n_in, n_out)), np.zeros((n_out, n_out))

    def forward(self, x, h):
        self.x, self.h = x, h
        self.y = np.tanh(x @ self.W + h @ self.U)
        return self.y

    def backward(self, dout):
        d = dout * (1 - self.y**2)
        self.dW, self.dU = self.x.T @ d, self.h.T @ d
        return d @ self.W.T, d @ self.U.T


class Parameters:
    """A network of one dictionary; gradients in another, by the same names."""

    def __init__(self, layer_sizes):
        sizes = list(zip(layer_sizes[:-1], layer_sizes[1:]))
        self.parameters = {f"W{i}": np.zeros(size) for i, size in enumerate(sizes)}
        self.gradients = {}

    def forward(self, x):
        self.a = [x]
        for W in self.parameters.values():
            self.a.append(np.tanh(self.a[-1] @ W))
        return self.a[-1]

    def backward(self, dout):
        for i in reversed(range(len(self.parameters))):
            dout = dout * (1 - self.a[i + 1] ** 2)
            self.gradients[f"dW{i}"] = self.a[i].T @ dout
            dout = dout @ self.parameters[f"W{i}"].T
        return dout


class LinearRegressionOfAttributes:
    def __init__(self, dim):
        self.w = np.linspace(-1, 1, dim)[:, None]

    def forward(self, X, Y):
        self.X, self.r = X, X @ self.w - Y
        return np.sum(self.r**2) / len(X)

    def backward(self):
        self.dw = 2 * self.X.T @ self.r / len(self.X)
        return 2 * self.r @ self.w.T / len(self.X)


class SetBackByZeroGrad:
    """Gradients in a dictionary that add up until zero_grad is called."""

    def __init__(self, n_in, n_out):
        self.params = {"weight": np.zeros((n_in, n_out))}
        self.grads = {"weight": np.zeros((n_in, n_out))}

    def zero_grad(self):
        self.grads["weight"][...] = 0

    def forward(self, x):
        self.x = x
        return x @ self.params["weight"]

    def backward(self, dout):
        self.grads["weight"] += self.x.T @ dout
        return dout @ self.params["weight"].T
