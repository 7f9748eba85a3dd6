"""A discriminator of colours and one of textures, side by side (after Ignatov et al. 2018, "WESPE", section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  everybody's name for it

from cyclestyle.networks.padding import repeat_edges
from cyclestyle.networks.patchgan import PatchDiscriminator, receptive_field
from cyclestyle.networks.validation import check_counts

FINE, COARSE = 0.7, 4.0  # px, standard deviations of the blurs between which lies what counts as texture
GAIN = 12.0  # brings its light, about 0.1, to the size of a picture's values


class TextureDiscriminator(nn.Module):
    """(N, in_channels, H, W) in [-1, 1] -> scores (N, 2, H / 2**layers - 2, W / 2**layers - 2), unbounded, no sigmoid.

    The first scores are a PatchDiscriminator's, the second ones those of another that sees texture alone: light in
    waves of a few px. It has no norm, since instance norm divides out how strong a texture is, and no colour, so that
    nothing but brush strokes, grain and the like can please it.

    channels           width of the first one's first convolution; it doubles up to eight times that (1 to 1024)
    layers             convolutions of stride 2 in both (1 to 8)
    texture_channels   `channels` of the second one (1 to 1024)

    Raises CommandError for an argument outside these ranges. Pictures have `minimum_size` px at least.
    """

    def __init__(
        self, channels: int = 64, layers: int = 3, texture_channels: int = 32, *, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_counts("discriminator", texture_channels=(texture_channels, 1, 1024))
        self.patch = PatchDiscriminator(channels, layers, in_channels=in_channels)
        self.texture = PatchDiscriminator(texture_channels, layers, norm=False, in_channels=1)
        self.architecture: dict[str, str | int | float | bool] = {
            "name": "texture",
            "channels": channels,
            "layers": layers,
            "texture_channels": texture_channels,
            "in_channels": in_channels,
        }

    @property
    def minimum_size(self) -> int:
        """The smallest square picture in px that the network can judge; it gets a single score of each kind."""
        return self.patch.minimum_size

    @property
    def receptive_field(self) -> int:
        """Side in px of the patch behind one score of texture, the larger of the two."""
        return receptive_field(self.texture) + 2 * _radius(COARSE)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.patch(x), self.texture(texture(x))], dim=1)


def texture(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 1, H, W): light in waves between two sizes, those of the pixels and of things left out."""
    light = x.mean(dim=1, keepdim=True)
    return GAIN * (_blurred(light, FINE) - _blurred(light, COARSE))


def _blurred(light: Tensor, deviation: float) -> Tensor:
    """(N, 1, H, W) under a Gaussian of so many px, edges repeated, at every size from 1 px up."""
    radius = _radius(deviation)
    # In float32 at least: rounded otherwise for a translation in bf16, the kernel would tell it from a real picture.
    wanted = torch.promote_types(light.dtype, torch.float32)
    places = torch.arange(-radius, radius + 1, dtype=wanted, device=light.device)
    kernel = torch.softmax(-places.square() / (2 * deviation**2), dim=0).to(light.dtype)  # exp(-x^2 / 2 s^2), of sum 1
    wide = repeat_edges(light, radius)
    return F.conv2d(F.conv2d(wide, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def _radius(deviation: float) -> int:
    return round(3 * deviation)
