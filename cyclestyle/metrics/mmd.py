"""Maximum mean discrepancy (MMD) between two sets of images, with bootstrap replicates.

Gretton, Borgwardt, Rasch, Schölkopf, Smola: A Kernel Two-Sample Test, 2012, lemma 6: the unbiased estimate of MMD².
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cyclestyle.metrics.estimate import Replicated, resampling_weights

Kernel = Callable[[Tensor, Tensor], Tensor]  # kernel values (n, m) of features (n, d) and (m, d), float64
_BLOCK_ENTRIES = 2**22  # entries of a block of a kernel matrix: 32 MB
_COLUMNS = 8192  # features that are converted to float64 at a time


class Resampling:
    """Bootstrap weights of the images of two sets; one object serves all kernels, so that all use the same resampling.

    The weight of an image is the number of its copies in a set. The first row of the weights belongs to the original
    sets and is 1 everywhere. Each other row belongs to a resampled pair of sets.

    Args:
        num_x, num_y: numbers of images. With fewer than three images in a set, there are no resampled sets.
        replicates: number of resampled pairs of sets.
        generator: random numbers, on the CPU.

    Attributes:
        x, y: weights (1 + replicates, num_x) and (1 + replicates, num_y), float64.
    """

    def __init__(self, num_x: int, num_y: int, *, replicates: int, generator: torch.Generator) -> None:
        def weights(num_images: int) -> Tensor:
            drawn = resampling_weights(num_images, replicates if min(num_x, num_y) > 2 else 0, generator=generator)
            return torch.cat([torch.ones(1, num_images, dtype=torch.float64), drawn])

        self.x, self.y = weights(num_x), weights(num_y)  # (1 + replicates, num_x), (1 + replicates, num_y)


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel, *, resampling: Resampling) -> Tensor:
    """Compute the unbiased squared MMD of two sets of images, and of each resampled pair of these sets.

    It is mean k(x, x') + mean k(y, y') - 2 mean k(x, y): means of the kernel k over pairs within `x`, within `y` and
    between them. Pairs of an image with itself are left out. In resampled sets, pairs of two copies of one image are
    left out too. Such pairs have the largest kernel values: with them, resampled sets would have a larger MMD than the
    original sets.

    Args:
        x, y: features (n, d) and (m, d), one row per image; n and m must be 2 or more.
        kernel: function that returns the kernel values (n, m) of features (n, d) and (m, d). It is called with blocks
            of rows, so the whole kernel matrix is never in memory.
        resampling: weights of the n and m images.

    Returns:
        (1 + replicates,) float64; the first value belongs to the original sets. Values can be negative.
    """
    within = _within(x, resampling.x, kernel) + _within(y, resampling.y, kernel)
    return within - 2 * _between(x, y, resampling, kernel)


def replicated(values: Tensor) -> Replicated:
    """Convert a result of `squared_mmd` to a value, that of the original sets, and the replicates.

    `values` has the shape (1 + replicates,).
    """
    return Replicated(values[0].item(), values[1:])


def products(x: Tensor, y: Tensor) -> Tensor:
    """Compute the dot products (n, m) of features (n, d) and (m, d) in float64.

    To save memory, only some of the d columns are converted to float64 at a time.
    """
    total = torch.zeros(len(x), len(y), dtype=torch.float64)
    for start in range(0, x.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        total.addmm_(x[:, columns].to(torch.float64), y[:, columns].to(torch.float64).T)
    return total


def check_features(x: Tensor, y: Tensor, *, min_images: int, names: tuple[str, str] = ("x", "y")) -> None:
    """Check the features (n, d) and (m, d) of two sets of images; the message of an error contains their `names`.

    Raises:
        ValueError: a shape is wrong, a set has fewer than `min_images` images, or a value is infinite or NaN.
    """
    for name, features in zip(names, (x, y), strict=True):
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(f"features {name} have shape {tuple(features.shape)}: (images, features) is needed")
        if len(features) < min_images:
            raise ValueError(f"features {name} are those of {len(features)} images: {min_images} or more are needed")
        if damaged := int((~features.isfinite()).any(1).sum()):
            raise ValueError(f"features {name} contain infinite values or NaN for {damaged} of {len(features)} images")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} has {x.shape[1]} features per image, {names[1]} {y.shape[1]}: equal numbers are needed"
        )


def _within(x: Tensor, weights: Tensor, kernel: Kernel) -> Tensor:
    """Return the weighted means (1 + replicates,) of the kernel over all pairs of two different images of one set.

    Args:
        x: features (n, d).
        weights: (1 + replicates, n), see `Resampling`. The weight of a pair is the product of its images' weights.
        kernel: see `squared_mmd`.
    """
    total = torch.zeros(len(weights), dtype=torch.float64)
    for start, stop in _blocks(len(x), len(x)):
        values = kernel(x[start:stop], x)
        values[torch.arange(stop - start), torch.arange(start, stop)] = 0
        total += ((weights[:, start:stop] @ values) * weights).sum(1)
    return total / (weights.sum(1).square() - weights.square().sum(1))


def _between(x: Tensor, y: Tensor, resampling: Resampling, kernel: Kernel) -> Tensor:
    """Return the weighted means (1 + replicates,) of the kernel over all pairs of an image of `x` and one of `y`.

    The weight of a pair is the product of its images' weights in `resampling`. For the other arguments, see
    `squared_mmd`.
    """
    total = torch.zeros(len(resampling.x), dtype=torch.float64)
    for start, stop in _blocks(len(x), len(y)):
        total += ((resampling.x[:, start:stop] @ kernel(x[start:stop], y)) * resampling.y).sum(1)
    return total / (len(x) * len(y))


def _blocks(num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """Divide a kernel matrix into blocks of rows, to save memory; return (first row, row after the last) of each."""
    rows = max(1, _BLOCK_ENTRIES // num_columns)
    return [(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]
