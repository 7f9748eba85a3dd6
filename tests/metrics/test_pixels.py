"""Measures agree with scikit-image, which was written by others."""

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


def picture(height: int, width: int, *, seed: int = 0, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def rgb_statistics(arrays: list[np.ndarray]) -> ColourStatistics:
    pool = PixelStatistics()
    for array in arrays:
        pool.add(tensor(array))
    return pool.statistics()


def test_psnr_agrees_with_scikit_image() -> None:
    x, y = picture(19, 23), picture(19, 23, seed=1)
    assert psnr_ssim.psnr(tensor(x), tensor(y)) == pytest.approx(peak_signal_noise_ratio(x, y), rel=1e-12)


def test_psnr_of_equal_pictures_is_infinite() -> None:
    assert psnr_ssim.psnr(tensor(picture(3, 4)), tensor(picture(3, 4))) == math.inf


@pytest.mark.parametrize(("height", "width"), [(11, 11), (11, 30), (64, 48)])
def test_ssim_agrees_with_scikit_image(height: int, width: int) -> None:
    x = picture(height, width)
    y = (x.astype(float) * 0.6 + picture(height, width, seed=1) * 0.3).astype(np.uint8)
    expected = structural_similarity(
        x @ LUMA, y @ LUMA, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert 0.3 < expected < 0.95
    assert psnr_ssim.ssim(tensor(x), tensor(y)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (10, 10), (12, 3)])
def test_ssim_has_a_value_for_small_pictures(height: int, width: int) -> None:
    x, y = tensor(picture(height, width)), tensor(picture(height, width, seed=1))
    assert psnr_ssim.ssim(x, x) == pytest.approx(1.0)
    assert -1 <= psnr_ssim.ssim(x, y) < 1


def test_lab_agrees_with_scikit_image() -> None:
    x = picture(40, 40)
    x[0, :4] = [[0, 0, 0], [255, 255, 255], [1, 2, 3], [11, 10, 9]]  # both branches of both curves
    assert np.abs(colour.lab(tensor(x)).permute(1, 2, 0).numpy() - rgb2lab(x)).max() < 0.01


def test_greys_have_no_colour_in_lab() -> None:
    greys = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    lightness, a, b = colour.lab(greys)
    assert max(a.abs().max(), b.abs().max()) < 1e-9
    assert lightness[0, [0, 255]].tolist() == pytest.approx([0, 100])


def test_colour_statistics_pool_all_pixels_of_a_set() -> None:
    arrays = [picture(8, 9, high=120), picture(30, 20, seed=1, low=90)]
    pooled = np.concatenate([rgb2lab(array).reshape(-1, 3) for array in arrays])
    mean, spread = colour.colour_statistics(map(tensor, arrays))
    assert np.abs(mean.numpy() - pooled.mean(0)).max() < 0.01
    assert np.abs(spread.numpy() - pooled.std(0)).max() < 0.01


def test_colour_distance_is_euclidean_over_mean_and_spread() -> None:
    zero = ColourStatistics(torch.zeros(3), torch.zeros(3))
    assert colour.colour_distance(zero, ColourStatistics(torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6]))) == (
        pytest.approx(math.sqrt(1 + 4 + 9 + 16 + 25 + 36))
    )


def test_the_global_colour_map_gives_the_targets_mean_and_spread() -> None:
    photos = [picture(30, 40, seed=n, low=60, high=200) for n in range(3)]
    paintings = [picture(20, 50, seed=9, low=80, high=160) // np.array([1, 1, 2], np.uint8)]
    wanted = rgb_statistics(paintings)
    colour_map = colour.global_colour_map(rgb_statistics(photos), wanted)

    mapped = np.concatenate([colour_map(tensor(photo)).permute(1, 2, 0).numpy().reshape(-1, 3) for photo in photos])
    target = np.concatenate([painting.reshape(-1, 3) for painting in paintings])
    assert np.abs(mapped.mean(0) - target.mean(0)).max() < 0.05
    assert np.abs(mapped.std(0) - target.std(0)).max() < 0.05
    assert np.abs(np.concatenate([photo.reshape(-1, 3) for photo in photos]).mean(0) - target.mean(0)).max() > 10


def test_the_global_colour_map_of_a_single_colour_reaches_the_mean() -> None:
    flat = np.full((4, 4, 3), 70, np.uint8)
    colour_map = colour.global_colour_map(rgb_statistics([flat]), rgb_statistics([picture(9, 9)]))
    wanted = picture(9, 9).reshape(-1, 3).mean(0).round()
    assert colour_map(tensor(flat))[:, 0, 0].tolist() == wanted.tolist()


def test_the_global_colour_map_clips() -> None:
    brighter = colour.ColourMap(torch.tensor([3.0] * 3), torch.tensor([-100.0] * 3))
    values = torch.tensor([0, 33, 50, 200], dtype=torch.uint8).expand(3, 1, 4)
    assert brighter(values)[0, 0].tolist() == [0, 0, 50, 255]
