"""Wasserstein loss, whose scores have no bounds; it needs a penalty such as R1 (Arjovsky et al. 2017)."""

from torch import Tensor


class Wasserstein:
    """The discriminator minimises `real` and `fake`, the generator minimises `generator`; each returns a scalar."""

    def real(self, scores: Tensor) -> Tensor:
        return -scores.mean()

    def fake(self, scores: Tensor) -> Tensor:
        return scores.mean()

    def generator(self, scores: Tensor) -> Tensor:
        return -scores.mean()
