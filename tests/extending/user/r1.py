"""R1: a penalty on the discriminator's gradient for real images (Mescheder et al. 2018, eq. 9)."""

import torch
from torch import Tensor, nn


class R1:
    """Mean squared gradient norm; its weight in the config is gamma / 2."""

    def __call__(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        real = real.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()
