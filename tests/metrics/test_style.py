"""Gram matrices and style distance, compared with loops and with distributions of known distance."""

import math

import pytest
import torch
from torch import Tensor

from cyclestyle.metrics import mmd
from cyclestyle.metrics.style import gram, style_distance, style_replicates


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, mean: float = 0.0) -> Tensor:
    return mean + torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def looped_gram(activation: Tensor) -> Tensor:
    """The whole Gram matrix (C, C) of one image (C, H, W)."""
    channels, height, width = activation.shape
    matrix = torch.zeros(channels, channels, dtype=torch.float64)
    for i in range(channels):
        for j in range(channels):
            for row in range(height):
                for column in range(width):
                    matrix[i, j] += activation[i, row, column] * activation[j, row, column] / (height * width)
    return matrix


def looped_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared distance of the means of two sets of vectors, divided by the mean squared norm of `y`."""
    within_x = [torch.dot(a, b).item() for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    within_y = [torch.dot(a, b).item() for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    between = [torch.dot(a, b).item() for a in x for b in y]
    means = [math.fsum(values) / len(values) for values in (within_x, within_y, between)]
    return (means[0] + means[1] - 2 * means[2]) / (math.fsum(torch.dot(b, b).item() for b in y) / len(y))


def test_gram_equals_loops_over_positions() -> None:
    activation = normal(2, 3, 4, 5, seed=0)
    for vector, image in zip(gram(activation), activation, strict=True):
        matrix, root = looped_gram(image), math.sqrt(2)
        expected = [matrix[i, j].item() * (1 if i == j else root) for i in range(3) for j in range(i, 3)]
        assert vector.tolist() == pytest.approx(expected, rel=1e-12)


def test_dot_products_of_gram_vectors_are_those_of_the_matrices() -> None:
    first, second = normal(2, 6, 3, 3, seed=0)
    vectors = gram(torch.stack([first, second]))
    expected = (looped_gram(first) * looped_gram(second)).sum().item()
    assert torch.dot(vectors[0], vectors[1]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "result"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_gram_is_computed_in_single_precision_or_better(kind: torch.dtype, result: torch.dtype) -> None:
    activation = (100 * normal(1, 4, 16, 16, seed=0)).to(kind)
    assert gram(activation).dtype == result
    assert torch.allclose(gram(activation).double(), gram(activation.double()), rtol=1e-5, atol=1e-2)


def test_style_distance_is_the_mean_of_looped_distances_over_layers() -> None:
    x, y = [normal(5, 3, seed=0), normal(5, 7, seed=1)], [normal(6, 3, seed=2, mean=1), normal(6, 7, seed=3)]
    expected = (looped_distance(x[0], y[0]) + looped_distance(x[1], y[1])) / 2
    assert style_distance(x, y, generator=seeded(0)).value == pytest.approx(expected, rel=1e-10)


def test_replicates_resample_the_same_images_in_all_layers_and_in_the_norm() -> None:
    x, y = [normal(5, 3, seed=0), normal(5, 7, seed=1)], [normal(6, 3, seed=2, mean=1), normal(6, 7, seed=3)]
    resampling = mmd.Resampling(5, 6, replicates=3, generator=seeded(4))
    computed = style_replicates(x, y, generator=seeded(4), replicates=3).replicates
    for replicate, first, second in zip(computed, resampling.x[1:], resampling.y[1:], strict=True):
        layers = [weighted_distance(a, b, first, second) for a, b in zip(x, y, strict=True)]
        assert replicate.item() == pytest.approx(sum(layers) / 2, rel=1e-10)


def weighted_distance(x: Tensor, y: Tensor, first: Tensor, second: Tensor) -> float:
    """The distance of resampled sets: with means of weighted images, without pairs of an image and its own copy."""

    def within(vectors: Tensor, counts: Tensor) -> float:
        total = (counts @ vectors).square().sum() - counts.square() @ vectors.square().sum(1)
        return (total / (counts.sum() ** 2 - counts.square().sum())).item()

    between = torch.dot(first @ x / first.sum(), second @ y / second.sum()).item()
    norm = (second @ y.square().sum(1) / second.sum()).item()
    return (within(x, first) + within(y, second) - 2 * between) / norm


def test_interval_contains_the_distance_of_the_distributions() -> None:
    features, mean = 10, 0.4
    truth = mean**2  # squared distance features · mean², divided by the mean squared norm of y, features · 1
    draws = [
        style_distance(
            [normal(50, features, seed=2 * seed, mean=mean)],
            [normal(50, features, seed=2 * seed + 1)],
            generator=seeded(seed),
            replicates=200,
        )
        for seed in range(200)
    ]
    assert 180 <= sum(draw.low <= truth <= draw.high for draw in draws) <= 198


def test_style_distance_does_not_depend_on_the_scale_of_activations() -> None:
    x, y = normal(8, 4, 6, 6, seed=0), normal(9, 4, 6, 6, seed=1) * 1.5
    plain = style_distance([gram(x)], [gram(y)], generator=seeded(0))
    scaled = style_distance([gram(10 * x)], [gram(10 * y)], generator=seeded(0))
    assert scaled == pytest.approx(plain, rel=1e-9)


def test_position_of_textures_does_not_matter() -> None:
    x, y = normal(8, 4, 6, 6, seed=0), normal(9, 4, 6, 6, seed=1) * 1.5
    plain = style_distance([gram(x)], [gram(y)], generator=seeded(0))
    mirrored = style_distance([gram(x.flip(3).roll(2, 2))], [gram(y)], generator=seeded(0))
    assert mirrored == pytest.approx(plain, rel=1e-9)


def test_distance_grows_with_the_share_of_another_style() -> None:
    x, other = normal(40, 4, 8, 8, seed=0), normal(40, 4, 8, 8, seed=1).cumsum(3)
    values = [
        style_distance([gram(x + share * (other - x))], [gram(x)], generator=seeded(0)).value
        for share in (0.0, 0.3, 0.6, 1.0)
    ]
    assert values == sorted(values)
    assert values[-1] > 10 * abs(values[0])


def test_blocks_do_not_change_style_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = [normal(9, 30, seed=0)], [normal(7, 30, seed=1)]
    whole = style_distance(x, y, generator=seeded(0))
    monkeypatch.setattr(mmd, "_COLUMNS", 7)
    monkeypatch.setattr(mmd, "_BLOCK_ENTRIES", 20)
    assert style_distance(x, y, generator=seeded(0)) == pytest.approx(whole, rel=1e-9)


def test_two_images_have_a_style_distance_without_interval() -> None:
    result = style_distance([normal(2, 5, seed=0)], [normal(4, 5, seed=1)], generator=seeded(0))
    assert math.isfinite(result.value)
    assert math.isnan(result.low)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([], [], "0 layers"),
        ([torch.ones(3, 4)], [torch.ones(3, 4), torch.ones(3, 4)], "of 1 layers, y of 2"),
        ([torch.ones(3, 4), torch.ones(2, 4)], [torch.ones(3, 4)] * 2, "different numbers of images"),
        ([torch.ones(1, 4)], [torch.ones(3, 4)], "x are those of 1 images"),
        ([torch.ones(3, 4)], [torch.full((3, 4), math.nan)], "NaN for 3 of 3 images"),
        ([torch.ones(3, 4)], [torch.zeros(3, 4)], "all Gram matrices of a layer of y are zero"),
    ],
)
def test_unusable_gram_matrices_are_rejected(x: list[Tensor], y: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        style_distance(x, y, generator=seeded(0))
