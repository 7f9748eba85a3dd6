"""The CycleGAN generator: residual blocks at a quarter of the image size (Zhu et al. 2017; Johnson et al. 2016)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cyclestyle.errors import CommandError
from cyclestyle.networks.norm import InstanceNorm
from cyclestyle.networks.padding import ReflectionPad, pad_to_multiple
from cyclestyle.networks.validation import check_counts

UPSAMPLES = ("transposed", "resize")


class ResNetGenerator(nn.Module):
    """ResNet generator: (N, in_channels, H, W) -> (N, out_channels, H, W), both in [-1, 1], for any size from 1 px.

    The method `unpadded` applies the modules `stem`, `down`, `trunk`, `up` and `head`, in this order, to images whose
    sides are multiples of `multiple` px and at least `minimum` px. `forward` pads other sizes by reflection and crops
    the output.

    Arguments, with their ranges in brackets:

    channels    number of channels after the stem and before the head; the trunk has four times as many (1 to 1024)
    blocks      number of residual blocks; the paper uses 9 for 256 px and larger, 6 for 128 px (0 to 64)
    dropout     dropout probability between the two convolutions of each block, in [0, 1); the 2017 implementation
                offers 0.5
    upsample    "transposed" convolutions as in the paper, or "resize": nearest-neighbour resizing and a convolution,
                which avoids checkerboard patterns (Odena et al. 2016)

    If the attribute `recompute` is True, each residual block stores only its input and is run again in the backward
    pass. This saves memory, but costs a second forward pass of the trunk (Chen et al. 2016).

    Raises CommandError for an argument outside its range.
    """

    recompute = False
    multiple, minimum = 4, 8  # px; the trunk has a quarter of the size and reflects by 1 px, which needs 2 px

    def __init__(
        self,
        channels: int = 64,
        blocks: int = 9,
        *,
        dropout: float = 0.0,
        upsample: str = "transposed",
        in_channels: int = 3,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        check_counts(
            "generator",
            channels=(channels, 1, 1024),
            blocks=(blocks, 0, 64),
            in_channels=(in_channels, 1, 1024),
            out_channels=(out_channels, 1, 1024),
        )
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise CommandError(f"generator.dropout is {dropout!r}: expected a probability from 0 to below 1")
        if upsample not in UPSAMPLES:
            raise CommandError(f"generator.upsample is {upsample!r}: expected one of {', '.join(UPSAMPLES)}")

        self.in_channels, self.out_channels = in_channels, out_channels
        self.architecture: dict[str, str | int | float | bool] = {
            "name": "resnet",
            "channels": channels,
            "blocks": blocks,
            "dropout": dropout,
            "upsample": upsample,
            "in_channels": in_channels,
            "out_channels": out_channels,
        }

        self.stem = nn.Sequential(
            OrderedDict(
                pad=ReflectionPad(3),
                conv=nn.Conv2d(in_channels, channels, 7),
                norm=InstanceNorm(channels),
                act=nn.ReLU(),
            )
        )
        self.down = nn.Sequential(_halve(channels, 2 * channels), _halve(2 * channels, 4 * channels))
        self.trunk = nn.Sequential(*(ResidualBlock(4 * channels, dropout=dropout) for _ in range(blocks)))
        double = _double_transposed if upsample == "transposed" else _double_resized
        self.up = nn.Sequential(double(4 * channels, 2 * channels), double(2 * channels, channels))
        self.head = nn.Sequential(
            OrderedDict(pad=ReflectionPad(3), conv=nn.Conv2d(channels, out_channels, 7), tanh=nn.Tanh())
        )

    def forward(self, x: Tensor) -> Tensor:
        x, crop = pad_to_multiple(x, self.multiple, minimum=self.minimum)
        return self.unpadded(x)[crop]

    def unpadded(self, x: Tensor) -> Tensor:
        """Translate images whose size needs no padding; can be exported to ONNX, as no branch depends on the size."""
        x = self.down(self.stem(x))
        if self.recompute and torch.is_grad_enabled():
            for block in self.trunk:
                x = checkpoint(block, x, use_reentrant=False)
        else:
            x = self.trunk(x)
        y: Tensor = self.head(self.up(x))
        return y


class ResidualBlock(nn.Module):
    """Residual block: x + second(dropout(first(x))), for x of shape (N, channels, H, W) with H and W of at least 2."""

    def __init__(self, channels: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Sequential(
            OrderedDict(
                pad=ReflectionPad(1),
                conv=nn.Conv2d(channels, channels, 3),
                norm=InstanceNorm(channels),
                act=nn.ReLU(),
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Sequential(
            OrderedDict(
                pad=ReflectionPad(1),
                conv=nn.Conv2d(channels, channels, 3),
                norm=InstanceNorm(channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.dropout(self.first(x)))
        return x + y


def _halve(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, out_channels, 3, stride=2, padding=1),
            norm=InstanceNorm(out_channels),
            act=nn.ReLU(),
        )
    )


def _double_transposed(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.ConvTranspose2d(channels, out_channels, 3, stride=2, padding=1, output_padding=1),
            norm=InstanceNorm(out_channels),
            act=nn.ReLU(),
        )
    )


def _double_resized(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            resize=nn.Upsample(scale_factor=2, mode="nearest"),
            pad=ReflectionPad(1),
            conv=nn.Conv2d(channels, out_channels, 3),
            norm=InstanceNorm(out_channels),
            act=nn.ReLU(),
        )
    )
