"""Initial weights of the networks."""

import torch
from torch import nn


@torch.no_grad()
def initialize(module: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Initialize the convolutions of `module`: normal weights (mean 0, standard deviation 0.02), biases 0.

    This is the initialization of Zhu et al. 2017. The weights are drawn in float32 on the CPU, one convolution after
    the other in the order of registration. They do not depend on the device and dtype of the module.

    Args:
        generator: random number generator on the CPU; None for PyTorch's global one.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = torch.empty(layer.weight.shape, dtype=torch.float32, device="cpu")
            layer.weight.copy_(weight.normal_(0.0, 0.02, generator=generator))
            if layer.bias is not None:
                layer.bias.zero_()
