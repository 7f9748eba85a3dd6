"""EfficientNet-Lite0, a small network pretrained on ImageNet (Tan and Le 2019; Liu 2020, "EfficientNet-Lite")."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the conventional name

from cyclestyle.networks.frozen import Normalization, check_images, chosen, freeze, initialize_like_he, run_layers


class _Stage(NamedTuple):
    blocks: int
    channels: int  # number of output channels
    kernel: int  # px, side of the depthwise convolution
    stride: int  # stride of the first block; the others have stride 1
    expansion: int  # channels within a block per input channel


STAGES = (
    _Stage(1, 16, kernel=3, stride=1, expansion=1),
    _Stage(2, 24, kernel=3, stride=2, expansion=6),
    _Stage(2, 40, kernel=5, stride=2, expansion=6),
    _Stage(3, 80, kernel=3, stride=2, expansion=6),
    _Stage(3, 112, kernel=5, stride=1, expansion=6),
    _Stage(4, 192, kernel=5, stride=2, expansion=6),
    _Stage(1, 320, kernel=3, stride=1, expansion=6),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
NORM_EPS = 1e-3  # added to the variance by each batch norm


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classifier, as a source of features.

    Images (N, 3, H, W), sRGB in 0..1, with sides of 32 px or more -> activations of the requested layers:

    stem                  (N, 32, H/2, W/2)
    block0 ... block15    outputs of the 16 blocks: 16 to 320 channels, at 1/2 to 1/32 of the image size, rounded up;
                          block5 to block10 have 1/16
    head                  (N, 1280, H/32, W/32)

    The network normalises the images itself. It always stays in evaluation mode: batch norms use their trained
    statistics. Its weights are frozen and random until weights are loaded; gradients flow to the images.
    """

    pooled_layers = ("head",)

    def __init__(self) -> None:
        super().__init__()
        self.normalization = Normalization(3 * (127 / 255,), 3 * (128 / 255,))
        steps: dict[str, nn.Module] = {"stem": _unit(3, STEM_CHANNELS, 3, stride=2)}
        steps.update((f"block{number}", block) for number, block in enumerate(_blocks()))
        steps["head"] = _unit(STAGES[-1].channels, HEAD_CHANNELS, 1)
        self.steps = nn.ModuleDict(steps)
        initialize_like_he(self)
        freeze(self)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order of the forward pass."""
        return tuple(self.steps)

    def train(self, mode: bool = True) -> Self:
        """Keep evaluation mode, also as a part of a module that switches to training mode."""
        return super().train(False)

    def forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the activations of `layers` by name; layers behind the last requested one are not computed.

        Raises:
            CommandError: a layer is unknown.
            DataError: images are smaller than 32 px.
            ImageTypeError: images are no floating-point RGB images; a subclass of DataError.
        """
        check_images(images)
        stem: nn.Conv2d = self.steps["stem"].conv  # type: ignore[assignment]
        return run_layers(self.steps, self.normalization(images, stem.weight), layers)

    def pooled(self, activations: Mapping[str, Tensor]) -> Tensor:
        """Return one vector per image, (N, 1280): the mean over all positions of the layer `head`, without scaling.

        Raises:
            CommandError: the activations of `head` are missing.
        """
        (head,) = chosen(activations, self.pooled_layers)
        return head.mean(dim=(2, 3))


class SameConv(nn.Conv2d):
    """Convolution without bias and with padding as in TensorFlow's mode SAME: n px -> n / stride px, rounded up.

    Zeros are added on both sides of each axis. If their number is odd, as is common with a stride of 2, the right or
    bottom side gets one more than the other; PyTorch's own padding is always symmetric.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name in PyTorch
        vertical, horizontal = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0)
            for side, kernel, stride in zip(input.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        margins = (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
        return super().forward(F.pad(input, margins) if any(margins) else input)


class InvertedBottleneck(nn.Module):
    """Block of EfficientNet: 1x1 convolution to more channels, depthwise convolution, 1x1 convolution to few channels.

    (N, channels, H, W) -> (N, out_channels, H / stride, W / stride), sides rounded up. The input is added to the output
    if the stride is 1 and `channels` equals `out_channels`.

    Args:
        channels, out_channels: numbers of channels of the input and the output.
        kernel: side of the depthwise convolution in px.
        stride: stride of the depthwise convolution.
        expansion: channels after the first convolution per input channel; with 1, this convolution is left out.
    """

    def __init__(self, channels: int, out_channels: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = _unit(channels, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(wide, wide, kernel, stride=stride, groups=wide)
        self.project = nn.Sequential(
            OrderedDict(
                conv=SameConv(wide, out_channels, 1),
                norm=nn.BatchNorm2d(out_channels, eps=NORM_EPS),
            )
        )
        self.has_skip = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_skip else y


def _blocks() -> Iterator[InvertedBottleneck]:
    channels = STEM_CHANNELS
    for stage in STAGES:
        for number in range(stage.blocks):
            yield InvertedBottleneck(
                channels,
                stage.channels,
                kernel=stage.kernel,
                stride=stage.stride if number == 0 else 1,
                expansion=stage.expansion,
            )
            channels = stage.channels


def _unit(channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=SameConv(channels, out_channels, kernel, stride=stride, groups=groups),
            norm=nn.BatchNorm2d(out_channels, eps=NORM_EPS),
            act=nn.ReLU6(inplace=True),
        )
    )
