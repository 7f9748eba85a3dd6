"""Layers of convolutional networks in NumPy, in float64: independent of PyTorch and of the package."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def zeros_around(x: Array, top: int, bottom: int, left: int, right: int) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))


def conv(x: Array, kernel: Array, bias: Array | None = None, *, stride: int = 1) -> Array:
    """Convolve `x` (N, C, H, W) with `kernel` (D, C, h, w) without padding."""
    height, width = kernel.shape[2:]
    total = 0.0
    for i in range(height):
        for j in range(width):
            seen = _seen(x, i, j, height, width, stride)
            total = total + np.einsum("nchw,dc->ndhw", seen, kernel[:, :, i, j], optimize=True)
    return total if bias is None else total + bias.reshape(1, -1, 1, 1)


def depthwise(x: Array, kernel: Array, *, stride: int = 1) -> Array:
    """Convolve each channel of `x` (N, C, H, W) with its own kernel (C, 1, h, w) without padding."""
    height, width = kernel.shape[2:]
    total = 0.0
    for i in range(height):
        for j in range(width):
            total = total + _seen(x, i, j, height, width, stride) * kernel[:, 0, i, j].reshape(1, -1, 1, 1)
    return total


def maximum(x: Array, side: int, *, stride: int) -> Array:
    """Maxima of squares of `side` px, where the last square may exceed the image if `stride` is 2."""
    if stride > 1:
        rest = [-size % stride for size in x.shape[2:]]
        x = np.pad(x, ((0, 0), (0, 0), (0, rest[0]), (0, rest[1])), constant_values=-np.inf)
    return np.max([_seen(x, i, j, side, side, stride) for i in range(side) for j in range(side)], axis=0)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def blur(x: Array) -> Array:
    """Blur by [1, 2, 1] / 4 in both directions, and keep every second pixel; 2 px are reflected at the edges."""
    x = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    x = (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4
    x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
    return x[:, :, ::2, ::2]


def _seen(x: Array, i: int, j: int, height: int, width: int, stride: int) -> Array:
    """Return the pixels at offset (i, j) of all windows of `height` x `width` px."""
    rows, columns = x.shape[2] - height + 1, x.shape[3] - width + 1
    return x[:, :, i : i + rows : stride, j : j + columns : stride]
