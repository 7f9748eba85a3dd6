"""Adversarial losses of discriminators and generators, computed from discriminator scores.

Each class has three methods that take scores of any shape and return a scalar of the same dtype: `real` and `fake` are
the two terms of a discriminator's loss, for real and for translated images; the caller weights them. `generator` is the
adversarial loss of a generator.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the conventional name


class LeastSquares:
    """Mean squared distance of scores from 1 for real and from 0 for fake images (Mao et al. 2017), as in CycleGAN."""

    def real(self, scores: Tensor) -> Tensor:
        return (scores - 1).square().mean()

    def fake(self, scores: Tensor) -> Tensor:
        return scores.square().mean()

    def generator(self, scores: Tensor) -> Tensor:
        return (scores - 1).square().mean()


class BinaryCrossEntropy:
    """Cross-entropy of scores as logits; the generator's loss does not saturate (Goodfellow et al. 2014, section 3)."""

    def real(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))

    def fake(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.zeros_like(scores))

    def generator(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))


class Hinge:
    """Hinge loss: margins at 1 for real and -1 for fake scores; the generator's loss is linear (Lim and Ye 2017)."""

    def real(self, scores: Tensor) -> Tensor:
        return F.relu(1 - scores).mean()

    def fake(self, scores: Tensor) -> Tensor:
        return F.relu(1 + scores).mean()

    def generator(self, scores: Tensor) -> Tensor:
        return -scores.mean()
