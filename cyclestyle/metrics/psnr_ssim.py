"""Pixel-wise similarity of two images, each uint8 (3, H, W) in sRGB.

`torchmetrics` is imported in the functions: its import takes seconds, and it imports matplotlib if that is installed.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

_WINDOW, _SIGMA = 11, 1.5  # px, width and standard deviation of the Gaussian window of SSIM
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as used by the authors of SSIM
_TILE = 64  # px; torchmetrics needs 4.8 kB for each pixel, which fit into the processor's cache for a tile


def psnr(x: Tensor, y: Tensor) -> float:
    """Compute the peak signal-to-noise ratio (PSNR) in dB over all channels; it is infinite for identical images."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(x.to(torch.float64), y.to(torch.float64), data_range=255.0).item()


def l1(x: Tensor, y: Tensor) -> float:
    """Compute the mean absolute difference over all channels and pixels, from 0 to 255."""
    from torchmetrics.functional.regression import mean_absolute_error

    return mean_absolute_error(x.to(torch.float64).flatten(), y.to(torch.float64).flatten()).item()


def ssim(x: Tensor, y: Tensor) -> float:
    """Compute the structural similarity (SSIM) of luminance, which is 1 for identical images.

    Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    The result is the mean over all positions of a Gaussian window, 11 x 11 px with sigma 1.5, inside the image. Along a
    side shorter than 11 px, the window is shortened to the side, so that SSIM is defined for every image.
    """
    luma = torch.tensor(_LUMA, dtype=torch.float64)
    first, second = (torch.einsum("c,chw->hw", luma, image.to(torch.float64)) for image in (x, y))
    height, width = first.shape
    if min(height, width) < _WINDOW:
        return _similarity_of_small(first, second)

    border = _WINDOW - 1
    total = 0.0
    for top in range(0, height - border, _TILE - border):
        for left in range(0, width - border, _TILE - border):
            tile = (slice(top, top + _TILE), slice(left, left + _TILE))
            total += _total_similarity(first[tile], second[tile])
    return total / ((height - border) * (width - border))


def _total_similarity(x: Tensor, y: Tensor) -> float:
    """Return the sum of the SSIM over all positions of the window inside a tile of an image.

    `x` and `y` are the luminance (H, W) of the tile in the two images.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, similarity = structural_similarity_index_measure(
        x[None, None], y[None, None], sigma=_SIGMA, data_range=255.0, return_full_image=True
    )
    border = _WINDOW // 2  # torchmetrics also centres the window on the border, and mirrors the image there
    return float(similarity[..., border:-border, border:-border].sum())


def _similarity_of_small(x: Tensor, y: Tensor) -> float:
    """Return the SSIM of two images (H, W) with a side shorter than the window.

    The window is shortened to this side; torchmetrics cannot do this.
    """
    mean_x, mean_y, square_x, square_y, product = _windowed(torch.stack([x, y, x * x, y * y, x * y]))
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
