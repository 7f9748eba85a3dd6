"""PixelGAN: a discriminator that scores the colour of every pixel separately (Isola et al. 2017)."""

from collections import OrderedDict

from torch import Tensor, nn

from cyclestyle.networks.norm import InstanceNorm
from cyclestyle.networks.patchgan import receptive_field
from cyclestyle.networks.validation import check_counts


class PixelDiscriminator(nn.Module):
    """PixelGAN discriminator, which maps images to unbounded scores (no sigmoid) of all pixels.

    (N, in_channels, H, W) in [-1, 1] -> (N, 1, H, W). Argument, with its range in brackets:

    channels    number of channels after the first convolution; the second has twice as many (1 to 1024)

    Raises CommandError for an argument outside its range. Images need at least `minimum_size` px per side.
    """

    def __init__(self, channels: int = 64, *, in_channels: int = 3) -> None:
        super().__init__()
        check_counts("discriminator", channels=(channels, 1, 1024), in_channels=(in_channels, 1, 1024))

        self.in_channels = in_channels
        self.architecture: dict[str, str | int | float | bool] = {
            "name": "pixel",
            "channels": channels,
            "in_channels": in_channels,
        }

        self.stem = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, channels, 1),
                act=nn.LeakyReLU(0.2),
            )
        )
        self.body = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(channels, 2 * channels, 1),
                norm=InstanceNorm(2 * channels),
                act=nn.LeakyReLU(0.2),
            )
        )
        self.head = nn.Conv2d(2 * channels, 1, 1)

    @property
    def minimum_size(self) -> int:
        """Side in px of the smallest accepted square image: instance norm is undefined on one pixel."""
        return 2

    @property
    def receptive_field(self) -> int:
        """Side in px of the image patch that decides one score: 1, ignoring the statistics of instance norm."""
        return receptive_field(self)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.stem(x)))
        return scores
