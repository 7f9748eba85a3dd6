"""The U-Net generator of pix2pix, with instance norm instead of batch norm (Isola et al. 2017)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.networks.norm import InstanceNorm
from cyclestyle.networks.padding import ReflectionPad, pad_to_multiple
from cyclestyle.networks.resnet import UPSAMPLES
from cyclestyle.networks.validation import check_counts


class UNetGenerator(nn.Module):
    """U-Net generator: (N, in_channels, H, W) -> (N, out_channels, H, W), both in [-1, 1], for any size from 1 px.

    Each module of `down` halves the image size. Each module of `up` doubles it, from the innermost level outwards, and
    `head` doubles it once more. If `detail` is not 0, the module `fine` follows.

    The method `unpadded` applies these modules to images whose sides are multiples of 2**levels px, the value of the
    attributes `multiple` and `minimum`. `forward` pads other sizes by reflection and crops the output.

    Arguments, with their ranges in brackets:

    channels    number of channels of the outermost level; it doubles with each inner level, up to eightfold (1 to 1024)
    levels      number of halvings; the 2017 implementation uses 8 for 256 px and 7 for 128 px (2 to 10)
    dropout     dropout probability in levels 5 to `levels - 1`, in [0, 1), where level 1 is the outermost; the 2017
                implementation uses 0.5
    upsample    "transposed" convolutions as in the paper, or "resize": nearest-neighbour resizing and a convolution,
                which avoids a grid of dots after short training (Odena et al. 2016)
    detail      number of channels inside the module `fine` (0 to 1024; 0: no such module, as in the paper). It has two
                convolutions at full size. Its inputs are the output of `head` and the input image; its output is added
                to `inverse_tanh` of the input image before the final tanh. Fine detail is thus preserved from the first
                step, and brush strokes can develop from it.

    Raises CommandError for an argument outside its range, and for `detail` > 0 if in_channels and out_channels differ.
    """

    def __init__(
        self,
        channels: int = 64,
        levels: int = 8,
        *,
        dropout: float = 0.0,
        upsample: str = "transposed",
        detail: int = 0,
        in_channels: int = 3,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        check_counts(
            "generator",
            channels=(channels, 1, 1024),
            levels=(levels, 2, 10),
            detail=(detail, 0, 1024),
            in_channels=(in_channels, 1, 1024),
            out_channels=(out_channels, 1, 1024),
        )
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise CommandError(f"generator.dropout is {dropout!r}: expected a probability from 0 to below 1")
        if upsample not in UPSAMPLES:
            raise CommandError(f"generator.upsample is {upsample!r}: expected one of {', '.join(UPSAMPLES)}")

        if detail and in_channels != out_channels:
            raise CommandError(
                f"generator.detail is {detail!r}: expected 0, as {in_channels} channels cannot be added to "
                f"{out_channels}"
            )

        self.in_channels, self.out_channels = in_channels, out_channels
        self.architecture: dict[str, str | int | float | bool] = {
            "name": "unet",
            "channels": channels,
            "levels": levels,
            "dropout": dropout,
            "upsample": upsample,
            "detail": detail,
            "in_channels": in_channels,
            "out_channels": out_channels,
        }

        self.multiple = self.minimum = 2**levels  # px

        double = _double_transposed if upsample == "transposed" else _double_resized
        widths = [channels * min(2**i, 8) for i in range(levels)]
        innermost = levels - 1

        self.down = nn.ModuleList([nn.Sequential(OrderedDict(conv=_halve(in_channels, widths[0])))])
        for i in range(1, levels):
            down = nn.Sequential(OrderedDict(act=nn.LeakyReLU(0.2), conv=_halve(widths[i - 1], widths[i])))
            if i < innermost:  # the innermost level can have a single pixel, which cannot be normalised
                down.append(InstanceNorm(widths[i]))
            self.down.append(down)

        self.up = nn.ModuleList()
        for i in reversed(range(1, levels)):
            width = widths[i] if i == innermost else 2 * widths[i]
            self.up.append(
                nn.Sequential(
                    OrderedDict(
                        act=nn.ReLU(),
                        conv=double(width, widths[i - 1]),
                        norm=InstanceNorm(widths[i - 1]),
                        dropout=nn.Dropout(dropout if 4 <= i < innermost else 0.0),
                    )
                )
            )
        self.head = nn.Sequential(
            OrderedDict(act=nn.ReLU(), conv=double(2 * widths[0], detail or out_channels)),
        )
        if detail:
            self.fine = nn.Sequential(
                OrderedDict(
                    pad=ReflectionPad(1),
                    conv=nn.Conv2d(detail + in_channels, detail, 3),
                    act=nn.LeakyReLU(0.2),
                    pad_out=ReflectionPad(1),
                    conv_out=nn.Conv2d(detail, out_channels, 3),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        x, crop = pad_to_multiple(x, self.multiple, minimum=self.minimum)
        return self.unpadded(x)[crop]

    def unpadded(self, x: Tensor) -> Tensor:
        """Translate images whose sides are multiples of `multiple` px, without padding.

        The method can be exported to ONNX, as no branch depends on the image size.
        """
        image, skips = x, []
        for down in self.down:
            x = down(x)
            skips.append(x)

        x = skips.pop()
        for up in self.up:
            x = torch.cat([skips.pop(), up(x)], dim=1)

        y: Tensor = self.head(x)
        if self.architecture["detail"]:
            y = self.fine(torch.cat([y, image], dim=1)) + inverse_tanh(image)
        return torch.tanh(y)


def inverse_tanh(image: Tensor) -> Tensor:
    """Return atanh(0.95 * image) for an image in [-1, 1]; the factor 0.95 keeps black and white finite."""
    return torch.atanh(0.95 * image)


def _halve(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 4, stride=2, padding=1)


def _double_transposed(channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1)


def _double_resized(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            resize=nn.Upsample(scale_factor=2, mode="nearest"),
            pad=ReflectionPad(1),
            conv=nn.Conv2d(channels, out_channels, 3),
        )
    )
