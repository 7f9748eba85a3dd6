"""Self-similarities and structure distance, compared with loops."""

import math

import pytest
import torch
from torch import Tensor

from cyclestyle.metrics import structure
from cyclestyle.metrics.structure import self_similarity, structure_distance


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def looped_similarity(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def test_structure_distance_equals_loops_over_positions() -> None:
    x, y = random_tokens(2, 5, 3), random_tokens(2, 5, 4, seed=1)  # the numbers of channels may differ
    for image, distance in enumerate(structure_distance(x, y).tolist()):
        before, after = x[image].tolist(), y[image].tolist()
        squares = [
            (looped_similarity(before[i], before[j]) - looped_similarity(after[i], after[j])) ** 2
            for i in range(5)
            for j in range(5)
        ]
        assert distance == pytest.approx(sum(squares) / 25, rel=1e-9)


def test_self_similarity_is_a_cosine() -> None:
    similarity = self_similarity(random_tokens(3, 7, 5))
    assert similarity.shape == (3, 7, 7)
    assert similarity.dtype == torch.float64
    assert torch.allclose(similarity.diagonal(dim1=1, dim2=2), torch.ones(3, 7, dtype=torch.float64))
    assert similarity.abs().max() <= 1 + 1e-12


def test_changes_that_keep_similarities_have_no_distance() -> None:
    x = random_tokens(2, 9, 6).double()
    rotation = torch.linalg.qr(random_tokens(6, 6, seed=1).double()).Q
    assert structure_distance(x, x).tolist() == [0, 0]
    assert structure_distance(x, 3 * x @ rotation).tolist() == pytest.approx([0, 0], abs=1e-25)


def test_opposite_similarities_have_the_largest_distance() -> None:
    x = torch.tensor([[[1.0], [1.0]]])
    y = torch.tensor([[[1.0], [-1.0]]])
    assert structure_distance(x, y).tolist() == [2]  # half of the pairs are pairs of a position with itself


def test_distance_grows_with_noise() -> None:
    x, noise = random_tokens(4, 30, 20), random_tokens(4, 30, 20, seed=1)
    distances = [structure_distance(x, x + strength * noise).mean().item() for strength in (0.0, 0.1, 0.3, 1.0)]
    assert distances == sorted(set(distances))


def test_zero_tokens_have_finite_distances() -> None:
    x = random_tokens(1, 4, 3)
    assert structure_distance(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3)).tolist() == [0]
    assert structure_distance(x, torch.zeros(1, 4, 3)).item() == pytest.approx(
        self_similarity(x).square().mean().item()
    )


def test_blocks_do_not_change_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = random_tokens(7, 6, 5), random_tokens(7, 6, 5, seed=1)
    whole = structure_distance(x, y)
    monkeypatch.setattr(structure, "_BLOCK_ENTRIES", 2 * 36)
    assert torch.allclose(structure_distance(x, y), whole, rtol=1e-12, atol=0)


def test_no_images_have_no_distances() -> None:
    assert structure_distance(torch.zeros(0, 4, 3), torch.zeros(0, 4, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 4, 3), torch.zeros(2, 5, 3), r"\(2, 4, 3\) and \(2, 5, 3\)"),
        (torch.zeros(2, 4, 3), torch.zeros(3, 4, 3), r"\(2, 4, 3\) and \(3, 4, 3\)"),
        (torch.zeros(4, 3), torch.zeros(4, 3), r"\(4, 3\) and \(4, 3\)"),
        (torch.zeros(2, 4, 3), torch.full((2, 4, 3), math.nan), "tokens y contain .* NaN for 2 of 2 images"),
        (
            torch.tensor([[[1.0]], [[math.inf]]]),
            torch.zeros(2, 1, 1),
            "tokens x contain infinite values .* 1 of 2 images",
        ),
    ],
)
def test_unusable_tokens_are_rejected(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structure_distance(x, y)
