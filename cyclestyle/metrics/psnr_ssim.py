"""Measures of pictures by their pixels; a picture is uint8 (3, H, W), RGB as in sRGB, here as everywhere."""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d

_WINDOW, _SIGMA = 11, 1.5  # of SSIM, px
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, which SSIM's authors used


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all channels; infinite for equal pictures."""
    error = (x.to(torch.float64) - y.to(torch.float64)).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(x: Tensor, y: Tensor) -> float:
    """Structural similarity of luminance, 1 for equal pictures.

    Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural Similarity, 2004: a
    Gaussian window of 11 px with sigma 1.5, at all places where it fits in. On a side shorter than 11 px it is cut to
    that side, so that every picture has a value.
    """
    luma = torch.tensor(_LUMA, dtype=torch.float64)
    first, second = (torch.einsum("c,chw->hw", luma, picture.to(torch.float64)) for picture in (x, y))
    maps = torch.stack([first, second, first * first, second * second, first * second])
    mean_x, mean_y, square_x, square_y, product = _windowed(maps)

    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    )
    return float(similarity.mean())


def _windowed(maps: Tensor) -> Tensor:
    """Means of maps (N, H, W) under the Gaussian window, at all places where it fits in."""
    height, width = maps.shape[-2:]
    rows, columns = _gaussian(min(_WINDOW, height)), _gaussian(min(_WINDOW, width))
    return conv2d(conv2d(maps[:, None], rows[None, None, :, None]), columns[None, None, None, :])[:, 0]


def _gaussian(length: int) -> Tensor:
    """Weights that sum to 1, (length,)."""
    distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    weights = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    return weights / weights.sum()
