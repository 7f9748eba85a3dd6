"""Fréchet inception distance (FID) between two sets of images.

Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: GANs Trained by a Two Time-Scale Update Rule, 2017, eq. 6.
"""

import math

import torch
from torch import Tensor

from cyclestyle.metrics.mmd import check_features


def fid(x: Tensor, y: Tensor) -> float:
    """Compute the FID: the squared Fréchet distance of the normal distributions fitted to two sets of features.

    The value is |mean difference|² + tr(Cx) + tr(Cy) - 2 tr((Cx Cy)^½). Cx and Cy are the covariance matrices of `x`
    and `y`, with n - 1 and m - 1 degrees of freedom. The last trace is the sum of the singular values of A Bᵀ, where
    Cx = Aᵀ A and Cy = Bᵀ B. This form is exact even if there are fewer images than features and the covariance matrices
    are singular.

    FID has a positive bias, which grows as the sets get smaller: compare only values for equal numbers of images. There
    is no bootstrap interval: it would not contain the value, since resampled sets have fewer different images.

    Args:
        x, y: features (n, d) and (m, d), one row per image; n and m must be 2 or more.

    Raises:
        ValueError: a shape is wrong, a set has fewer than 2 images, or a feature is infinite or NaN.
    """
    check_features(x, y, min_images=2)
    x, y = x.detach().to("cpu", torch.float64), y.detach().to("cpu", torch.float64)
    first, second = _factor(x), _factor(y)
    means = (x.mean(0) - y.mean(0)).square().sum()
    traces = first.square().sum() + second.square().sum() - 2 * torch.linalg.svdvals(first @ second.T).sum()
    return float(means + traces)


def _factor(x: Tensor) -> Tensor:
    """Return a matrix A (min(n, d), d) whose product Aᵀ A is the covariance matrix of the features (n, d)."""
    centred = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    return torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred
