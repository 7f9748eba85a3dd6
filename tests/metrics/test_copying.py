"""Distances to the most similar reference image, compared with scipy."""

import math

import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from cyclestyle.metrics import copying
from cyclestyle.metrics.copying import nearest_cosine_distance


def random_features(num_images: int, *, seed: int = 0) -> Tensor:
    return torch.randn(num_images, 12, generator=torch.Generator().manual_seed(seed))


def test_distance_agrees_with_scipy() -> None:
    x, references = random_features(7), random_features(9, seed=1)
    expected = cdist(x.double().numpy(), references.double().numpy(), "cosine").min(1)
    assert nearest_cosine_distance(x, references).tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_copies_have_distance_zero() -> None:
    references = random_features(9, seed=1)
    x = torch.cat([random_features(2), 1.7 * references[4:5]])
    *other, copied = nearest_cosine_distance(x, references).tolist()
    assert 0 <= copied < 1e-12
    assert min(other) > 0.1


def test_rounding_makes_no_distance_negative() -> None:
    references = random_features(500)
    distances = nearest_cosine_distance(references, references)
    assert distances.min() == 0
    assert distances.max() < 1e-12


def test_opposite_and_zero_features_are_far() -> None:
    reference = random_features(1)
    assert nearest_cosine_distance(-reference, reference).tolist() == pytest.approx([2])
    assert nearest_cosine_distance(torch.zeros(1, 12), reference).tolist() == [1]


def test_blocks_do_not_change_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    x, references = random_features(7), random_features(9, seed=1)
    whole = nearest_cosine_distance(x, references)
    monkeypatch.setattr(copying, "_BLOCK_ENTRIES", 20)
    assert torch.allclose(nearest_cosine_distance(x, references), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("x", "references", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(0, 4), "references are those of 0 images: 1 or more"),
        (torch.full((3, 4), math.nan), torch.zeros(2, 4), "NaN for 3 of 3 images"),
    ],
)
def test_unusable_features_are_rejected(x: Tensor, references: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_cosine_distance(x, references)
