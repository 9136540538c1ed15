"""Layers of images with one mistake each, as students make them, and the name of that mistake.

As in ``planted_mistakes.py``, ``MISTAKES`` maps a class to (diagnosis, variable).
"""

import numpy as np


class Conv2d:
    """By im2col; correct."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1
    ):
        self.k, self.s, self.p, self.d, self.g = kernel_size, stride, padding, dilation, groups
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.params = {"weight": 0.1 * np.ones(shape), "bias": np.zeros(out_channels)}
        self.grads = {}

    def pad(self, x):
        return np.pad(x, ((0, 0), (0, 0), (self.p, self.p), (self.p, self.p)))

    def size(self, x):
        return tuple((n - self.d * (self.k - 1) - 1) // self.s + 1 for n in x.shape[2:])

    def at(self, i, j, size, stride=None, dilation=None):
        """Where the entry (i, j) of the kernel is, at all places of the window."""
        s, d = stride or self.s, dilation or self.d
        rows, columns = (slice(a * d, a * d + s * (n - 1) + 1, s) for a, n in zip((i, j), size))  # noqa: B905
        return np.s_[:, :, rows, columns]

    def im2col(self, xp, size, **other):
        return np.array(
            [[xp[self.at(i, j, size, **other)] for j in range(self.k)] for i in range(self.k)]
        )  # (k, k, N, C, OH, OW)

    def col2im(self, cols, shape, size, **other):
        xp = np.zeros(shape)
        for i in range(self.k):
            for j in range(self.k):
                xp[self.at(i, j, size, **other)] += cols[i, j]
        return xp

    def split(self, weight, dout=None):
        """The weight, or dout, with an axis for the groups."""
        if dout is None:
            return weight.reshape(self.g, -1, *weight.shape[1:])
        return dout.reshape(len(dout), self.g, -1, *dout.shape[2:])

    def forward(self, x):
        self.x, self.xp = x, self.pad(x)
        self.out = self.size(self.xp)
        cols = self.im2col(self.xp, self.out)
        cols = cols.reshape(*cols.shape[:3], self.g, -1, *self.out)
        y = np.einsum("ijngcrs,gocij->ngors", cols, self.split(self.params["weight"]))
        return y.reshape(len(x), -1, *self.out) + self.params["bias"][:, None, None]

    def own(self, dout):
        self.grads["bias"] = dout.sum(axis=(0, 2, 3))
        self.grads["weight"] = self.dweight(dout, self.im2col(self.xp, self.out))

    def dweight(self, dout, cols):
        cols = cols.reshape(*cols.shape[:3], self.g, -1, *self.out)
        dw = np.einsum("ijngcrs,ngors->gocij", cols, self.split(None, dout))
        return dw.reshape(self.params["weight"].shape)

    def dcols(self, dout, weight=None):
        weight = self.split(self.params["weight"] if weight is None else weight)
        cols = np.einsum("ngors,gocij->ijngcrs", self.split(None, dout), weight)
        return cols.reshape(*cols.shape[:3], -1, *self.out)

    def crop(self, dxp):
        return dxp[:, :, self.p : dxp.shape[2] - self.p, self.p : dxp.shape[3] - self.p]

    def backward(self, dout):
        self.own(dout)
        return self.crop(self.col2im(self.dcols(dout), self.xp.shape, self.out))


class ConvTransposedKernel(Conv2d):
    def dcols(self, dout):
        return super().dcols(dout, self.params["weight"].transpose(0, 1, 3, 2))


class ConvFlippedKernel(Conv2d):
    def dcols(self, dout):
        return super().dcols(dout, self.params["weight"][:, :, ::-1, ::-1])


class ConvFlippedKernelGradient(Conv2d):
    def own(self, dout):
        super().own(dout)
        self.grads["weight"] = self.grads["weight"][:, :, ::-1, ::-1]


class ConvTransposedKernelGradient(Conv2d):
    def own(self, dout):
        super().own(dout)
        self.grads["weight"] = self.grads["weight"].transpose(0, 1, 3, 2)


class ConvPaddingNotCutOff(Conv2d):
    def crop(self, dxp):
        return dxp


class ConvPaddingForgotten(Conv2d):
    def crop(self, dxp):
        return dxp[:, :, : self.x.shape[2], : self.x.shape[3]]


class ConvWeightWithoutPadding(Conv2d):
    def own(self, dout):
        super().own(dout)
        n, c, h, w = self.x.shape
        xp = np.zeros((n, c, h + 2 * self.p, w + 2 * self.p))
        xp[:, :, :h, :w] = self.x
        self.grads["weight"] = self.dweight(dout, self.im2col(xp, self.out))


class ConvStrideForgotten(Conv2d):
    def backward(self, dout):
        self.own(dout)
        return self.crop(self.col2im(self.dcols(dout), self.xp.shape, self.out, stride=1))


class ConvStrideForgottenInWeight(Conv2d):
    def own(self, dout):
        super().own(dout)
        self.grads["weight"] = self.dweight(dout, self.im2col(self.xp, self.out, stride=1))


class ConvDilationForgotten(Conv2d):
    def backward(self, dout):
        self.own(dout)
        return self.crop(self.col2im(self.dcols(dout), self.xp.shape, self.out, dilation=1))


class ConvOverwrites(Conv2d):
    def col2im(self, cols, shape, size):
        xp = np.zeros(shape)
        for i in range(self.k):
            for j in range(self.k):
                xp[self.at(i, j, size)] = cols[i, j]
        return xp


class ConvFancyIndexAddsOnce(Conv2d):
    """Adding at an index that holds a place twice adds once; np.add.at is meant."""

    def col2im(self, cols, shape, size):
        xp = np.zeros(shape)
        i, j, r, s = np.ix_(*map(range, (self.k, self.k, *size)))
        rows, columns = i * self.d + r * self.s, j * self.d + s * self.s
        xp[:, :, rows, columns] += cols.transpose(2, 3, 0, 1, 4, 5)
        return xp


class ConvLoopsOverwrite:
    """By loops over images, filters and places, with = where += is meant."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1):
        self.k, self.s = kernel_size, stride
        self.W = np.ones((out_channels, in_channels, kernel_size, kernel_size))
        self.b = np.zeros(out_channels)

    def windows(self, x):
        k, s = self.k, self.s
        for i in range((x.shape[2] - k) // s + 1):
            for j in range((x.shape[3] - k) // s + 1):
                yield i, j, np.s_[:, i * s : i * s + k, j * s : j * s + k]

    def forward(self, x):
        self.x = x
        size = [(n - self.k) // self.s + 1 for n in x.shape[2:]]
        out = np.zeros((len(x), len(self.W), *size))
        for n in range(len(x)):
            for f in range(len(self.W)):
                for i, j, here in self.windows(x):
                    out[n, f, i, j] = np.sum(x[n][here] * self.W[f]) + self.b[f]
        return out

    def backward(self, dout):
        dx, self.dW = np.zeros_like(self.x), np.zeros_like(self.W)
        self.db = dout.sum(axis=(0, 2, 3))
        for n in range(len(dout)):
            for f in range(len(self.W)):
                for i, j, here in self.windows(self.x):
                    dx[n][here] = self.W[f] * dout[n, f, i, j]
                    self.dW[f] += self.x[n][here] * dout[n, f, i, j]
        return dx


class ConvLoopsWeightOverwritten(ConvLoopsOverwrite):
    def backward(self, dout):
        dx, self.dW = np.zeros_like(self.x), np.zeros_like(self.W)
        self.db = dout.sum(axis=(0, 2, 3))
        for n in range(len(dout)):
            for f in range(len(self.W)):
                for i, j, here in self.windows(self.x):
                    dx[n][here] += self.W[f] * dout[n, f, i, j]
                    self.dW[f] = self.x[n][here] * dout[n, f, i, j]
        return dx


class ConvBiasOverFilters(Conv2d):
    def own(self, dout):
        super().own(dout)
        self.grads["bias"] = dout.sum(axis=(1, 2, 3))


class ConvBiasMeanOfPixels(Conv2d):
    def own(self, dout):
        super().own(dout)
        self.grads["bias"] = dout.sum(axis=0).mean(axis=(1, 2))


class ConvBiasNotOverPixels(Conv2d):
    def own(self, dout):
        super().own(dout)
        self.grads["bias"] = dout.sum(axis=0)


class ConvGroupsInterleaved(Conv2d):
    """The filters of a group stand one after the other; here every g-th is taken to be of it."""

    def dcols(self, dout):
        weight = self.params["weight"]
        cols = np.zeros((self.k, self.k, *self.x.shape[:2], *self.out))
        depth = weight.shape[1]
        for o in range(len(weight)):
            g = o % self.g
            cols[:, :, :, g * depth : (g + 1) * depth] += np.einsum(
                "nrs,cij->ijncrs", dout[:, o], weight[o]
            )
        return cols


class ConvGroupsMixedInWeight(Conv2d):
    def dweight(self, dout, cols):
        cols = cols.reshape(*cols.shape[:3], -1, self.g, *self.out)
        dw = np.einsum("ijncgrs,ngors->gocij", cols, self.split(None, dout))
        return dw.reshape(self.params["weight"].shape)


class ConvRowsOfChannels(Conv2d):
    """dout as rows of the filters, without the transpose that brings the filters to the end."""

    def own(self, dout):
        super().own(dout)
        rows = dout.reshape(-1, dout.shape[1])
        cols = self.im2col(self.xp, self.out).transpose(2, 4, 5, 3, 0, 1)
        dw = rows.T @ cols.reshape(len(rows), -1)
        if self.g == 1:
            self.grads["weight"] = dw.reshape(self.params["weight"].shape)


class ConvChannelsForRows(Conv2d):
    def backward(self, dout):
        dx = super().backward(dout)
        return dx.transpose(0, 2, 3, 1).reshape(dx.shape)


class ConvChannelsExchanged(Conv2d):
    """The weight is read as (in, out, ...), which it is not."""

    def dcols(self, dout):
        weight = self.params["weight"]
        o, c, *kernel = weight.shape
        return super().dcols(dout, weight.reshape(c, o, *kernel).transpose(1, 0, 2, 3))


class ConvWeightMeanOfBatch(Conv2d):
    def own(self, dout):
        super().own(dout)
        self.grads["weight"] /= len(dout)


class ConvWeightOfTheLastImage(Conv2d):
    def own(self, dout):
        super().own(dout)
        cols = self.im2col(self.xp, self.out)
        self.grads["weight"] = self.dweight(dout[-1:], cols[:, :, -1:])


class MaxPool2d:
    """Correct: the first of several equal entries has the gradient."""

    def __init__(self, kernel_size=2, stride=2):
        self.k, self.s = kernel_size, stride

    def windows(self, shape):
        k, s = self.k, self.s
        for i in range((shape[2] - k) // s + 1):
            for j in range((shape[3] - k) // s + 1):
                for n, c in np.ndindex(shape[:2]):
                    yield (n, c, i, j), np.s_[n, c, i * s : i * s + k, j * s : j * s + k]

    def forward(self, x):
        self.x = x
        out = np.zeros((*x.shape[:2], *((n - self.k) // self.s + 1 for n in x.shape[2:])))
        for place, window in self.windows(x.shape):
            out[place] = x[window].max()
        return out

    def winner(self, window):
        return np.unravel_index(np.argmax(window), window.shape)

    def backward(self, dout):
        dx = np.zeros_like(self.x)
        for place, window in self.windows(self.x.shape):
            dx[window][self.winner(self.x[window])] += dout[place]
        return dx


class MaxPoolOverwrites(MaxPool2d):
    def backward(self, dout):
        dx = np.zeros_like(self.x)
        for place, window in self.windows(self.x.shape):
            dx[window][self.winner(self.x[window])] = dout[place]
        return dx


class MaxPoolWindowOverwritten(MaxPool2d):
    def backward(self, dout):
        dx = np.zeros_like(self.x)
        for place, window in self.windows(self.x.shape):
            mask = np.zeros((self.k, self.k))
            mask[self.winner(self.x[window])] = 1
            dx[window] = mask * dout[place]
        return dx


class MaxPoolMaskOfTies(MaxPool2d):
    def backward(self, dout):
        dx = np.zeros_like(self.x)
        for place, window in self.windows(self.x.shape):
            dx[window] += (self.x[window] == self.x[window].max()) * dout[place]
        return dx


class MaxPoolTiesGetNothing(MaxPool2d):
    """A maximum that occurs twice is taken for none."""

    def backward(self, dout):
        dx = np.zeros_like(self.x)
        for place, window in self.windows(self.x.shape):
            mask = self.x[window] == self.x[window].max()
            dx[window] += mask * dout[place] * (mask.sum() == 1)
        return dx


class MaxPoolFirstEntry(MaxPool2d):
    def winner(self, window):
        return 0, 0


class MaxPoolMinimum(MaxPool2d):
    def winner(self, window):
        return np.unravel_index(np.argmin(window), window.shape)


class MaxPoolRowsForColumns(MaxPool2d):
    def winner(self, window):
        return np.unravel_index(np.argmax(window), window.shape)[::-1]


class MaxPoolTwice(MaxPool2d):
    def backward(self, dout):
        return super().backward(dout) + super().backward(dout)


class MaxPoolToAll(MaxPool2d):
    def backward(self, dout):
        dx = np.zeros_like(self.x)
        for place, window in self.windows(self.x.shape):
            dx[window] += dout[place]
        return dx


class MaxPoolStrideForgotten(MaxPool2d):
    def backward(self, dout):
        dx = np.zeros_like(self.x)
        for (n, c, i, j), window in self.windows(self.x.shape):
            r, s = self.winner(self.x[window])
            dx[n, c, i + r, j + s] += dout[n, c, i, j]
        return dx


class AvgPool2d:
    """Correct."""

    def __init__(self, kernel_size=2, stride=2, padding=0):
        self.k, self.s, self.p = kernel_size, stride, padding

    def windows(self, shape):
        k, s = self.k, self.s
        for i in range((shape[2] - k) // s + 1):
            for j in range((shape[3] - k) // s + 1):
                yield i, j, np.s_[:, :, i * s : i * s + k, j * s : j * s + k]

    def forward(self, x):
        self.x = x
        xp = np.pad(x, ((0, 0), (0, 0), (self.p, self.p), (self.p, self.p)))
        self.shape = xp.shape
        out = np.zeros((*x.shape[:2], *((n - self.k) // self.s + 1 for n in xp.shape[2:])))
        for i, j, window in self.windows(xp.shape):
            out[:, :, i, j] = xp[window].mean(axis=(2, 3))
        return out

    def share(self, i, j):
        return 1 / self.k**2

    def backward(self, dout):
        dxp = np.zeros(self.shape)
        for i, j, window in self.windows(self.shape):
            dxp[window] += self.share(i, j) * dout[:, :, i, j, None, None]
        return dxp[:, :, self.p : self.shape[2] - self.p, self.p : self.shape[3] - self.p]


class AvgPoolNoMean(AvgPool2d):
    def share(self, i, j):
        return 1


class AvgPoolOverSide(AvgPool2d):
    def share(self, i, j):
        return 1 / self.k


class AvgPoolCountsTheImage(AvgPool2d):
    """Divides by the entries of a window that are no padding; forward divides by all."""

    def share(self, i, j):
        inside = [
            sum(self.p <= a * self.s + b < n - self.p for b in range(self.k))
            for a, n in zip((i, j), self.shape[2:])  # noqa: B905
        ]
        return 1 / (inside[0] * inside[1])


class AvgPoolOverwrites(AvgPool2d):
    def backward(self, dout):
        dxp = np.zeros(self.shape)
        for i, j, window in self.windows(self.shape):
            dxp[window] = self.share(i, j) * dout[:, :, i, j, None, None]
        return dxp[:, :, self.p : self.shape[2] - self.p, self.p : self.shape[3] - self.p]


class AvgPoolPaddingForgotten(AvgPool2d):
    def backward(self, dout):
        self.p, p = 0, self.p
        dxp, self.p = super().backward(dout), p
        return dxp[:, :, : self.x.shape[2], : self.x.shape[3]]


class GlobalAvgPoolNoMean:
    def forward(self, x):
        self.shape = x.shape
        return x.mean(axis=(2, 3))

    def backward(self, dout):
        return np.ones(self.shape) * dout[:, :, None, None]


class BatchNorm2d:
    """Correct."""

    def __init__(self, num_features, eps=1e-5):
        self.params = {"gamma": np.ones(num_features), "beta": np.zeros(num_features)}
        self.grads, self.eps = {}, eps

    def forward(self, x):
        axes = (0, 2, 3)
        self.std = np.sqrt(x.var(axis=axes, keepdims=True) + self.eps)
        self.x_hat = (x - x.mean(axis=axes, keepdims=True)) / self.std
        gamma, beta = (self.params[name][:, None, None] for name in ("gamma", "beta"))
        return gamma * self.x_hat + beta

    def means(self, g):
        axes = (0, 2, 3)
        return g.mean(axis=axes, keepdims=True), (g * self.x_hat).mean(axis=axes, keepdims=True)

    def backward(self, dout):
        self.grads["gamma"] = (dout * self.x_hat).sum(axis=(0, 2, 3))
        self.grads["beta"] = dout.sum(axis=(0, 2, 3))
        g = dout * self.params["gamma"][:, None, None]
        mean, slope = self.means(g)
        return (g - mean - self.x_hat * slope) / self.std


class BatchNorm2dOverTheBatch(BatchNorm2d):
    def means(self, g):
        return g.mean(axis=0), (g * self.x_hat).mean(axis=0)


class BatchNorm2dDividedByN(BatchNorm2d):
    def means(self, g):
        mean, slope = super().means(g)
        pixels = g.shape[2] * g.shape[3]
        return pixels * mean, pixels * slope


class BatchNorm2dNoMeanPath(BatchNorm2d):
    def means(self, g):
        return 0, super().means(g)[1]


class BatchNorm2dNoVariancePath(BatchNorm2d):
    def means(self, g):
        return super().means(g)[0], 0


class BatchNorm2dGammaOverTheBatch(BatchNorm2d):
    def backward(self, dout):
        dx = super().backward(dout)
        self.grads["gamma"] = (dout * self.x_hat).sum(axis=0)
        return dx


class ConvChannelsLastOverwrites:
    """Images (N, H, W, C), weights (rows, columns, in, out), as in Keras."""

    def __init__(self, in_channels, out_channels, kernel_size):
        self.W = np.ones((kernel_size, kernel_size, in_channels, out_channels))

    def forward(self, x):
        self.x, k = x, len(self.W)
        if x.shape[3] != self.W.shape[2]:
            raise ValueError("channels last are expected")
        n, h, w, _ = x.shape
        out = np.zeros((n, h - k + 1, w - k + 1, self.W.shape[3]))
        for i in range(h - k + 1):
            for j in range(w - k + 1):
                out[:, i, j] = np.tensordot(x[:, i : i + k, j : j + k], self.W, 3)
        return out

    def backward(self, dout):
        dx, self.dW, k = np.zeros_like(self.x), np.zeros_like(self.W), len(self.W)
        for i in range(dout.shape[1]):
            for j in range(dout.shape[2]):
                here = np.s_[:, i : i + k, j : j + k]
                self.dW += np.tensordot(self.x[here], dout[:, i, j], (0, 0))
                dx[here] = np.einsum("no,ijco->nijc", dout[:, i, j], self.W)
        return dx


CORRECT = ("Conv2d", "MaxPool2d", "AvgPool2d", "BatchNorm2d")
MISTAKES = {
    "ConvTransposedKernel": ("transposed-kernel", "x"),
    "ConvFlippedKernel": ("flipped-kernel", "x"),
    "ConvFlippedKernelGradient": ("flipped-kernel", "weight"),
    "ConvTransposedKernelGradient": ("transposed-kernel", "weight"),
    "ConvPaddingNotCutOff": ("padding-forgotten", "x"),
    "ConvPaddingForgotten": ("padding-forgotten", "x"),
    "ConvWeightWithoutPadding": ("padding-forgotten", "weight"),
    "ConvStrideForgotten": ("stride-forgotten", "x"),
    "ConvStrideForgottenInWeight": ("stride-forgotten", "weight"),
    "ConvDilationForgotten": ("dilation-forgotten", "x"),
    "ConvOverwrites": ("overlap-overwritten", "x"),
    "ConvFancyIndexAddsOnce": ("overlap-overwritten", "x"),
    "ConvLoopsOverwrite": ("overlap-overwritten", "x"),
    "ConvLoopsWeightOverwritten": ("missing-batch-sum", "W"),
    "ConvBiasOverFilters": ("wrong-sum-axis", "bias"),
    "ConvBiasMeanOfPixels": ("extra-1/(H·W)", "bias"),
    "ConvBiasNotOverPixels": ("missing-batch-sum", "bias"),
    "ConvGroupsInterleaved": ("groups-mixed", "x"),
    "ConvGroupsMixedInWeight": ("groups-mixed", "weight"),
    "ConvRowsOfChannels": ("axes-exchanged", "weight"),
    "ConvChannelsForRows": ("axes-exchanged", "x"),
    "ConvChannelsExchanged": ("channels-exchanged", "x"),
    "ConvWeightMeanOfBatch": ("extra-1/N", "weight"),
    "ConvWeightOfTheLastImage": ("missing-batch-sum", "weight"),
    "ConvChannelsLastOverwrites": ("overlap-overwritten", "x"),
    "MaxPoolOverwrites": ("overlap-overwritten", "x"),
    "MaxPoolWindowOverwritten": ("overlap-overwritten", "x"),
    "MaxPoolMaskOfTies": ("tied-entries", "x"),
    "MaxPoolTiesGetNothing": ("tied-entries", "x"),
    "MaxPoolFirstEntry": ("wrong-entry", "x"),
    "MaxPoolMinimum": ("wrong-entry", "x"),
    "MaxPoolRowsForColumns": ("transposed-kernel", "x"),
    "MaxPoolTwice": ("constant-factor", "x"),
    "MaxPoolToAll": ("missing-mask", "x"),
    "MaxPoolStrideForgotten": ("stride-forgotten", "x"),
    "AvgPoolNoMean": ("missing-1/(kH·kW)", "x"),
    "AvgPoolOverSide": ("constant-factor", "x"),
    "AvgPoolCountsTheImage": ("wrong-count", "x"),
    "AvgPoolOverwrites": ("overlap-overwritten", "x"),
    "AvgPoolPaddingForgotten": ("padding-forgotten", "x"),
    "GlobalAvgPoolNoMean": ("missing-1/(H·W)", "x"),
    "BatchNorm2dOverTheBatch": ("wrong-mean", "x"),
    "BatchNorm2dDividedByN": ("wrong-mean", "x"),
    "BatchNorm2dNoMeanPath": ("mean-path-missing", "x"),
    "BatchNorm2dNoVariancePath": ("variance-path-missing", "x"),
    "BatchNorm2dGammaOverTheBatch": ("missing-batch-sum", "gamma"),
}
