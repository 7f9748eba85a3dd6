"""Small models and images for the tests of translation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cyclestyle.checkpoints.model import Model
from cyclestyle.checkpoints.model import write_model as write_networks
from cyclestyle.networks import registry

RESNET = {"name": "resnet", "channels": 4, "blocks": 1}
UNET = {"name": "unet", "channels": 4, "levels": 3}


def write_model(
    folder: Path,
    *,
    architecture: dict = RESNET,
    back: dict | None = None,
    domains: tuple[str, str] = ("photo", "monet"),
    ema: bool = True,
    without: str = "",
) -> Path:
    """Write a model file; its weights differ between directions, and between the moving average and the last step.

    `architecture` is that of both generators, or of the first one if `back` gives the architecture of the second.
    """
    architectures = {"ab": architecture, "ba": back or architecture}
    tensors: dict[str, Tensor] = {}
    for seed, prefix in enumerate(["generators.ab.", "generators.ba.", *(["ema.ab.", "ema.ba."] if ema else [])]):
        torch.manual_seed(seed)
        network = registry.build(architectures[prefix.split(".")[1]])
        tensors |= {prefix + key: value for key, value in network.state_dict().items()}
    if without:
        tensors = {key: value for key, value in tensors.items() if without not in key}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "networks.safetensors"
    generators = {side: dict(architecture) for side, architecture in architectures.items()}
    discriminators = {side: {"name": "patch"} for side in ("a", "b")}
    write_networks(Model(tensors, generators, discriminators, domains, 42, Path()), path)
    return path


def invert(pixels: Tensor) -> Tensor:
    """Invert images; used as a model whose results are easily recognised."""
    return 255 - pixels


class Inverted:
    """A pipeline that returns `count` copies of each inverted image."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.batches: list[torch.Size] = []

    def __call__(self, pixels: Tensor, *, advance: object = None) -> list[Tensor]:
        self.batches.append(pixels.shape)
        return [torch.from_numpy(np.iinfo(pixels.numpy().dtype).max - pixels.numpy())] * self.count

    def max_batch(self, height: int, width: int) -> int:
        return max(1, 2**21 // (height * width))


def noise(width: int, height: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_picture(path: Path, *, size: tuple[int, int] = (12, 9), seed: int = 0) -> np.ndarray:
    """Write an image of random colours; return its pixels, (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(*size, seed=seed)
    Image.fromarray(pixels).save(path)
    return pixels


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
