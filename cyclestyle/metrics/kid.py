"""Kernel inception distance (KID) between two sets of images, with a bootstrap interval.

Bińkowski, Sutherland, Arbel, Gretton: Demystifying MMD GANs, 2018. The features may be those of any network.
"""

import torch
from torch import Tensor

from cyclestyle.metrics import mmd
from cyclestyle.metrics.estimate import Estimate, Replicated


def kid(x: Tensor, y: Tensor, *, generator: torch.Generator, replicates: int = 1000) -> Estimate:
    """Compute the KID of two sets of images: the unbiased squared MMD of their features with the kernel (x·y/d + 1)³.

    KID has no unit and is not clamped: sets from the same distribution have values around 0, also negative ones. Its
    expected value does not depend on the numbers of images. The interval is that of a bootstrap over the images of
    both sets. It is wider than needed for sets from the same distribution. With about 20 images in a set, it contains
    the true value less often than in 95 % of all cases.

    Args:
        x, y: features (n, d) and (m, d), one row per image; n and m must be 2 or more. With 2 images in a set, the
            interval is NaN.
        generator: random numbers for the resampling, on the CPU.
        replicates: number of resampled pairs of sets.

    Raises:
        ValueError: a shape is wrong, a set has fewer than 2 images, or a feature is infinite or NaN.
    """
    return kid_replicates(x, y, generator=generator, replicates=replicates).estimate()


def kid_replicates(x: Tensor, y: Tensor, *, generator: torch.Generator, replicates: int = 1000) -> Replicated:
    """Compute the KID of two sets of images, and the KID of each resampled pair of sets.

    For the arguments and errors, see `kid`. The functions `mean` and `difference` of `metrics.estimate` combine several
    results.
    """
    mmd.check_features(x, y, min_images=2)
    resampling = mmd.Resampling(len(x), len(y), replicates=replicates, generator=generator)
    return mmd.replicated(mmd.squared_mmd(x.detach().cpu(), y.detach().cpu(), _kernel, resampling=resampling))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return the values (n, m) of the polynomial kernel of degree 3, for features (n, d) and (m, d)."""
    return mmd.products(x, y).div_(x.shape[1]).add_(1).pow_(3)
