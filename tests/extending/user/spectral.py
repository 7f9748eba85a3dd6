"""A patch discriminator with spectral norm instead of instance norm (Miyato et al. 2018), as a plugin."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class SpectralDiscriminator(nn.Module):
    """Scores patches: (N, in_channels, H, W) -> (N, 1, H/4 - 2, W/4 - 2) about."""

    minimum_size, receptive_field = 16, 34  # px

    def __init__(self, channels: int = 64, *, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.architecture = {"name": "spectral", "channels": channels, "in_channels": in_channels}
        widths = [in_channels, channels, 2 * channels, 1]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if index < 2 else 1
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=stride, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images)
        return scores


DISCRIMINATORS = {"spectral": SpectralDiscriminator}
