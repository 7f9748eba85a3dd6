"""Generators, discriminators, pretrained networks, and the registry of names in model files."""

from cyclestyle.networks.initialization import initialize
from cyclestyle.networks.patchgan import PatchDiscriminator, receptive_field
from cyclestyle.networks.pixelgan import PixelDiscriminator
from cyclestyle.networks.registry import DISCRIMINATORS, GENERATORS, build, load_plugins, with_defaults
from cyclestyle.networks.resnet import ResNetGenerator
from cyclestyle.networks.texture import TextureDiscriminator
from cyclestyle.networks.unet import UNetGenerator

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "PatchDiscriminator",
    "PixelDiscriminator",
    "ResNetGenerator",
    "TextureDiscriminator",
    "UNetGenerator",
    "build",
    "initialize",
    "load_plugins",
    "receptive_field",
    "with_defaults",
]
