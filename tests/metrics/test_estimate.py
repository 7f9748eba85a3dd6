"""Bootstrap intervals of means, and means and differences of scores with replicates."""

import math

import pytest
import torch
from torch import Tensor

from cyclestyle.metrics import estimate
from cyclestyle.metrics.estimate import Replicated, mean_estimate, resampling_weights


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def skewed(num_images: int, *, seed: int) -> Tensor:
    """Values from a distribution of mean 1 whose right tail is longer."""
    return 0.5 + 0.25 * torch.randn(num_images, 2, generator=seeded(seed), dtype=torch.float64).square().sum(1)


def test_interval_of_a_mean_has_the_width_of_the_central_limit_theorem() -> None:
    values = torch.randn(400, generator=seeded(0), dtype=torch.float64)
    mean = mean_estimate(values, generator=seeded(1), replicates=4000)
    assert mean.value == pytest.approx(values.mean().item(), rel=1e-12)
    half_width = 1.96 * values.std().item() / math.sqrt(400)
    assert [mean.low, mean.high] == pytest.approx(
        [mean.value - half_width, mean.value + half_width], abs=half_width / 8
    )


def test_interval_of_a_mean_contains_the_truth_in_95_percent_of_draws() -> None:
    draws = [mean_estimate(skewed(40, seed=seed), generator=seeded(seed), replicates=400) for seed in range(200)]
    assert 180 <= sum(draw.low <= 1 <= draw.high for draw in draws) <= 198


def test_blocks_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = skewed(30, seed=0)
    whole = mean_estimate(values, generator=seeded(0), replicates=100)
    monkeypatch.setattr(estimate, "_BLOCK_ENTRIES", 30 * 7)
    assert mean_estimate(values, generator=seeded(0), replicates=100) == whole


def test_one_image_has_a_mean_without_interval() -> None:
    mean = mean_estimate(torch.tensor([0.25]), generator=seeded(0))
    assert mean.value == 0.25
    assert math.isnan(mean.low)
    assert math.isnan(mean.high)


def test_infinite_values_make_an_infinite_mean() -> None:
    mean = mean_estimate(torch.tensor([20.0, 30, math.inf]), generator=seeded(0))
    assert mean.value == math.inf
    assert mean.high == math.inf
    assert mean.low == 20  # the lowest resampled sets contain copies of the first image only


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([1.0, math.nan, 2.0]), "NaN for 1 of 3 images"),
        (torch.zeros(0), r"shape \(0,\)"),
        (torch.zeros(2, 3), r"shape \(2, 3\)"),
    ],
)
def test_unusable_values_are_rejected(values: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_estimate(values, generator=seeded(0))


def test_interval_lies_between_the_outer_fortieths_of_the_replicates() -> None:
    shuffled = torch.arange(1001, dtype=torch.float64)[torch.randperm(1001, generator=seeded(0))]
    assert Replicated(7.0, shuffled).estimate() == (7.0, 25.0, 975.0)


def test_resampling_weights_count_images_drawn_with_replacement() -> None:
    weights = resampling_weights(20, 20_000, generator=seeded(0))
    assert (weights.sum(1) == 20).all()
    assert weights.mean(0).tolist() == pytest.approx([1] * 20, abs=0.04)
    covariance = torch.cov(weights.T)
    assert covariance.diagonal().mean().item() == pytest.approx(1 - 1 / 20, abs=0.01)
    assert covariance[0, 1:].mean().item() == pytest.approx(-1 / 20, abs=0.01)


def test_no_resampled_set_consists_of_a_single_image() -> None:
    weights = resampling_weights(3, 5000, generator=seeded(0))
    assert (weights.sum(1) == 3).all()
    assert weights.max() == 2


def test_mean_and_difference_are_computed_replicate_by_replicate() -> None:
    first, second = Replicated(1.0, torch.tensor([1.0, 2, 3])), Replicated(4.0, torch.tensor([5.0, 2, 9]))
    mean, difference = estimate.mean([first, second]), estimate.difference(first, second)
    assert (mean.value, mean.replicates.tolist()) == (2.5, [3, 2, 6])
    assert (difference.value, difference.replicates.tolist()) == (-3, [-4, 0, -6])


def test_mean_with_a_score_without_interval_has_no_interval() -> None:
    mean = estimate.mean([Replicated(1.0, torch.zeros(0)), Replicated(2.0, torch.ones(5))]).estimate()
    assert mean.value == 1.5
    assert math.isnan(mean.low)
