"""Initial weights of the networks."""

import torch
from torch import nn


@torch.no_grad()
def initialize(module: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Draw the weights of all convolutions of `module` from N(0, 0.02), and set their biases to 0 (Zhu et al. 2017).

    The weights are drawn in float32 on the CPU, in the order in which the convolutions were registered. They depend on
    the CPU `generator` alone (None: PyTorch's global generator), not on the module's device and dtype.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = torch.empty(layer.weight.shape, dtype=torch.float32, device="cpu")
            layer.weight.copy_(weight.normal_(0.0, 0.02, generator=generator))
            if layer.bias is not None:
                layer.bias.zero_()
