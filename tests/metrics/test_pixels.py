"""Pixel metrics, compared with scikit-image as an independent implementation."""

import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from cyclestyle.metrics import colour, psnr_ssim
from cyclestyle.metrics.colour import ColourStatistics, PixelStatistics

LUMA = np.array([0.299, 0.587, 0.114])


def random_image(height: int, width: int, *, seed: int = 0, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def rgb_statistics(arrays: list[np.ndarray]) -> ColourStatistics:
    pool = PixelStatistics()
    for array in arrays:
        pool.add(tensor(array))
    return pool.statistics()


def test_psnr_agrees_with_scikit_image() -> None:
    x, y = random_image(19, 23), random_image(19, 23, seed=1)
    # torchmetrics computes the logarithms of 10 and of the largest value in float32
    assert psnr_ssim.psnr(tensor(x), tensor(y)) == pytest.approx(peak_signal_noise_ratio(x, y), rel=1e-7)


def test_l1_is_the_mean_absolute_difference() -> None:
    x, y = random_image(7, 9), random_image(7, 9, seed=1)
    assert psnr_ssim.l1(tensor(x), tensor(y)) == pytest.approx(np.abs(x.astype(float) - y).mean(), rel=1e-12)
    assert psnr_ssim.l1(tensor(x), tensor(x)) == 0


def test_psnr_of_identical_images_is_infinite() -> None:
    assert psnr_ssim.psnr(tensor(random_image(3, 4)), tensor(random_image(3, 4))) == math.inf


@pytest.mark.parametrize(("height", "width"), [(11, 11), (11, 30), (64, 48), (65, 130)])  # in tiles
def test_ssim_agrees_with_scikit_image(height: int, width: int) -> None:
    x = random_image(height, width)
    y = (x.astype(float) * 0.6 + random_image(height, width, seed=1) * 0.3).astype(np.uint8)
    expected = structural_similarity(
        x @ LUMA, y @ LUMA, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert 0.3 < expected < 0.95
    assert psnr_ssim.ssim(tensor(x), tensor(y)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (10, 10), (12, 3)])
def test_ssim_is_defined_for_images_smaller_than_window(height: int, width: int) -> None:
    x, y = tensor(random_image(height, width)), tensor(random_image(height, width, seed=1))
    assert psnr_ssim.ssim(x, x) == pytest.approx(1.0)
    assert -1 <= psnr_ssim.ssim(x, y) < 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (10, 10), (12, 3), (11, 10), (16, 19)])
def test_ssim_equals_loops_over_windows(height: int, width: int) -> None:
    x, y = random_image(height, width), random_image(height, width, seed=1, high=200) // 2
    assert psnr_ssim.ssim(tensor(x), tensor(y)) == pytest.approx(looped_ssim(x @ LUMA, y @ LUMA), rel=1e-9)


def test_ssim_of_single_colours_is_their_luminance_term() -> None:
    x, y = np.full((20, 80, 3), 250, np.uint8), np.full((20, 80, 3), 40, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 250 * 40 + c1) / (250**2 + 40**2 + c1)
    assert psnr_ssim.ssim(tensor(x), tensor(y)) == pytest.approx(expected, rel=1e-9)


def looped_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The mean over all positions of a window of 11 px, or of the side of the image if it is shorter."""
    height, width = (min(11, side) for side in x.shape)
    rows, columns = (np.exp(-((np.arange(n) - (n - 1) / 2) ** 2) / (2 * 1.5**2)) for n in (height, width))
    window = np.outer(rows, columns) / (rows.sum() * columns.sum())
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(x.shape[0] - height + 1):
        for left in range(x.shape[1] - width + 1):
            a, b = (image[top : top + height, left : left + width] for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            spread_a, spread_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            product = (window * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            values.append(luminance * (2 * product + c2) / (spread_a + spread_b + c2))
    return float(np.mean(values))


def test_lab_agrees_with_scikit_image() -> None:
    x = random_image(40, 40)
    x[0, :4] = [
        [0, 0, 0],
        [255, 255, 255],
        [1, 2, 3],
        [11, 10, 9],
    ]  # linear and power branches of the sRGB and Lab curves
    assert np.abs(colour.lab(tensor(x)).permute(1, 2, 0).numpy() - rgb2lab(x)).max() < 0.01


def test_greys_are_neutral_in_lab() -> None:
    greys = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    lightness, a, b = colour.lab(greys)
    assert max(a.abs().max(), b.abs().max()) < 1e-9
    assert lightness[0, [0, 255]].tolist() == pytest.approx([0, 100])


def test_colour_statistics_pool_pixels_of_all_images() -> None:
    arrays = [random_image(8, 9, high=120), random_image(30, 20, seed=1, low=90)]
    pooled = np.concatenate([rgb2lab(array).reshape(-1, 3) for array in arrays])
    mean, deviation = colour.colour_statistics(map(tensor, arrays))
    assert np.abs(mean.numpy() - pooled.mean(0)).max() < 0.01
    assert np.abs(deviation.numpy() - pooled.std(0)).max() < 0.01


def test_colour_distance_is_euclidean() -> None:
    zero = ColourStatistics(torch.zeros(3), torch.zeros(3))
    assert colour.colour_distance(zero, ColourStatistics(torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6]))) == (
        pytest.approx(math.sqrt(1 + 4 + 9 + 16 + 25 + 36))
    )


def test_global_colour_map_matches_target_statistics() -> None:
    photos = [random_image(30, 40, seed=n, low=60, high=200) for n in range(3)]
    paintings = [random_image(20, 50, seed=9, low=80, high=160) // np.array([1, 1, 2], np.uint8)]
    target_statistics = rgb_statistics(paintings)
    colour_map = colour.global_colour_map(rgb_statistics(photos), target_statistics)

    mapped = np.concatenate([colour_map(tensor(photo)).permute(1, 2, 0).numpy().reshape(-1, 3) for photo in photos])
    target = np.concatenate([painting.reshape(-1, 3) for painting in paintings])
    assert np.abs(mapped.mean(0) - target.mean(0)).max() < 0.05
    assert np.abs(mapped.std(0) - target.std(0)).max() < 0.05
    assert np.abs(np.concatenate([photo.reshape(-1, 3) for photo in photos]).mean(0) - target.mean(0)).max() > 10


def test_colour_map_of_single_colour_gives_target_mean() -> None:
    flat = np.full((4, 4, 3), 70, np.uint8)
    colour_map = colour.global_colour_map(rgb_statistics([flat]), rgb_statistics([random_image(9, 9)]))
    mean = random_image(9, 9).reshape(-1, 3).mean(0).round()
    assert colour_map(tensor(flat))[:, 0, 0].tolist() == mean.tolist()


def test_colour_map_clips_to_uint8() -> None:
    brighter = colour.ColourMap(torch.tensor([3.0] * 3), torch.tensor([-100.0] * 3))
    values = torch.tensor([0, 33, 50, 200], dtype=torch.uint8).expand(3, 1, 4)
    assert brighter(values)[0, 0].tolist() == [0, 0, 50, 255]
