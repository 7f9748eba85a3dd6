"""KID and its bootstrap, compared with loops, with torchmetrics, and with the KID of known distributions."""

import math

import pytest
import torch
from torch import Tensor

from cyclestyle.metrics import estimate, mmd
from cyclestyle.metrics.kid import kid, kid_replicates


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(num_images: int, features: int, *, seed: int, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    return mean + deviation * torch.randn(num_images, features, generator=seeded(seed), dtype=torch.float64)


def kernel(x: Tensor, y: Tensor) -> float:
    return (sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True)) / len(x) + 1) ** 3


def looped_mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def looped_kid(x: Tensor, y: Tensor, first: list[int], second: list[int]) -> float:
    """KID of the images with the given indices; pairs of an image with its own copy are left out."""
    within_x = looped_mean([kernel(x[i], x[j]) for i in first for j in first if i != j])
    within_y = looped_mean([kernel(y[i], y[j]) for i in second for j in second if i != j])
    return within_x + within_y - 2 * looped_mean([kernel(x[i], y[j]) for i in first for j in second])


def moments(mean: float, deviation: float, features: int) -> list[Tensor]:
    """First three moment tensors of independent normal features with equal mean and standard deviation."""
    mu, covariance = torch.full((features,), mean), deviation**2 * torch.eye(features)
    third = torch.einsum("i,j,k->ijk", mu, mu, mu)
    for indices in ("ij,k->ijk", "ik,j->ijk", "jk,i->ijk"):
        third = third + torch.einsum(indices, covariance, mu)
    return [mu, covariance + torch.outer(mu, mu), third]


def true_kid(mean: float, deviation: float, features: int) -> float:
    """KID between N(mean, deviation²) and N(0, 1) features: (a/d + 1)³ = 1 + 3 a/d + 3 a²/d² + a³/d³."""
    pairs = zip(moments(mean, deviation, features), moments(0, 1, features), strict=True)
    distances = [(p - q).square().sum().item() for p, q in pairs]
    return sum(c * distance / features**k for c, k, distance in zip((3, 3, 1), (1, 2, 3), distances, strict=True))


def test_kid_equals_a_double_loop() -> None:
    x, y = normal(6, 5, seed=0), normal(9, 5, seed=1, mean=0.5)
    value = kid(x, y, generator=seeded(0), replicates=10).value
    assert value == pytest.approx(looped_kid(x, y, list(range(6)), list(range(9))), rel=1e-12)


def test_kid_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = normal(50, 40, seed=0), normal(50, 40, seed=1, mean=0.2)
    assert kid(x, y, generator=seeded(0)).value == pytest.approx(poly_mmd(x, y).item(), rel=1e-10)


def test_replicates_equal_the_kid_of_the_resampled_images() -> None:
    x, y = normal(6, 4, seed=0), normal(5, 4, seed=1, mean=0.5)
    resampling = mmd.Resampling(6, 5, replicates=4, generator=seeded(3))
    computed = kid_replicates(x, y, generator=seeded(3), replicates=4).replicates
    for replicate, first, second in zip(computed, resampling.x[1:], resampling.y[1:], strict=True):
        indices = [[i for i, count in enumerate(counts) for _ in range(int(count))] for counts in (first, second)]
        assert replicate.item() == pytest.approx(looped_kid(x, y, *indices), rel=1e-10)


def test_resampling_does_not_shift_kid() -> None:
    x, y = normal(30, 64, seed=0), normal(25, 64, seed=1, mean=0.1)
    value, replicates = kid_replicates(x, y, generator=seeded(0), replicates=4000)
    assert replicates.mean().item() == pytest.approx(value, abs=4 * replicates.std().item() / math.sqrt(4000))


@pytest.mark.parametrize(("mean", "deviation", "most"), [(1.0, 1.0, 198), (0.5, 0.7, 198), (0.0, 1.0, 200)])
def test_interval_contains_the_kid_of_the_distributions(mean: float, deviation: float, most: int) -> None:
    """The number of draws has an upper limit too, except for equal distributions, where the interval is too wide."""
    truth = true_kid(mean, deviation, features=8)
    draws = [
        kid(
            normal(50, 8, seed=2 * seed, mean=mean, deviation=deviation),
            normal(50, 8, seed=2 * seed + 1),
            generator=seeded(seed),
            replicates=200,
        )
        for seed in range(200)
    ]
    assert 180 <= sum(draw.low <= truth <= draw.high for draw in draws) <= most


def test_expected_kid_does_not_depend_on_the_number_of_images() -> None:
    truth = true_kid(0.5, 1.0, features=4)
    for num_images in (3, 40):
        values = torch.tensor(
            [
                kid(
                    normal(num_images, 4, seed=2 * n, mean=0.5),
                    normal(num_images, 4, seed=2 * n + 1),
                    generator=seeded(0),
                    replicates=1,
                ).value
                for n in range(400)
            ]
        )
        assert values.mean().item() == pytest.approx(truth, abs=4 * values.std().item() / 20)


def test_paired_difference_is_more_precise_than_two_intervals() -> None:
    x, y = normal(60, 16, seed=0, mean=0.3), normal(60, 16, seed=1)
    better = kid_replicates(x - 0.05, y, generator=seeded(5))
    worse = kid_replicates(x, y, generator=seeded(5))
    paired = estimate.difference(worse, better).estimate()
    unpaired = estimate.difference(worse, kid_replicates(x - 0.05, y, generator=seeded(6))).estimate()
    assert 0 < paired.low < paired.value < paired.high
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 2


def test_kid_of_a_set_with_itself_is_not_clamped() -> None:
    x = normal(20, 8, seed=0)
    same = kid(x, x.clone(), generator=seeded(0))
    assert same.low <= same.value < 0


def test_zero_features_have_kid_zero() -> None:
    assert kid(torch.zeros(4, 3), torch.zeros(5, 3), generator=seeded(0)) == (0, 0, 0)


def test_two_images_have_a_kid_without_interval() -> None:
    x, y = normal(2, 3, seed=0), normal(7, 3, seed=1)
    result = kid(x, y, generator=seeded(0))
    assert result.value == pytest.approx(looped_kid(x, y, [0, 1], list(range(7))), rel=1e-12)
    assert math.isnan(result.low)
    assert math.isnan(result.high)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), "x are those of 1 images: 2 or more"),
        (torch.zeros(4, 3), torch.zeros(0, 3), "y are those of 0 images: 2 or more"),
        (torch.tensor([[0.0, math.nan], [1, 1]]), torch.zeros(4, 2), "x contain .* NaN for 1 of 2 images"),
        (torch.zeros(4, 2), torch.full((3, 2), math.inf), "y contain infinite values or NaN for 3 of 3 images"),
        (torch.zeros(4, 2), torch.zeros(4, 3), "x has 2 features per image, y 3"),
        (torch.zeros(4), torch.zeros(4, 3), r"x have shape \(4,\)"),
        (torch.zeros(4, 3, 1), torch.zeros(4, 3), r"x have shape \(4, 3, 1\)"),
    ],
)
def test_unusable_features_are_rejected(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kid(x, y, generator=seeded(0))


def test_single_precision_features_are_computed_in_double_precision() -> None:
    x, y = normal(20, 30, seed=0).float() * 30, normal(20, 30, seed=1).float() * 30
    first, second = (kid(x.to(kind), y.to(kind), generator=seeded(0)) for kind in (torch.float32, torch.float64))
    assert first == second


def test_blocks_do_not_change_kid(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(23, 10, seed=0), normal(17, 10, seed=1)
    whole = kid(x, y, generator=seeded(0), replicates=50)
    monkeypatch.setattr(mmd, "_BLOCK_ENTRIES", 60)
    monkeypatch.setattr(mmd, "_COLUMNS", 3)
    assert kid(x, y, generator=seeded(0), replicates=50) == pytest.approx(whole, rel=1e-10)


def test_large_sets_need_no_whole_kernel_matrix() -> None:
    sizes = []

    def dot_products(x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x) * len(y))
        return mmd.products(x, y)

    x, y = normal(3000, 2, seed=0), normal(2500, 2, seed=1)
    resampling = mmd.Resampling(len(x), len(y), replicates=3, generator=seeded(0))
    mmd.squared_mmd(x, y, dot_products, resampling=resampling)
    assert sum(sizes) == 3000**2 + 2500**2 + 3000 * 2500
    assert max(sizes) <= 2**22
