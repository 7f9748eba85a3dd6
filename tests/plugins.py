"""Plugin modules and installed packages with networks, written to a folder as a user would write them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cyclestyle.networks import registry

NETWORKS = '''
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class MyGenerator(nn.Module):
    """Keeps the size of images; no method `unpadded`, no padding to multiples."""

    def __init__(self, width: int = 4, *, in_channels: int = 3, out_channels: int = 3) -> None:
        super().__init__()
        self.width, self.in_channels, self.out_channels = width, in_channels, out_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, out_channels, 3, padding=1),
            nn.Tanh(),
        )

    @property
    def architecture(self) -> dict:
        return {
            "name": "mine", "width": self.width, "in_channels": self.in_channels, "out_channels": self.out_channels
        }

    def forward(self, x):
        return self.layers(x)


class SpectralDiscriminator(nn.Module):
    minimum_size = receptive_field = 6

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(3, width, 4, stride=2)), nn.LeakyReLU(0.2), spectral_norm(nn.Conv2d(width, 1, 2))
        )

    @property
    def architecture(self) -> dict:
        return {"name": "spectral", "width": self.width}

    def forward(self, x):
        return self.layers(x)
'''

TABLES = """
GENERATORS = {"mine": MyGenerator}
DISCRIMINATORS = {"spectral": SpectralDiscriminator}
"""


def write_module(folder: Path, name: str = "my_networks", *, source: str = NETWORKS + TABLES) -> str:
    """Write a module that Python finds if `folder` is on its path; return its name."""
    (folder / f"{name}.py").write_text(source)
    return name


def write_installed_package(folder: Path, entry_points: dict[str, str], name: str = "my_networks") -> None:
    """Write the metadata that an installed package `name` has: entry points, name of a network -> `module:Class`."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{network} = {value}" for network, value in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[cyclestyle.networks]", *lines, ""]))


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """Put `folder` on Python's path; modules imported from it, and their networks, are forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_plugins", {"generator": {}, "discriminator": {}})
        patch.syspath_prepend(folder)
        yield
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]
