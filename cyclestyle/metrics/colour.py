"""Colour statistics of images in CIELAB, and the distance between two sets."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_RGB_TO_XYZ = (  # IEC 61966-2-1, linear sRGB to CIE 1931 XYZ
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)


class ColourStatistics(NamedTuple):
    """What the colours of a set of pictures have in common."""

    mean: Tensor  # (3,) float64, of each channel over all pixels
    spread: Tensor  # (3,) float64, their standard deviation


class PixelStatistics:
    """Statistics of pixels that come bit by bit; every pixel counts the same, so that large pictures count for more."""

    def __init__(self) -> None:
        self._count = 0
        self._sum, self._squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Take in a picture (3, H, W) in any colour space."""
        flat = values.to(torch.float64).flatten(1)
        self._count += flat.shape[1]
        self._sum += flat.sum(1)
        self._squares += flat.square().sum(1)

    def statistics(self) -> ColourStatistics:
        """Of all that has been added."""
        assert self._count, "no picture was added"
        mean = self._sum / self._count
        return ColourStatistics(mean, (self._squares / self._count - mean.square()).clamp(min=0).sqrt())


class ColourMap(NamedTuple):
    """A straight line for each channel: value * gain + offset."""

    gain: Tensor  # (3,)
    offset: Tensor  # (3,), in levels of 0 to 255

    def __call__(self, pixels: Tensor) -> Tensor:
        """The picture with its colours mapped, rounded and clipped to uint8 again."""
        values = pixels.to(torch.float64) * self.gain[:, None, None] + self.offset[:, None, None]
        return values.round().clamp(0, 255).to(torch.uint8)


def lab(pixels: Tensor) -> Tensor:
    """CIE L*a*b* of sRGB pixels under D65, float64 (3, H, W); L* is 0 to 100, and greys have a* = b* = 0."""
    encoded = pixels.to(torch.float64) / 255
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)
    xyz = torch.einsum("xc,chw->xhw", matrix / matrix.sum(1, keepdim=True), linear)  # white is 1, 1, 1

    threshold = 6 / 29
    x, y, z = torch.where(xyz > threshold**3, xyz.pow(1 / 3), xyz / (3 * threshold**2) + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def colour_statistics(pictures: Iterable[Tensor]) -> ColourStatistics:
    """Mean and spread of L*, a* and b* over all pixels of a set."""
    pool = PixelStatistics()
    for picture in pictures:
        pool.add(lab(picture))
    return pool.statistics()


def colour_distance(x: ColourStatistics, y: ColourStatistics) -> float:
    """How far apart the colours of two sets are: the Euclidean distance of their six numbers, mean and spread of L*,
    a* and b*, in units of Lab (2 is just noticeable on uniform patches)."""
    return math.hypot(torch.dist(x.mean, y.mean).item(), torch.dist(x.spread, y.spread).item())


def global_colour_map(source: ColourStatistics, target: ColourStatistics) -> ColourMap:
    """The colour map that gives the pixels of one set the mean and the spread of another's, channel by channel.

    Args:
        source, target: of RGB values from 0 to 255.
    """
    gain = torch.where(source.spread > 0, target.spread / source.spread, torch.ones(3, dtype=torch.float64))
    return ColourMap(gain, target.mean - gain * source.mean)
