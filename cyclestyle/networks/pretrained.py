"""Table of the pretrained networks whose features measure translations."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from cyclestyle.networks.efficientnet import EfficientNetLite0
from cyclestyle.networks.lpips import lpips_alex, lpips_vgg
from cyclestyle.networks.vgg import VGG16_DEPTHS, VGG19_DEPTHS, last_layers, vgg16_hed, vgg19


class PretrainedNetwork(NamedTuple):
    """A pretrained network, and the names of the layers from which features are computed.

    The network is called as `network(images, layers)`, with images (N, 3, H, W), floating-point sRGB in 0..1, and names
    of layers. It returns a dict: layer name -> activations. Its method `pooled` maps the activations of `pooled_layers`
    to one vector per image, (N, d).
    """

    build: Callable[[], nn.Module]  # builds the network with random weights, frozen
    pooled_layers: tuple[str, ...]  # empty for a network without a pooled vector
    structure_layer: str  # its activations describe the layout of an image
    style_layers: tuple[str, ...]  # their Gram matrices describe colours and strokes; empty if unsuitable for style


def _apart(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Wrap `build` so that it leaves the state of PyTorch's global random number generator unchanged.

    Without the wrapper, the random numbers of a training run would depend on whether the run measures scores.
    """

    def build_apart() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return build()

    return build_apart


_VGG_STYLE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")

PRETRAINED: dict[str, PretrainedNetwork] = {
    "efficientnet_lite0": PretrainedNetwork(
        build=_apart(EfficientNetLite0),
        pooled_layers=EfficientNetLite0.pooled_layers,
        structure_layer="block10",  # the last block at 1/16 of the image size
        style_layers=(),
    ),
    "vgg16_hed": PretrainedNetwork(
        build=_apart(vgg16_hed),
        pooled_layers=last_layers(VGG16_DEPTHS),
        structure_layer="relu4_3",
        style_layers=_VGG_STYLE,
    ),
    "vgg19": PretrainedNetwork(
        build=_apart(vgg19),
        pooled_layers=last_layers(VGG19_DEPTHS),
        structure_layer="relu4_4",
        style_layers=_VGG_STYLE,
    ),
    "lpips_alex": PretrainedNetwork(
        build=_apart(lpips_alex),
        pooled_layers=("relu1", "relu2", "relu3", "relu4", "relu5"),
        structure_layer="relu5",
        style_layers=("relu1", "relu2", "relu3", "relu4"),
    ),
    "lpips_vgg": PretrainedNetwork(
        build=_apart(lpips_vgg),
        pooled_layers=last_layers(VGG16_DEPTHS),
        structure_layer="relu4_3",
        style_layers=_VGG_STYLE,
    ),
}
