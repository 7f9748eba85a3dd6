"""Style distance between two sets of images: the distance of their mean Gram matrices, with a bootstrap interval.

Gatys, Ecker, Bethge: Image Style Transfer Using Convolutional Neural Networks, 2016: Gram matrices of activations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cyclestyle.metrics import mmd
from cyclestyle.metrics.estimate import Estimate, Replicated


def gram(activation: Tensor) -> Tensor:
    """Compute the Gram matrix of each image; entry (i, j) is the mean of channel i times channel j over all positions.

    The matrix is symmetric, so only its upper triangle is returned, as a vector. Entries off the diagonal are
    multiplied by the square root of 2. Dot products and distances of these vectors therefore equal those of the full
    matrices.

    Args:
        activation: (N, C, H, W), float32 or float64; smaller types are converted to float32.

    Returns:
        (N, C(C+1)/2), in the type of the computation and on the device of `activation`
    """
    precise = torch.promote_types(activation.dtype, torch.float32)
    flat = activation.to(precise).flatten(2)  # (N, C, HW)
    matrices = flat @ flat.transpose(1, 2) / flat.shape[2]
    rows, columns = torch.triu_indices(matrices.shape[1], matrices.shape[1], device=matrices.device)
    weights = matrices.new_full((len(rows),), 2**0.5)
    weights[rows == columns] = 1
    return matrices[:, rows, columns] * weights


def style_distance(
    x: Sequence[Tensor], y: Sequence[Tensor], *, generator: torch.Generator, replicates: int = 1000
) -> Estimate:
    """Compute the distance between the styles of two sets of images; `y` is the set of the target domain.

    The distance of a layer is the unbiased squared distance between the mean Gram matrices of both sets, divided by the
    mean squared norm of the Gram matrices of `y`. The style distance is the mean of these distances over the layers. It
    has no unit and is not clamped: sets of the same style have values around 0, also negative ones. Its expected value
    does not depend on the number of images in `x`. The interval is that of a bootstrap over the images of both sets.

    Args:
        x, y: one tensor per layer, (n, g) in `x` and (m, g) in `y`: the Gram matrices of the images, from `gram`. The
            numbers of images, n and m, must be 2 or more, and equal for all layers; g may differ between layers. With 2
            images in a set, the interval is NaN.
        generator: random numbers for the resampling, on the CPU.
        replicates: number of resampled pairs of sets.

    Raises:
        ValueError: a shape is wrong, a set has fewer than 2 images, a value is infinite or NaN, or all Gram matrices of
            a layer of `y` are zero.
    """
    return style_replicates(x, y, generator=generator, replicates=replicates).estimate()


def style_replicates(
    x: Sequence[Tensor], y: Sequence[Tensor], *, generator: torch.Generator, replicates: int = 1000
) -> Replicated:
    """Compute the style distance of two sets of images, and that of each resampled pair of sets.

    For the arguments and errors, see `style_distance`. The functions `mean` and `difference` of `metrics.estimate`
    combine several results.
    """
    if not x or len(x) != len(y):
        raise ValueError(f"x has Gram matrices of {len(x)} layers, y of {len(y)}: equal numbers of layers are needed")
    for first, second in zip(x, y, strict=True):
        mmd.check_features(first, second, min_images=2)
        if len(first) != len(x[0]) or len(second) != len(y[0]):
            raise ValueError("the layers have Gram matrices of different numbers of images")

    resampling = mmd.Resampling(len(x[0]), len(y[0]), replicates=replicates, generator=generator)
    layers = [_layer(first, second, resampling) for first, second in zip(x, y, strict=True)]
    return mmd.replicated(torch.stack(layers).mean(0))


def _layer(x: Tensor, y: Tensor, resampling: mmd.Resampling) -> Tensor:
    """Return the style distances (1 + replicates,) of one layer: that of the original sets, then of the resampled ones.

    `x` and `y` are the Gram matrices (n, g) and (m, g) of this layer.
    """
    x, y = x.detach().cpu(), y.detach().cpu()
    norms = torch.stack([image.to(torch.float64).square().sum() for image in y])  # (m,)
    if not norms.any():
        raise ValueError("all Gram matrices of a layer of y are zero: distances relative to zero are undefined")
    return mmd.squared_mmd(x, y, mmd.products, resampling=resampling) / (resampling.y @ norms / len(y))
