"""PatchGAN: a discriminator that scores overlapping patches (Isola et al. 2017; Li and Wand 2016)."""

from collections import OrderedDict

from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.networks.norm import InstanceNorm
from cyclestyle.networks.validation import check_counts


class PatchDiscriminator(nn.Module):
    """PatchGAN discriminator, which maps images to unbounded scores (no sigmoid) of overlapping patches.

    (N, in_channels, H, W) in [-1, 1] -> (N, 1, H / 2**layers - 2, W / 2**layers - 2). Arguments, with their ranges in
    brackets:

    channels    number of output channels of the first convolution; doubled by each later convolution but the last, up
                to eightfold (1 to 1024)
    layers      number of convolutions of stride 2; 1, 2 or 3 give patches of 16, 34 or 70 px (1 to 8)
    norm        whether instance norm follows each convolution but the first and last (true or false); instance norm
                hides the strength of a texture

    Raises CommandError for an argument outside its range. Images need at least `minimum_size` px per side.
    """

    def __init__(self, channels: int = 64, layers: int = 3, *, norm: bool = True, in_channels: int = 3) -> None:
        super().__init__()
        check_counts(
            "discriminator",
            channels=(channels, 1, 1024),
            layers=(layers, 1, 8),
            in_channels=(in_channels, 1, 1024),
        )

        if type(norm) is not bool:
            raise CommandError(f"discriminator.norm is {norm!r}: expected true or false")

        self.in_channels = in_channels
        self.architecture: dict[str, str | int | float | bool] = {
            "name": "patch",
            "channels": channels,
            "layers": layers,
            "norm": norm,
            "in_channels": in_channels,
        }

        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        self.stem = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
                act=nn.LeakyReLU(0.2),
            )
        )
        self.body = nn.Sequential(
            *(_narrow(widths[i], widths[i + 1], 2 if i < layers - 1 else 1, norm) for i in range(layers))
        )
        self.head = nn.Conv2d(widths[-1], 1, 4, padding=1)

    @property
    def minimum_size(self) -> int:
        """Side in px of the smallest accepted square image, which gets a single score.

        The last two convolutions have stride 1. They reduce 3 px to 2 px, which the instance norm between them needs,
        and 2 px to one score. Each convolution of stride 2 before them doubles the size needed.
        """
        size: int = 3 * 2 ** len(self.body)
        return size

    @property
    def receptive_field(self) -> int:
        """Side in px of the image patch that decides one score."""
        return receptive_field(self)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.stem(x)))
        return scores


def receptive_field(network: nn.Module) -> int:
    """Return the side in px of the input patch that decides one output pixel of `network`, a chain of convolutions."""
    side, step = 1, 1  # input px that one output depends on, and input px between neighbouring outputs
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            side += (module.kernel_size[0] - 1) * step
            step *= module.stride[0]
    return side


def _narrow(channels: int, out_channels: int, stride: int, norm: bool) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, out_channels, 4, stride=stride, padding=1),
            norm=InstanceNorm(out_channels) if norm else nn.Identity(),
            act=nn.LeakyReLU(0.2),
        )
    )
