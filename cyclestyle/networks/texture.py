"""Two discriminators in parallel: for images and for their texture (after Ignatov et al. 2018, "WESPE", section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the conventional name

from cyclestyle.networks.padding import repeat_edges
from cyclestyle.networks.patchgan import PatchDiscriminator, receptive_field
from cyclestyle.networks.validation import check_counts

FINE, COARSE = 0.7, 4.0  # px, standard deviations of the two Gaussian blurs whose difference is the texture
GAIN = 12.0  # scales the texture, with values of about 0.1, to the range of images


class TextureDiscriminator(nn.Module):
    """Two PatchGAN discriminators, for the image and for its texture, with unbounded scores (no sigmoid).

    (N, in_channels, H, W) in [-1, 1] -> (N, 2, H / 2**layers - 2, W / 2**layers - 2). Channel 0 has the scores for the
    image, channel 1 the scores for its texture: variations of brightness over a few px. The texture discriminator sees
    no colours and no large shapes: its scores depend only on brush strokes, grain and the like. It has no instance
    norm, which would hide the strength of a texture. Arguments, with their ranges in brackets:

    channels           `channels` argument of the image discriminator (1 to 1024)
    layers             number of convolutions of stride 2 in each discriminator (1 to 8)
    texture_channels   `channels` argument of the texture discriminator (1 to 1024)

    Raises CommandError for an argument outside its range. Images need at least `minimum_size` px per side.
    """

    def __init__(
        self, channels: int = 64, layers: int = 3, texture_channels: int = 32, *, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_counts("discriminator", texture_channels=(texture_channels, 1, 1024))
        self.patch = PatchDiscriminator(channels, layers, in_channels=in_channels)
        self.texture = PatchDiscriminator(texture_channels, layers, norm=False, in_channels=1)
        self.in_channels = in_channels
        self.architecture: dict[str, str | int | float | bool] = {
            "name": "texture",
            "channels": channels,
            "layers": layers,
            "texture_channels": texture_channels,
            "in_channels": in_channels,
        }

    @property
    def minimum_size(self) -> int:
        """Side in px of the smallest accepted square image, which gets one image score and one texture score."""
        return self.patch.minimum_size

    @property
    def receptive_field(self) -> int:
        """Side in px of the image patch that decides one texture score; an image score depends on a smaller patch."""
        return receptive_field(self.texture) + 2 * _radius(COARSE)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.patch(x), self.texture(texture(x))], dim=1)


def texture(x: Tensor) -> Tensor:
    """Return the texture of images, (N, C, H, W) -> (N, 1, H, W): brightness variations over a few px."""
    light = x.mean(dim=1, keepdim=True)
    return GAIN * (_blurred(light, FINE) - _blurred(light, COARSE))


def _blurred(light: Tensor, deviation: float) -> Tensor:
    """Blur `light` (N, 1, H, W) by a Gaussian of standard deviation `deviation` px.

    Edge pixels are repeated as padding, so that any image size works.
    """
    radius = _radius(deviation)
    # At least float32: real images are float32, and bf16 translations would be recognised by a rounded kernel.
    dtype = torch.promote_types(light.dtype, torch.float32)
    positions = torch.arange(-radius, radius + 1, dtype=dtype, device=light.device)
    gaussian = torch.softmax(-positions.square() / (2 * deviation**2), dim=0)  # exp(-x^2 / 2 s^2), sums to 1
    kernel = gaussian.to(light.dtype)
    wide = repeat_edges(light, radius)
    return F.conv2d(F.conv2d(wide, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def _radius(deviation: float) -> int:
    return round(3 * deviation)
