"""Perceptual distance of images that tolerates shifts: ST-LPIPS (Ghildyal and Liu 2022; LPIPS: Zhang et al. 2018)."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the conventional name

from cyclestyle.errors import ImageTypeError
from cyclestyle.networks.frozen import (
    Normalization,
    at_least_float32,
    check_images,
    freeze,
    initialize_like_he,
    pooled_stages,
    run_layers,
)
from cyclestyle.networks.padding import ReflectionPad
from cyclestyle.networks.vgg import CHANNELS, VGG16_DEPTHS, last_layers

# Shift and scale of LPIPS for images in [-1, 1], in the order red, green, blue.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Perceptual distance of two images, computed from the activations of a network, which also serve as features.

    `network(x, y)` with two tensors of images (N, 3, H, W) returns N distances, 0 for equal images. `network(images,
    layers)` with names of layers returns layer name -> activations. Images are sRGB in 0..1, with sides of 32 px or
    more; the network normalises them itself. Its weights are frozen, and random until weights are loaded; gradients
    flow to the images.

    The distance compares several layers. At every position of a layer, the activations of both images are scaled to
    unit length. Their squared differences are weighted by channel, summed over channels, and averaged over positions.
    The averages of all compared layers are added.

    Args:
        steps: layer name -> module that computes this layer, in the order of the forward pass. The first module has a
            convolution `conv`.
        compared: name of each layer that the distance compares -> its number of channels.
    """

    def __init__(self, steps: nn.ModuleDict, compared: Mapping[str, int]) -> None:
        super().__init__()
        # Images in 0..1 instead of LPIPS's [-1, 1]: (2 x - 1 - shift) / scale = (x - (1 + shift) / 2) / (scale / 2).
        self.normalization = Normalization([(1 + shift) / 2 for shift in SHIFT], [scale / 2 for scale in SCALE])
        self.steps = steps
        initialize_like_he(self)
        self.heads = nn.ParameterDict({name: torch.rand(channels) for name, channels in compared.items()})
        self.pooled_layers = tuple(compared)
        freeze(self)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order of the forward pass."""
        return tuple(self.steps)

    @overload
    def forward(self, images: Tensor, layers: Tensor) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]: ...

    def forward(self, images: Tensor, layers: Tensor | Sequence[str]) -> Tensor | dict[str, Tensor]:
        """Return `distance(images, layers)` if `layers` is a tensor, the second batch of images.

        If `layers` holds names of layers, return `activations(images, layers)`.
        """
        if isinstance(layers, Tensor):
            return self.distance(images, layers)
        return self.activations(images, layers)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances (N,) of the images `x` and `y`, in float32 at least.

        Raises:
            DataError: images are smaller than 32 px.
            ImageTypeError: images are no floating-point RGB images, or `x` and `y` have different shapes.
        """
        if x.shape != y.shape:
            raise ImageTypeError(
                f"images of the shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be compared: expected equal shapes"
            )
        of_x = self.activations(x, self.pooled_layers)
        of_y = self.activations(y, self.pooled_layers)
        parts = []
        for name, head in self.heads.items():
            squares = (_unit_length(of_x[name]) - _unit_length(of_y[name])).square()
            parts.append((squares * head.view(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(parts).sum(dim=0)

    def activations(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the activations of `layers` by name; layers behind the last requested one are not computed.

        Raises:
            CommandError: a layer is unknown.
            DataError: images are smaller than 32 px.
            ImageTypeError: images are no floating-point RGB images; a subclass of DataError.
        """
        check_images(images)
        first: nn.Conv2d = next(iter(self.steps.values())).conv  # type: ignore[assignment]
        return run_layers(self.steps, self.normalization(images, first.weight), layers)

    def pooled(self, activations: Mapping[str, Tensor]) -> Tensor:
        """Return one vector per image, (N, d), from the layers that the distance compares, see `pooled_stages`.

        Args:
            activations: layer name -> activations, with all layers in `pooled_layers`.

        Raises:
            CommandError: the activations of one of `pooled_layers` are missing.
        """
        return pooled_stages(activations, self.pooled_layers)


class Blur(nn.Module):
    """Blur by [1, 2, 1] / 4 per axis, followed by halving of the size: n px -> n / 2 + 1 px, rounded up.

    The image is first padded by 2 px per side, by reflection. If the image moves by one px, the output changes less
    than that of a convolution or maximum with a stride (Zhang 2019, "Making convolutional networks shift-invariant
    again").
    """

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = (line[:, None] * line[None, :]).expand(channels, 1, 3, 3).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)
        self.pad = ReflectionPad(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.kernel, stride=2, groups=len(self.kernel))


def lpips_alex() -> Lpips:
    """Build ST-LPIPS on AlexNet: layers `relu1` to `relu5`, at about 1/2, 1/4, 1/8, 1/8 and 1/8 of the image size."""
    steps = nn.ModuleDict(
        {
            "relu1": _step(conv=nn.Conv2d(3, 64, 11, padding=2), blur=Blur(64)),
            "relu2": _step(pool=nn.MaxPool2d(3, 1), blur=Blur(64), conv=nn.Conv2d(64, 192, 5, padding=2)),
            "relu3": _step(pool=nn.MaxPool2d(3, 1), blur=Blur(192), conv=nn.Conv2d(192, 384, 3, padding=1)),
            "relu4": _step(conv=nn.Conv2d(384, 256, 3, padding=1)),
            "relu5": _step(conv=nn.Conv2d(256, 256, 3, padding=1)),
        }
    )
    return Lpips(steps, {"relu1": 64, "relu2": 192, "relu3": 384, "relu4": 256, "relu5": 256})


def lpips_vgg() -> Lpips:
    """Build ST-LPIPS on VGG16: layers `relu1_1` to `relu5_3`, at about 1/1 to 1/16 of the image size."""
    steps = nn.ModuleDict()
    channels = 3
    for stage, (depth, width) in enumerate(zip(VGG16_DEPTHS, CHANNELS, strict=True), 1):
        for number in range(1, depth + 1):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            if stage > 1 and number == 1:
                step = _step(pool=nn.MaxPool2d(2, 1), blur=Blur(channels), conv=conv)
            else:
                step = _step(conv=conv)
            steps[f"relu{stage}_{number}"] = step
            channels = width
    return Lpips(steps, dict(zip(last_layers(VGG16_DEPTHS), CHANNELS, strict=True)))


def _step(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules, act=nn.ReLU(inplace=True)))


def _unit_length(x: Tensor) -> Tensor:
    """Scale the channels of `x` (N, C, H, W) to unit length at every position; zeros stay zeros."""
    x = x.to(at_least_float32(x))
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (lengths + 1e-10)
