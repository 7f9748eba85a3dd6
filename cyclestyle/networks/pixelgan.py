"""PixelGAN: a discriminator that judges the colour of every pixel by itself (Isola et al. 2017)."""

from collections import OrderedDict

from torch import Tensor, nn

from cyclestyle.networks.norm import InstanceNorm
from cyclestyle.networks.patchgan import receptive_field
from cyclestyle.networks.validation import check_counts


class PixelDiscriminator(nn.Module):
    """(N, in_channels, H, W) in [-1, 1] -> scores (N, 1, H, W), unbounded, no sigmoid.

    channels    width of the first convolution, half that of the second (1 to 1024)

    Raises CommandError for an argument outside this range. Pictures have `minimum_size` px at least.
    """

    def __init__(self, channels: int = 64, *, in_channels: int = 3) -> None:
        super().__init__()
        check_counts("discriminator", channels=(channels, 1, 1024), in_channels=(in_channels, 1, 1024))

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
        """The smallest square picture in px that the network can judge: instance norm is not defined on one pixel."""
        return 2

    @property
    def receptive_field(self) -> int:
        """Side in px of the patch behind one score; the statistics of instance norm, of the whole picture, aside."""
        return receptive_field(self)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.stem(x)))
        return scores
