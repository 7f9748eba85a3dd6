"""A small network with the interface of the pretrained networks, for tests of rulers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cyclestyle.evaluation.rulers import Layers, Ruler

LAYERS = Layers(pooled=("deep",), structure="deep", style=("shallow", "deep"))
CHANNELS = {"shallow": 4, "deep": 6}


class SmallNetwork(nn.Module):
    """Two convolutions with fixed weights: `shallow` (N, 4, H/2, W/2) and `deep` (N, 6, H/4, W/4)."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.convolutions = nn.ModuleDict({"shallow": nn.Conv2d(3, 4, 2, 2), "deep": nn.Conv2d(4, 6, 2, 2)})
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.eval().requires_grad_(False)
        self.calls: list[tuple[int, tuple[str, ...]]] = []  # number of images and requested layers of each call

    def forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        self.calls.append((len(images), tuple(layers)))
        activations = {}
        for name, convolution in self.convolutions.items():
            images = convolution(images).relu()
            activations[name] = images
        return {name: activations[name] for name in layers}

    def pooled(self, activations: Mapping[str, Tensor]) -> Tensor:
        return activations["deep"].mean(dim=(2, 3))


def small_ruler(*, size: int = 32, seed: int = 0, layers: Layers = LAYERS) -> Ruler:
    """Build a ruler with a `SmallNetwork`."""
    return Ruler("small", SmallNetwork(seed=seed), size=size, layers=layers)
