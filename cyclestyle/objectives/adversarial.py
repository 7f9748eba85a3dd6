"""Adversarial losses of discriminators and generators, computed from discriminator scores.

Each class has three methods that take scores of any shape and return a scalar of the same dtype: `real` and `fake` are
the two terms of a discriminator, which the caller weights, and `generator` is the term of a generator.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the conventional name


class LeastSquares:
    """Mean squared distance of scores to 1 for real and 0 for fake images (Mao et al. 2017), as used by CycleGAN."""

    def real(self, scores: Tensor) -> Tensor:
        return (scores - 1).square().mean()

    def fake(self, scores: Tensor) -> Tensor:
        return scores.square().mean()

    def generator(self, scores: Tensor) -> Tensor:
        return (scores - 1).square().mean()


class BinaryCrossEntropy:
    """Cross-entropy of scores as logits; the generator's term does not saturate (Goodfellow et al. 2014, section 3)."""

    def real(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))

    def fake(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.zeros_like(scores))

    def generator(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))


class Hinge:
    """Hinge loss: margin 1 for real and -1 for fake scores; linear for the generator (Lim and Ye 2017)."""

    def real(self, scores: Tensor) -> Tensor:
        return F.relu(1 - scores).mean()

    def fake(self, scores: Tensor) -> Tensor:
        return F.relu(1 + scores).mean()

    def generator(self, scores: Tensor) -> Tensor:
        return -scores.mean()
