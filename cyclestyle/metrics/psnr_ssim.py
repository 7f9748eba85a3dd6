"""Pixel-wise similarity of two images, each uint8 (3, H, W) in sRGB."""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d

_WINDOW, _SIGMA = 11, 1.5  # px, width and standard deviation of the Gaussian window of SSIM
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as used by the authors of SSIM


def psnr(x: Tensor, y: Tensor) -> float:
    """Compute the peak signal-to-noise ratio (PSNR) in dB over all channels; it is infinite for identical images."""
    error = (x.to(torch.float64) - y.to(torch.float64)).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(x: Tensor, y: Tensor) -> float:
    """Compute the structural similarity (SSIM) of luminance, which is 1 for identical images.

    Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    The result is the mean over all positions of a Gaussian window, 11 x 11 px with sigma 1.5, inside the image. Along a
    side shorter than 11 px, the window is shortened to the side, so that SSIM is defined for every image.
    """
    luma = torch.tensor(_LUMA, dtype=torch.float64)
    first, second = (torch.einsum("c,chw->hw", luma, image.to(torch.float64)) for image in (x, y))
    maps = torch.stack([first, second, first * first, second * second, first * second])
    mean_x, mean_y, square_x, square_y, product = _windowed(maps)

    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    )
    return float(similarity.mean())


def _windowed(maps: Tensor) -> Tensor:
    """Return the weighted means of each of `maps` (N, H, W) in the Gaussian window, at all positions inside the map."""
    height, width = maps.shape[-2:]
    rows, columns = _gaussian(min(_WINDOW, height)), _gaussian(min(_WINDOW, width))
    return conv2d(conv2d(maps[:, None], rows[None, None, :, None]), columns[None, None, None, :])[:, 0]


def _gaussian(length: int) -> Tensor:
    """Return Gaussian weights, shape (length,), which add up to 1."""
    distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    weights = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    return weights / weights.sum()
