"""Rulers: pretrained networks that measure images by their features."""

import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError, DataError, ImageTypeError
from cyclestyle.evaluation import fidelity
from cyclestyle.evaluation.image_files import shorter_side
from cyclestyle.hardware.full_precision import full_precision
from cyclestyle.images import decoding, tensors
from cyclestyle.metrics.style import gram
from cyclestyle.model_files import weights, weights_file
from cyclestyle.networks.pretrained import PRETRAINED

Part = Literal["pooled", "tokens", "grams"]
Report = Callable[[str], object]

MINIMUM_SIZE, MAXIMUM_SIZE = 128, 256  # px, limits of `shared_size`
SMALLEST = 32  # px; smaller images vanish in the deepest layers


class Features(NamedTuple):
    """Features of a batch of N images by one ruler (pretrained network), float32 on the CPU.

    Attributes:
        pooled: one vector of length d per image (N, d), for distances between sets of images; None if not requested.
        tokens: activations of one layer, for the layout of an image: one vector of C channels for each of the T
            positions in the layer (N, T, C); None if not requested.
        grams: one tensor (N, g) per style layer, with one row per image's Gram matrix, see `metrics.style.gram`; empty
            if not requested.
    """

    pooled: Tensor | None = None
    tokens: Tensor | None = None
    grams: tuple[Tensor, ...] = ()


class Layers(NamedTuple):
    """Names of the layers of a network from which the parts of `Features` are computed."""

    pooled: tuple[str, ...]  # empty for a network without a pooled vector
    structure: str | None  # None for a network without tokens
    style: tuple[str, ...]  # empty for a network without Gram matrices

    def of(self, part: Part) -> tuple[str, ...]:
        """Return the names of the layers that a part of `Features` needs; empty if the network lacks this part."""
        structure = () if self.structure is None else (self.structure,)
        return {"pooled": self.pooled, "tokens": structure, "grams": self.style}[part]


class Ruler:
    """A pretrained network as a measuring instrument for images.

    All images, real ones and translations, are resized in the same way before the network sees them: to a square, with
    an antialiased bicubic filter, rounded to 8 bits. The network computes in float32.

    Args:
        name: name of the network, such as `vgg16_hed`.
        network: frozen network with the methods described at `PretrainedNetwork`.
        size: side in px of the square that images are resized to; at least 32.
        device: device that the network is moved to; None keeps its device.
        layers: layers from which the features are computed; None takes those of `PRETRAINED[name]`.

    Attributes:
        fingerprint: SHA-256 of the weights.
        protocol: description of the measurement for tables, such as `vgg16_hed, 128 px, bicubic`.

    Raises:
        CommandError: the size is too small, or `layers` is None and `PRETRAINED` has no network of this name.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        size: int,
        device: torch.device | None = None,
        layers: Layers | None = None,
    ) -> None:
        if size < SMALLEST:
            raise CommandError(f"size={size}: {name} measures images of {SMALLEST} px or more")
        self.name, self.size = name, size
        self.network = network if device is None else network.to(device)
        self.layers = _layers(name) if layers is None else layers
        self.fingerprint: str = _fingerprint(network)
        self.protocol = f"{name}, {size} px, bicubic"
        self._device = device or next((weight.device for weight in network.parameters()), torch.device("cpu"))

    @property
    def has_pooled(self) -> bool:
        return bool(self.layers.of("pooled"))

    @property
    def has_structure(self) -> bool:
        return bool(self.layers.of("tokens"))

    @property
    def has_style(self) -> bool:
        return bool(self.layers.of("grams"))

    @torch.no_grad()
    def measure(self, images: Tensor, parts: Collection[Part]) -> Features:
        """Measure a batch of images in one forward pass.

        Args:
            images: uint8 (N, 3, H, W) of any size, sRGB, or (N, 1, H, W), grey.
            parts: parts of the features to compute.

        Raises:
            CommandError: the network does not have one of the parts.
            ImageTypeError: `images` has another dtype or shape.
        """
        for part in parts:
            if not self.layers.of(part):
                raise CommandError(f"{self.name} has no {part} features: choose another ruler for this score")
        names = list(dict.fromkeys(name for part in parts for name in self.layers.of(part)))
        network: Any = self.network
        with full_precision(self._device):
            activations: dict[str, Tensor] = network(resized(images, self.size).to(self._device), names)
            pooled = network.pooled(activations).float().cpu() if "pooled" in parts else None
            tokens = None
            if "tokens" in parts and self.layers.structure is not None:
                tokens = activations[self.layers.structure].flatten(2).transpose(1, 2).float().cpu()
            style = self.layers.style if "grams" in parts else ()
            return Features(pooled, tokens, tuple(gram(activations[name]).float().cpu() for name in style))


def resized(images: Tensor, size: int) -> Tensor:
    """Resize images as rulers do: to a square, by an antialiased bicubic filter, rounded to 8 bits.

    The result does not depend on the device, since the filter runs on the CPU.

    Args:
        images: uint8 (N, 3, H, W), or (N, 1, H, W) for grey.
        size: side of the square in px.

    Returns:
        float32 (N, 3, size, size) in 0..1, on the CPU

    Raises:
        ImageTypeError: `images` has another dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ImageTypeError(
            f"images have the dtype {images.dtype} and the shape {tuple(images.shape)}: "
            f"expected 8-bit images, uint8 (N, 3, H, W)"
        )
    images = tensors.with_channels(images.cpu(), 3)
    if images.shape[-2:] != (size, size) and len(images):
        squares = [decoding.resize(tensors.uint8_to_pil(image), size, size) for image in images]
        images = torch.stack([tensors.pil_to_uint8(square) for square in squares])
    # One layout for all images: convolutions of another layout round differently, and equal images would differ.
    return images.to(torch.float32, memory_format=torch.contiguous_format) / 255


def load_rulers(
    names: Sequence[str],
    *,
    path: Path | None = None,
    missing: weights.Missing = "error",
    size: int,
    device: torch.device | None = None,
    report: Report = weights.ignore,
    key: str = "features.path",
) -> tuple[list[Ruler], list[str]]:
    """Load pretrained networks as rulers, which measure images by their features.

    Args:
        names: names of networks in `PRETRAINED`, or of extractors of torch-fidelity such as `fidelity:inception`, see
            `fidelity.load`. A repeated name counts once.
        path, missing, report, key: see `weights.load`.
        size, device: see `Ruler`. Most extractors of torch-fidelity have a fixed size, such as 299 px, and ignore
            `size`.

    Returns:
        The rulers in the order of `names`; and the names that were skipped because their weights are missing. The
        second list is empty unless `missing` is `skip`.

    Raises:
        CommandError: a name is unknown, or the weights are missing or cannot be fetched.
        CheckpointError: a file at `path` is damaged.
        DiskError: fetched weights cannot be written to the cache.
    """
    rulers, without = [], []
    for name in dict.fromkeys(names):
        network: nn.Module | None
        if name.startswith(fidelity.PREFIX):
            network = fidelity.load(name, missing=missing, default_size=size, report=report)
        else:
            network = weights.load(name, path=path, missing=missing, report=report, key=key)
        if network is None:
            without.append(name)
        elif isinstance(network, fidelity.FidelityNetwork):
            layers = Layers((fidelity.LAYER,), None, ())
            rulers.append(Ruler(name, network, size=network.size, device=device, layers=layers))
        else:
            rulers.append(Ruler(name, network, size=size, device=device))
    return rulers, without


def shared_size(files: Sequence[Path]) -> int:
    """Return the side in px of the square to which rulers resize images, suitable for the images in `files`.

    It is the median of the images' shorter sides, limited to 128..256.

    Args:
        files: image files of the target domain. Only their headers are read.

    Raises:
        DataError: there are no files, or a file is not an image.
    """
    if not files:
        raise DataError("no pictures to measure: the folder of the target domain is empty")
    median = statistics.median_low(shorter_side(file) for file in files)
    return min(max(median, MINIMUM_SIZE), MAXIMUM_SIZE)


def usual_size(files: Sequence[Path], *, photo_size: int | None) -> int:
    """Return the side in px of the square to which rulers resize images if the user has chosen no size.

    Args:
        files: image files of the target domains. `shared_size` derives the side from them if `photo_size` is None.
        photo_size: side in px of the square to which all images are resized first. This side, limited to 128..256, is
            the result. None if images keep their stored size.
    """
    return shared_size(files) if photo_size is None else min(max(photo_size, MINIMUM_SIZE), MAXIMUM_SIZE)


def left_out(names: Sequence[str]) -> str:
    """Return a line for the user that names the pretrained networks without weights, and the way to get these."""
    several = f"[{','.join(names)}]" if len(names) > 1 else names[0]
    remedy = f"run python -m cyclestyle.download features={several}"
    if any(name.startswith(fidelity.PREFIX) for name in names):  # the library fetches their weights itself
        remedy = "give missing=fetch"
    return f"no weights of {', '.join(names)}: their scores are left out; to have them, {remedy}"


def _layers(name: str) -> Layers:
    if name not in PRETRAINED:
        raise CommandError(f"no pretrained network {name}: there are {', '.join(PRETRAINED)}")
    network = PRETRAINED[name]
    return Layers(network.pooled_layers, network.structure_layer, network.style_layers)


def _fingerprint(network: nn.Module) -> str:
    """Return the SHA-256 of the network's weights; compute it unless `weights.load` has recorded it in the network."""
    known = getattr(network, "fingerprint", None)
    return known if isinstance(known, str) else weights_file.checksum(network.state_dict())
