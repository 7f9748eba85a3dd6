"""Structure distance between an image and its translation: the change of the similarities within the image.

Tumanyan, Bar-Tal, Bagon, Dekel: Splicing ViT Features for Semantic Appearance Transfer, 2022, section 3.1. The paper
uses keys of DINO; here the tokens may come from any network.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

_BLOCK_ENTRIES = 2**22  # entries of the self-similarities that are in memory at a time: 32 MB


def self_similarity(tokens: Tensor) -> Tensor:
    """Compute the cosine similarities (N, T, T) between the T positions of each image, float64 from -1 to 1.

    Args:
        tokens: (N, T, C), features of C channels at T positions of N images. A position whose features are all zero
            has similarity 0 to every position, itself included.
    """
    directions = normalize(tokens.to("cpu", torch.float64), dim=2)
    return directions @ directions.transpose(1, 2)


def structure_distance(x: Tensor, y: Tensor) -> Tensor:
    """Compute the structure distance of each image and its translation: how much its self-similarity changes.

    It is the mean squared difference between the self-similarities of both images, see `self_similarity`. The distance
    is 0 for equal structure and at most 4. A change of colours or textures counts only if it changes which positions of
    the image resemble each other.

    Args:
        x, y: tokens (N, T, C) of N images and of their N translations, in the same order. C may differ.

    Returns:
        (N,) float64

    Raises:
        ValueError: a shape is wrong, or a value is infinite or NaN.
    """
    if x.ndim != 3 or y.ndim != 3 or x.shape[:2] != y.shape[:2] or not x.shape[1]:
        raise ValueError(
            f"tokens have shapes {tuple(x.shape)} and {tuple(y.shape)}: (images, positions, channels) is needed, "
            "with equal numbers of images and positions"
        )
    for name, tokens in (("x", x), ("y", y)):
        if damaged := int((~tokens.isfinite()).flatten(1).any(1).sum()):
            raise ValueError(f"tokens {name} contain infinite values or NaN for {damaged} of {len(tokens)} images")

    images = max(1, _BLOCK_ENTRIES // x.shape[1] ** 2)
    blocks = zip(torch.split(x.detach(), images), torch.split(y.detach(), images), strict=True)
    return torch.cat([(self_similarity(a) - self_similarity(b)).square().mean((1, 2)) for a, b in blocks])
