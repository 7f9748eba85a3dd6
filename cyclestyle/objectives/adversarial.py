"""Adversarial losses of discriminators and generators, computed from discriminator scores.

Each class has three methods that take scores of any shape and return a scalar of the same dtype. `real` and `fake`
return the two terms of a discriminator's loss, for the scores of real and of translated images; the caller adds them
with weights. `generator` returns the adversarial loss of a generator, for the scores of translated images.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the conventional name


class LeastSquares:
    """Least-squares loss (Mao et al. 2017), as in CycleGAN: target scores are 1 for real images, 0 for translations."""

    def real(self, scores: Tensor) -> Tensor:
        return (scores - 1).square().mean()

    def fake(self, scores: Tensor) -> Tensor:
        return scores.square().mean()

    def generator(self, scores: Tensor) -> Tensor:
        return (scores - 1).square().mean()


class BinaryCrossEntropy:
    """Cross-entropy with scores as logits; the generator loss is non-saturating (Goodfellow et al. 2014, section 3)."""

    def real(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))

    def fake(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.zeros_like(scores))

    def generator(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))


class Hinge:
    """Hinge loss (Lim and Ye 2017): 0 for real scores above 1 and for fake scores below -1; linear for generators."""

    def real(self, scores: Tensor) -> Tensor:
        return F.relu(1 - scores).mean()

    def fake(self, scores: Tensor) -> Tensor:
        return F.relu(1 + scores).mean()

    def generator(self, scores: Tensor) -> Tensor:
        return -scores.mean()
