"""Initial weights of the networks."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

POWER_ITERATIONS = 15  # as many as `torch.nn.utils.parametrizations.spectral_norm` computes when it is applied


@torch.no_grad()
def initialize(module: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Initialize the convolutions of `module`: normal weights (mean 0, standard deviation 0.02), biases 0.

    This is the initialization of Zhu et al. 2017. The weights are drawn in float32 on the CPU, one convolution after
    the other in the order of registration. They do not depend on the device and dtype of the module.

    If the weight of a convolution is parametrized, as by `torch.nn.utils.parametrizations.spectral_norm`, the drawn
    weight is assigned through the parametrization. Spectral norm also stores singular vectors of the weight. Those
    of the old weight would not fit the new one, and would differ between the ranks. New vectors are therefore drawn
    from `generator` and fitted to the new weight by power iteration.

    Args:
        generator: random number generator on the CPU; None for PyTorch's global one.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = torch.empty(layer.weight.shape, dtype=torch.float32, device="cpu")
            weight.normal_(0.0, 0.02, generator=generator)
            if parametrize.is_parametrized(layer, "weight"):
                _assign_parametrized(layer, weight, generator)
            else:
                layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.zero_()


def _assign_parametrized(layer: nn.Module, weight: Tensor, generator: torch.Generator | None) -> None:
    current = layer.weight
    assert isinstance(current, Tensor)
    layer.weight = weight.to(current.device, current.dtype)
    parametrizations = cast(nn.ModuleDict, layer.parametrizations)["weight"]
    for name, buffer in parametrizations.named_buffers():
        if name.rpartition(".")[2] in ("_u", "_v"):  # first left and right singular vectors, of length 1
            vector = torch.empty(buffer.shape, dtype=torch.float32, device="cpu").normal_(generator=generator)
            buffer.copy_(vector / vector.norm())
    was_training = parametrizations.training
    parametrizations.train()
    for _ in range(POWER_ITERATIONS):
        _ = layer.weight  # in training mode, each access computes one step of the power iteration
    parametrizations.train(was_training)
