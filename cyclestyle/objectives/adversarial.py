"""Adversarial losses: what a discriminator makes of its scores, and what a generator makes of them.

Each class has three methods that take scores of any shape and return a scalar of the same dtype: `real` and `fake` are
the two terms of a discriminator, to be weighted by the caller, and `fool` is the term of a generator.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  everybody's name for it


class LeastSquares:
    """Mean squared distance to 1 for real and 0 for fake pictures (Mao et al. 2017): what CycleGAN uses."""

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
    """Real scores are pushed above 1 and fake ones below -1, no further; a generator's are raised (Lim and Ye 2017)."""

    def real(self, scores: Tensor) -> Tensor:
        return F.relu(1 - scores).mean()

    def fake(self, scores: Tensor) -> Tensor:
        return F.relu(1 + scores).mean()

    def generator(self, scores: Tensor) -> Tensor:
        return -scores.mean()
