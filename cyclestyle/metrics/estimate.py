"""Estimates with 95 % intervals: values computed from a sample of images, and bootstrap replicates of these values."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_TAIL = 0.025  # share of the replicates below the interval, and above it
_BLOCK_ENTRIES = 2**22  # entries of the matrix of resampled values that are in memory at a time: 32 MB


class Estimate(NamedTuple):
    """Value of a score with its 95 % bootstrap interval."""

    value: float
    low: float  # lower end of the interval; NaN if there are too few images for an interval
    high: float  # upper end of the interval; NaN if there are too few images for an interval


class Replicated(NamedTuple):
    """Value of a score, and the values of the same score for resampled sets of images (replicates)."""

    value: float
    replicates: Tensor  # (replicates,) float64; empty if there are too few images to resample

    def estimate(self) -> Estimate:
        """Return the value and its interval, from the 2.5 % quantile to the 97.5 % quantile of the replicates.

        Without replicates, both ends of the interval are NaN.
        """
        if not len(self.replicates):
            return Estimate(self.value, math.nan, math.nan)
        ordered = self.replicates.sort().values
        position = _TAIL * (len(ordered) - 1)  # quantiles are members of the list: infinite values need no arithmetic
        return Estimate(self.value, ordered[math.floor(position)].item(), ordered[-1 - math.floor(position)].item())


def mean_estimate(values: Tensor, *, generator: torch.Generator, replicates: int = 1000) -> Estimate:
    """Estimate the mean of a score over images; the interval is that of a bootstrap over the images.

    With a single image, the interval is NaN.

    Args:
        values: (n,), one value for each image. Infinite values, such as the PSNR of identical images, are allowed.
        generator: random numbers for the resampling, on the CPU.
        replicates: number of resampled sets.

    Raises:
        ValueError: there are no values, or a value is NaN.
    """
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values have shape {tuple(values.shape)}: one value for each of one or more images is needed")
    if values.isnan().any():
        raise ValueError(f"values contain NaN for {int(values.isnan().sum())} of {len(values)} images")
    values = values.detach().to("cpu", torch.float64)
    if len(values) < 2:
        return Replicated(values.mean().item(), values[:0]).estimate()

    means, rows = [], max(1, _BLOCK_ENTRIES // len(values))
    for start in range(0, replicates, rows):
        shape = (min(rows, replicates - start), len(values))
        means.append(values[torch.randint(len(values), shape, generator=generator)].mean(1))
    return Replicated(values.mean().item(), torch.cat(means)).estimate()


def mean(scores: Sequence[Replicated]) -> Replicated:
    """Compute the mean of several scores, such as those of both directions.

    Replicate i of the mean is the mean of the scores' replicates i. The result has as many replicates as the score with
    the fewest.
    """
    replicates = torch.stack(_shortest(scores)).mean(0)
    return Replicated(math.fsum(score.value for score in scores) / len(scores), replicates)


def difference(first: Replicated, second: Replicated) -> Replicated:
    """Compute the difference `first` - `second` of two scores.

    Replicate i of the difference is the difference of both scores' replicates i. The interval is that of a paired
    comparison if both scores used the same resampled images: sets of equal sizes in the same order, and generators with
    equal seeds. If the interval does not contain 0, the difference exceeds the noise of the sampling.
    """
    left, right = _shortest((first, second))
    return Replicated(first.value - second.value, left - right)


def resampling_weights(num_images: int, replicates: int, *, generator: torch.Generator) -> Tensor:
    """Resample a set of `num_images` images with replacement; return how often each image occurs in each resampled set.

    Every resampled set contains two different images or more, since scores over pairs of images need them: a set that
    contains a single image only is drawn again.

    Args:
        num_images: number of images in the set and in each resampled set. It must be 3 or more, unless `replicates` is
            0.
        replicates: number of resampled sets.
        generator: random numbers, on the CPU.

    Returns:
        (replicates, num_images) float64; each row adds up to `num_images`.
    """
    assert num_images > 2 or not replicates
    weights = torch.zeros(replicates, num_images, dtype=torch.float64)
    missing = torch.arange(replicates)
    while len(missing):
        drawn = torch.randint(num_images, (len(missing), num_images), generator=generator)
        ones = torch.ones(drawn.shape, dtype=torch.float64)
        weights[missing] = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, ones)
        missing = (weights.amax(1) == num_images).nonzero()[:, 0]
    return weights


def _shortest(scores: Sequence[Replicated]) -> list[Tensor]:
    """Return the replicates of each score; all are cut to the length of the shortest."""
    length = min(len(score.replicates) for score in scores)
    return [score.replicates[:length] for score in scores]
