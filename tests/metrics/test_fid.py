"""FID, compared with matrix square roots of scipy, with torchmetrics and with closed forms."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from cyclestyle.metrics.fid import fid


def correlated(num_images: int, features: int, *, seed: int, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
    return mean + torch.randn(num_images, features, generator=generator, dtype=torch.float64) @ mixing


def distance_by_square_roots(x: Tensor, y: Tensor) -> float:
    """FID by the square root of the positive semidefinite matrix Cx^½ Cy Cx^½, whose trace is that of (Cx Cy)^½."""
    first, second = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    means = np.square(x.numpy().mean(0) - y.numpy().mean(0)).sum()
    return float(means + np.trace(first) + np.trace(second) - 2 * trace)


@pytest.mark.parametrize(("n", "m"), [(60, 60), (40, 90)])
def test_fid_agrees_with_matrix_square_root_of_scipy(n: int, m: int) -> None:
    x, y = correlated(n, 12, seed=0), correlated(m, 12, seed=1, mean=0.5)
    first, second = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    means = np.square(x.numpy().mean(0) - y.numpy().mean(0)).sum()
    assert fid(x, y) == pytest.approx(means + np.trace(first + second - 2 * root), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(10, 10), (2, 30), (35, 8), (200, 10)])
def test_fid_is_exact_with_fewer_images_than_features(n: int, m: int) -> None:
    x, y = correlated(n, 40, seed=0), correlated(m, 40, seed=1, mean=0.5)
    assert fid(x, y) == pytest.approx(distance_by_square_roots(x, y), rel=1e-6)  # root of eigenvalues near zero
    assert fid(y, x) == pytest.approx(fid(x, y), rel=1e-10)


class Identity(torch.nn.Module):
    """Feature network of torchmetrics that returns its input."""

    num_features = 12

    def forward(self, features: Tensor) -> Tensor:
        return features


def test_fid_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = correlated(60, 12, seed=0), correlated(50, 12, seed=1, mean=0.5)
    metric = FrechetInceptionDistance(feature=Identity())
    metric.update(x, real=True)
    metric.update(y, real=False)
    assert fid(x, y) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_fid_of_shifted_and_scaled_features_has_closed_form() -> None:
    x = correlated(30, 50, seed=0)
    assert fid(x, x + 0.25) == pytest.approx(50 * 0.25**2, rel=1e-9)
    centred = x - x.mean(0)
    assert fid(centred, 3 * centred) == pytest.approx((3 - 1) ** 2 * x.var(0).sum().item(), rel=1e-9)


def test_fid_of_equal_sets_is_zero() -> None:
    x = correlated(30, 50, seed=0)
    assert fid(x, x.flip(0)) == pytest.approx(0, abs=1e-10 * x.var(0).sum().item())
    assert fid(torch.zeros(3, 4), torch.zeros(5, 4)) == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3), "x are those of 1 images: 2 or more"),
        (torch.full((4, 3), math.nan), "NaN for 4 of 4 images"),
        (torch.zeros(4, 2), "x has 2 features per image, y 3"),
    ],
)
def test_unusable_features_are_rejected(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fid(x, torch.zeros(4, 3))
