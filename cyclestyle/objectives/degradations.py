"""Noise, blur and JPEG compression of images, in PyTorch, and their random choice for training.

All three functions return images of the same shape, dtype and device as their input. Gradients with respect to the
input flow through them. Rounding and clipping to the range of images have a gradient of 0 or none at all; the backward
pass treats both as the identity (a straight-through estimator), so that gradients reach every pixel.

The JPEG functions follow ITU-T T.81 (quantization tables of annex K) and JFIF, with the choices of libjpeg, which most
programs use: its scale of qualities, and half the resolution of the chroma planes in both axes.
"""

import functools
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from cyclestyle.errors import CommandError
from cyclestyle.rng import rng_for

# Degradations at strength 1, the largest one; weaker ones are proportional.
LARGEST_NOISE = 25.0  # standard deviation in 1/255 of the range from black to white
LARGEST_BLUR = 3.0  # standard deviation of the Gaussian in px
LOWEST_QUALITY = 10  # JPEG quality; strength 0 is quality 100


def noise(images: Tensor, sigma: float, *, random: np.random.Generator) -> Tensor:
    """Add Gaussian noise to every value of the images, then clip the sum to [-1, 1].

    Args:
        images: images (..., C, H, W) in [-1, 1].
        sigma: standard deviation of the noise in 1/255 of the range from black to white, 0 or more.
        random: source of the noise. Equal states give equal noise on every device.
    """
    values = random.standard_normal(tuple(images.shape), dtype=np.float32) * np.float32(sigma / 127.5)
    return _clipped(images + torch.from_numpy(values).to(images), -1.0, 1.0)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images with a Gaussian; edge pixels are repeated outside the image.

    Args:
        images: images (N, C, H, W) in any range.
        sigma: standard deviation of the Gaussian in px, 0 or more; the kernel extends to 3 standard deviations.
    """
    if sigma <= 0:
        return images
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (weights / weights.sum()).to(images).view(1, 1, 1, -1)

    planes = images.flatten(0, 1).unsqueeze(1)  # (N * C, 1, H, W)
    planes = conv2d(_extended(planes, -1, before=radius, after=radius), kernel)
    planes = conv2d(_extended(planes, -2, before=radius, after=radius), kernel.mT)
    return planes.view(images.shape)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compress images as JPEG files do, and decode them again.

    The result is close to that of libjpeg, whose integer arithmetic rounds some values to the other neighbour: a PSNR
    of 40 dB or more between the two.

    Args:
        images: images (N, C, H, W) in [-1, 1]; C is 3 (sRGB) or 1 (grey). They are first rounded to 8 bits.
        quality: quality of libjpeg, from 1 (smallest file) to 100.

    Returns:
        The decoded images: multiples of 1/127.5 in [-1, 1].
    """
    assert 1 <= quality <= 100
    assert images.shape[-3] in (1, 3)
    height, width = images.shape[-2:]
    levels = _to_8_bits((images.to(torch.promote_types(images.dtype, torch.float32)) + 1) * 127.5)
    # The coder works on squares of 16 px: 2 x 2 blocks of luma, and one block of each chroma plane.
    levels = _extended(_extended(levels, -2, after=-height % 16), -1, after=-width % 16)
    if images.shape[-3] == 1:
        return _to_images(_coded(levels, LUMA, quality)[..., :height, :width], images.dtype)

    ycc = _to_ycc(levels)
    luma = _coded(ycc[..., :1, :, :], LUMA, quality)
    chroma = _coded(_halved(ycc[..., 1:, :, :]), CHROMA, quality)
    # Edges of the chroma planes are repeated when they are enlarged, so the padding is cut off before.
    chroma = chroma[..., : -(-height // 2), : -(-width // 2)]
    chroma = _rounded(_doubled(_doubled(chroma, -2), -1))
    decoded = _to_rgb(torch.cat([planes[..., :height, :width] for planes in (luma, chroma)], dim=-3))
    return _to_images(_to_8_bits(decoded), images.dtype)


class RandomDegradations:
    """Degrades training images at random: each one stays clean, or gets noise, blur or JPEG compression.

    Each of the four has a probability of 1/4. The strength of the degradation is uniform between 0 and `robust`, and
    the degradation is proportional to it: at strength 1, noise has a standard deviation of `LARGEST_NOISE` / 255, blur
    one of `LARGEST_BLUR` px, and JPEG files have quality `LOWEST_QUALITY`. All random numbers depend only on the seed,
    the domain and the sample index, so that an image is degraded equally on any rank, in any micro-batch, and after a
    resume.

    Args:
        robust: largest strength, from 0 (off) to 1; config key `augment.robust`.
        seed: the run's seed.

    Raises:
        CommandError: `robust` is below 0 or above 1.
    """

    def __init__(self, robust: float, *, seed: int) -> None:
        if not 0 <= robust <= 1:
            raise CommandError(f"augment.robust={robust:g}: give a number from 0 (off) to 1")
        self.robust, self.seed = robust, seed

    def __call__(self, images: Tensor, draws: list[int], *, domain: Literal["a", "b"]) -> Tensor:
        """Return degraded copies of the images.

        Args:
            images: images (N, C, H, W) in [-1, 1].
            draws: sample index of each image: the number of its training pair in the run.
            domain: domain of the images.
        """
        degraded = images.clone()  # keeps the memory format
        for index, draw in enumerate(draws):
            random = rng_for(self.seed, f"degrade {domain}", draw)
            degraded[index] = self._degraded(images[index : index + 1], random)[0]
        return degraded

    def _degraded(self, image: Tensor, random: np.random.Generator) -> Tensor:
        kind, strength = int(random.integers(4)), self.robust * random.random()
        if kind == 1:
            return noise(image, strength * LARGEST_NOISE, random=random)
        if kind == 2:
            return blur(image, strength * LARGEST_BLUR)
        if kind == 3:
            return jpeg(image, round(100 - strength * (100 - LOWEST_QUALITY)))
        return image


# Quantization tables of ITU-T T.81, tables K.1 and K.2: rows are vertical frequencies, columns horizontal ones.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
Table = tuple[tuple[int, ...], ...]


def _coded(planes: Tensor, table: Table, quality: int) -> Tensor:
    """Quantize the cosine transform of all blocks of 8 x 8 px, and transform them back.

    Args:
        planes: planes (N, C, H, W) in 0..255; H and W are multiples of 8.
        table: quantization table at quality 50.

    Returns:
        Whole numbers in 0..255.
    """
    steps = torch.tensor(_quantization_steps(table, quality)).to(planes)[:, None, :]  # (8, 1, 8)
    transform = torch.tensor(_cosines()).to(planes)
    *outer, height, width = planes.shape
    blocks = (planes - 128).reshape(*outer, height // 8, 8, width // 8, 8)
    spectrum = torch.einsum("ui,...aibj,vj->...aubv", transform, blocks, transform)
    spectrum = _rounded(spectrum / steps) * steps
    blocks = torch.einsum("ui,...aubv,vj->...aibj", transform, spectrum, transform)
    return _to_8_bits(blocks.reshape(planes.shape) + 128)


@functools.cache
def _quantization_steps(table: Table, quality: int) -> list[list[int]]:
    """Scale a quantization table as libjpeg does: quality 50 is the table itself, 100 is 1 everywhere."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [[min(max((step * percent + 50) // 100, 1), 255) for step in row] for row in table]


@functools.cache
def _cosines() -> list[list[float]]:
    """Matrix of the orthonormal cosine transform of 8 values (T.81, section A.3.3): rows are frequencies."""
    return [
        [math.sqrt((1 if u == 0 else 2) / 8) * math.cos((2 * i + 1) * u * math.pi / 16) for i in range(8)]
        for u in range(8)
    ]


def _to_ycc(levels: Tensor) -> Tensor:
    """Convert RGB (N, 3, H, W) to luma and two chroma planes (JFIF: ITU-R BT.601, full range), rounded to 8 bits."""
    red, green, blue = levels.unbind(-3)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return _to_8_bits(torch.stack([luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128], dim=-3))


def _to_rgb(ycc: Tensor) -> Tensor:
    """Invert `_to_ycc`, without rounding."""
    luma, blueness, redness = ycc.unbind(-3)
    red, blue = luma + 1.402 * (redness - 128), luma + 1.772 * (blueness - 128)
    return torch.stack([red, (luma - 0.299 * red - 0.114 * blue) / 0.587, blue], dim=-3)


def _to_images(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert values in 0..255 to images in [-1, 1]."""
    return (levels / 127.5 - 1).to(dtype)


def _extended(planes: Tensor, dim: int, *, before: int = 0, after: int = 0) -> Tensor:
    """Pad a dimension with `before` copies of its first value and `after` copies of its last value.

    Unlike `torch.nn.functional.pad`, the backward pass on GPUs is deterministic.
    """
    if not before and not after:
        return planes
    size = planes.shape[dim]
    return planes.index_select(dim, torch.arange(-before, size + after, device=planes.device).clamp(0, size - 1))


def _halved(planes: Tensor) -> Tensor:
    """Average 2 x 2 values and round them; like libjpeg, round halves down in even columns and up in odd ones."""
    means = avg_pool2d(planes, 2)
    bias = torch.tensor([0.25, 0.5]).to(planes).repeat(means.shape[-1] // 2)  # the means are multiples of 1/4
    return _straight_through((means.detach() + bias).floor(), means)


def _doubled(planes: Tensor, dim: int) -> Tensor:
    """Enlarge planes to twice the size along dimension -2 or -1.

    Each value becomes two: 3/4 of it plus 1/4 of the previous value, and 3/4 of it plus 1/4 of the next.
    This is linear interpolation, as by libjpeg ("fancy upsampling").
    """
    size = planes.shape[dim]
    extended = _extended(planes, dim, before=1, after=1)
    halves = [0.75 * planes + 0.25 * extended.narrow(dim, start, size) for start in (0, 2)]
    return torch.stack(halves, dim=planes.dim() + dim + 1).flatten(planes.dim() + dim, planes.dim() + dim + 1)


def _to_8_bits(levels: Tensor) -> Tensor:
    """Round to whole numbers in 0..255; the gradient is that of the identity."""
    return _straight_through(levels.detach().round().clamp(0, 255), levels)


def _rounded(values: Tensor) -> Tensor:
    """Round to whole numbers; the gradient is that of the identity."""
    return _straight_through(values.detach().round(), values)


def _clipped(values: Tensor, low: float, high: float) -> Tensor:
    """Clip to a range; the gradient is that of the identity."""
    return _straight_through(values.detach().clamp(low, high), values)


def _straight_through(result: Tensor, source: Tensor) -> Tensor:
    """Return `result`; its gradient goes to `source` unchanged."""
    return result + (source - source.detach()) if source.requires_grad else result
