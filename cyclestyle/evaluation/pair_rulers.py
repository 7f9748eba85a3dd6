"""Perceptual distances of pairs of images by LPIPS."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cyclestyle.errors import CommandError
from cyclestyle.evaluation.rulers import Layers, Ruler, resized
from cyclestyle.model_files import weights
from cyclestyle.networks.lpips import Lpips
from cyclestyle.networks.pretrained import PRETRAINED

NETWORKS = ("lpips_alex", "lpips_vgg")


class PairRuler:
    """LPIPS, which measures the perceptual distance of two images.

    Args:
        name: name of the network, such as `lpips_alex`.
        network: the network with its weights.
        size: side, in px, of the square to which both images are resized first.
        device: device on which the network runs; None for that of the network.
    """

    def __init__(self, name: str, network: Lpips, *, size: int, device: torch.device | None = None) -> None:
        self.name, self.size = name, size
        self.network = network if device is None else network.to(device)
        self.protocol = f"LPIPS, {name}, {size} px, bicubic"
        self.fingerprint = str(network.fingerprint) if hasattr(network, "fingerprint") else ""
        self._device = device

    def for_style(self) -> Ruler:
        """Return a ruler that measures only the style of images, with the same network."""
        layers = Layers(pooled=(), structure=None, style=PRETRAINED[self.name].style_layers)
        return Ruler(self.name, self.network, size=self.size, device=self._device, layers=layers)

    @torch.inference_mode()
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances, float32 (N,) on the CPU, of two batches of uint8 images (N, 3, H, W) in sRGB."""
        first, second = (resized(images.to(self._device), self.size) for images in (x, y))
        return self.network.distance(first, second).cpu()


def load_pair_rulers(
    names: Sequence[str],
    *,
    path: Path | None,
    missing: Literal["skip", "error", "fetch"],
    size: int,
    device: torch.device | None,
    report: Callable[[str], object],
) -> tuple[list[PairRuler], list[str]]:
    """Load networks of LPIPS; return them, and the names of those without weights.

    Args:
        path, missing, report: see `weights.load`.
        size, device: see `PairRuler`.

    Raises:
        CommandError: a name is not that of a network of LPIPS, or see `weights.load`.
    """
    loaded, without = [], []
    for name in names:
        if name not in NETWORKS:
            raise CommandError(f"lpips={name}: there are {' and '.join(NETWORKS)}")
        network = weights.load(name, path=path, missing=missing, report=report)
        if network is None:
            without.append(name)
        else:
            assert isinstance(network, Lpips)
            loaded.append(PairRuler(name, network, size=size, device=device))
    return loaded, without
