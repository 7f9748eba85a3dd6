"""Colour statistics of sets of images in CIELAB, the distance between two sets, and colour maps."""

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
    """Mean and standard deviation of each colour channel over all pixels of a set of images."""

    mean: Tensor  # (3,) float64, mean of each channel over all pixels
    spread: Tensor  # (3,) float64, standard deviation of each channel


class PixelStatistics:
    """Accumulator for colour statistics; every pixel counts equally, so that large images have more weight."""

    def __init__(self) -> None:
        self._count = 0
        self._sum, self._squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Add the pixels of an image (3, H, W) of any dtype; all images must be in the same colour space."""
        flat = values.to(torch.float64).flatten(1)
        self._count += flat.shape[1]
        self._sum += flat.sum(1)
        self._squares += flat.square().sum(1)

    def statistics(self) -> ColourStatistics:
        """Return the statistics of all images added so far."""
        assert self._count, "no image was added"
        mean = self._sum / self._count
        return ColourStatistics(mean, (self._squares / self._count - mean.square()).clamp(min=0).sqrt())


class ColourMap(NamedTuple):
    """Colour map that replaces each RGB value, from 0 to 255, by value * gain + offset.

    Each of the three channels has its own gain and offset.
    """

    gain: Tensor  # (3,)
    offset: Tensor  # (3,), for pixel values from 0 to 255

    def __call__(self, pixels: Tensor) -> Tensor:
        """Apply the map to an RGB image (3, H, W) of any dtype, with values from 0 to 255; return uint8 (3, H, W).

        Results are rounded, and clipped to 0..255.
        """
        values = pixels.to(torch.float64) * self.gain[:, None, None] + self.offset[:, None, None]
        return values.round().clamp(0, 255).to(torch.uint8)


def lab(pixels: Tensor) -> Tensor:
    """Convert uint8 sRGB pixels (3, H, W) to CIE L*a*b* (D65), float64: L* is 0 to 100; greys have a* = b* = 0."""
    encoded = pixels.to(torch.float64) / 255
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)
    xyz = torch.einsum("xc,chw->xhw", matrix / matrix.sum(1, keepdim=True), linear)  # white is 1, 1, 1

    threshold = 6 / 29
    x, y, z = torch.where(xyz > threshold**3, xyz.pow(1 / 3), xyz / (3 * threshold**2) + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def colour_statistics(images: Iterable[Tensor]) -> ColourStatistics:
    """Compute mean and standard deviation of L*, a*, b* over all pixels of `images`, each uint8 (3, H, W) in sRGB."""
    pixels = PixelStatistics()
    for image in images:
        pixels.add(lab(image))
    return pixels.statistics()


def colour_distance(x: ColourStatistics, y: ColourStatistics) -> float:
    """Compute the Euclidean distance between the L*a*b* statistics `x` and `y` of two sets of images.

    It is the distance between vectors of six numbers: the means and standard deviations of L*, a* and b*. Its unit is
    that of L*a*b*: between two uniformly coloured patches, a distance of 2 is just noticeable.
    """
    return math.hypot(torch.dist(x.mean, y.mean).item(), torch.dist(x.spread, y.spread).item())


def global_colour_map(source: ColourStatistics, target: ColourStatistics) -> ColourMap:
    """Return the map that changes the mean and standard deviation of each channel from `source` to `target`.

    A channel with a standard deviation of 0 is only shifted to the target mean.

    Args:
        source, target: colour statistics of two sets of images, computed from RGB values from 0 to 255.
    """
    gain = torch.where(source.spread > 0, target.spread / source.spread, torch.ones(3, dtype=torch.float64))
    return ColourMap(gain, target.mean - gain * source.mean)
