"""Detection of translations that copy a training image: distance to the most similar image of a set."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cyclestyle.metrics.mmd import check_features

_BLOCK_ENTRIES = 2**22  # entries of the matrix of similarities that are in memory at a time: 32 MB


def nearest_cosine_distance(x: Tensor, references: Tensor) -> Tensor:
    """Compute, for each image of set `x`, the cosine distance to the most similar image of set `references`.

    The cosine distance is 1 minus the cosine similarity: 0 for features of the same direction, 1 for orthogonal ones,
    2 for opposite ones. Features that are all zero have distance 1 to every image.

    Args:
        x, references: features (n, d) and (m, d) of the two sets, one row per image; n and m must be 1 or more.

    Returns:
        (n,) float64 from 0 to 2

    Raises:
        ValueError: a shape is wrong, a set is empty, or a feature is infinite or NaN.
    """
    check_features(x, references, min_images=1, names=("x", "references"))
    targets = normalize(references.detach().to("cpu", torch.float64), dim=1)
    rows = max(1, _BLOCK_ENTRIES // len(targets))
    blocks = [normalize(block.to("cpu", torch.float64), dim=1) for block in torch.split(x.detach(), rows)]
    return torch.cat([(1 - (block @ targets.T).amax(1)).clamp(0, 2) for block in blocks])
