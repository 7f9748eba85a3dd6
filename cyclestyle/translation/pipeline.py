"""Translation pipeline: run the model on a photo, at once or in strips of rows, and blend the photo with the output."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cyclestyle.errors import CommandError, DataError
from cyclestyle.filesystem.atomic import megabytes
from cyclestyle.images import tensors
from cyclestyle.translation import blending
from cyclestyle.translation.blending import Keep
from cyclestyle.translation.tiled import tiling
from cyclestyle.translation.translator import Translator

MAX_PIXELS_IN_BATCH = 2**21  # maximum number of pixels in a batch; 64 channels take about 1 GB per million in float32
VERSION = 2  # version of the results; increase it whenever the same settings give different pixels
UNKNOWN_NETWORK_BYTES = 900  # per pixel; memory assumed for an unknown network, the same as for the default generator

_COLOURS = {1: "grey", 3: "RGB"}

Tile = int | Literal["auto", "off"]


class TranslationPipeline:
    """Pipeline that translates photos with a model, within a memory limit, and blends each photo with its translation.

    Args:
        translator: one direction of a model.
        strength: 0 to 1.5; 0 gives the photo, 1 the model's output, and more than 1 extrapolates, see `blending.blend`.
            A sequence of strengths gives one result per strength.
        keep: property of the photo that is preserved: `none`, `colour` or `luminance`.
        tile: whether images are tiled, that is, translated in strips (groups of rows, as wide as the image). `auto`
            tiles an image if running the network on the whole image at once would need more than `memory`, `off` tiles
            no image, and a number tiles every image, in strips of that height in px.
        memory: bytes available for the network's computation, as a number or as text such as `4GB`. The process needs
            more: PyTorch itself, and for the photos about `memory.PHOTO_BYTES` per pixel, see `cyclestyle.hardware`.
        folder: folder for temporary files with the activations of a tiled image that do not fit into `memory`; by
            default, the system's temporary folder.
        high_precision: translator for 16-bit images, which need more than the 8 significant bits of bf16; by default,
            `translator` is used.

    Raises:
        CommandError: a value is out of range, tiling was requested for an unsupported network, or `strength` or `keep`
            requires blending although the model changes the number of channels.
    """

    def __init__(
        self,
        translator: Translator,
        *,
        strength: float | Sequence[float] = 1.0,
        keep: Keep = "none",
        tile: Tile = "auto",
        memory: str | int = "4GB",
        folder: Path | None = None,
        high_precision: Translator | None = None,
    ) -> None:
        self.high_precision = high_precision or translator
        self.translator, self.keep, self.tile, self.folder = translator, keep, tile, folder
        self.strengths = as_strengths(strength)
        for value in self.strengths:
            blending.check(value, keep)
        self._check_channels()
        self.memory = tiling.parse_memory(str(memory))
        network = translator.generator
        self._tileable = network if network is not None and tiling.can_tile(network) else None
        if isinstance(tile, int) and tile < 1:
            raise CommandError(f"tile={tile}: give the height of a strip in px, auto or off")
        if isinstance(tile, int) and self._tileable is None:
            raise CommandError(f"tile={tile}: this model cannot be tiled, only the built-in ResNets and U-Nets can")

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        strength: float | Sequence[float] = 1.0,
        keep: Keep = "none",
        tile: Tile = "auto",
        memory: str | int = "4GB",
        folder: Path | None = None,
        **options: Any,
    ) -> "TranslationPipeline":
        """Load the model of a checkpoint; `options` are passed to `Translator.load`.

        16-bit images are translated in fp32, unless the option `precision` requests another precision.
        """
        translator = Translator.load(checkpoint, **options)
        high_precision = translator.in_fp32() if options.get("precision", "auto") == "auto" else translator
        return cls(
            translator,
            strength=strength,
            keep=keep,
            tile=tile,
            memory=memory,
            folder=folder,
            high_precision=high_precision,
        )

    def __str__(self) -> str:
        return ", ".join([str(self.translator), *self._settings])

    @property
    def facts(self) -> list[str]:
        """Texts about the model and the settings, shown on the contact sheet (the overview page of a photo set).

        They are the direction, the path of the model with its training step, and non-default blending settings.
        """
        step = "" if self.translator.step is None else f", step {self.translator.step:,}"
        path = self.translator.path
        # The page may be passed on: an absolute path would show the names of a user's folders.
        shown = path if not path.is_absolute() else Path(*path.parts[-3 if path.parent.name == "checkpoints" else -1 :])
        return [self.translator.direction, f"{shown}{step}", *self._settings]

    @property
    def labels(self) -> list[str]:
        """One label for each strength, such as "50%"; empty if there is a single strength."""
        return [f"{value:.0%}" for value in self.strengths] if len(self.strengths) > 1 else []

    @property
    def _settings(self) -> list[str]:
        strengths = ", ".join(f"{value:g}" for value in self.strengths)
        settings = [] if self.strengths == (1.0,) else [f"strength {strengths}"]
        return settings if self.keep == "none" else [*settings, f"the photo's {self.keep} kept"]

    def __call__(self, pixels: Tensor, *, advance: Callable[[float], object] | None = None) -> list[Tensor]:
        """Translate a batch of images; return a list with one translated batch for each strength.

        Args:
            pixels: uint8 or uint16 (N, 3, H, W); each translated batch has the same dtype and shape, but 1 channel if
                the model's output is grey.
            advance: called with the completed share of the work, 0 to 1, while a tiled image is translated.

        Raises:
            DataError: an image needs more than `memory`.
        """
        photo = tensors.with_channels(tensors.to_float(pixels), self.translator.in_channels)
        translator = self.translator if pixels.dtype == torch.uint8 else self.high_precision
        translation = self._translate(photo, translator, advance)
        return [_quantized(self._blended(photo, translation, strength=value), pixels.dtype) for value in self.strengths]

    def max_batch(self, height: int, width: int) -> int:
        """Return the maximum batch size for images of this height and width; 1 if such images are tiled."""
        if self._needs_tiling(height, width):
            return 1
        return max(1, min(MAX_PIXELS_IN_BATCH // (height * width), self.memory // self._full_pass_bytes(height, width)))

    def fingerprint(self, **more: object) -> str:
        """Return the SHA-256, in hexadecimal, of everything that decides the results.

        It covers the weights, the precision, the settings that change pixels, and the values in `more`. It does not
        cover batches, tiling and devices, which only change the order in which sums are computed.
        """
        fields = {
            "version": VERSION,
            "weights": self.translator.fingerprint,
            "precision": [self.translator.hardware.precision, self.high_precision.hardware.precision],
            "strength": self.strengths,
            "keep": self.keep,
        }
        return hashlib.sha256(json.dumps(fields | more, sort_keys=True).encode()).hexdigest()

    def _blended(self, photo: Tensor, translation: Tensor, *, strength: float) -> Tensor:
        if strength == 1 and self.keep == "none":
            return translation
        rgb = [tensors.with_channels(image, 3) for image in (photo, translation)]
        blended = blending.blend(*rgb, strength=strength, keep=self.keep)
        return blended[..., : translation.shape[-3], :, :]  # blended greys are grey: their channels are equal

    def _check_channels(self) -> None:
        """Raise a CommandError if photos and translations of different numbers of channels would be blended."""
        if self.strengths != (1.0,):
            self.check_blends(f"strength={', '.join(f'{value:g}' for value in self.strengths)}")
        if self.keep != "none":
            self.check_blends(f"keep={self.keep}")

    def check_blends(self, setting: str) -> None:
        """Raise a CommandError about `setting`, such as "keep=colour", if photos and translations cannot be blended.

        They cannot be blended if the model's input and output differ in the number of channels.
        """
        channels = self.translator.in_channels, self.translator.out_channels
        if channels[0] != channels[1]:
            kinds = map(_COLOURS.get, channels)
            why = "this model turns {} photos into {} ones, which cannot be blended".format(*kinds)
            raise CommandError(f"{setting}: {why}: leave it out")

    def _translate(self, photo: Tensor, translator: Translator, advance: Callable[[float], object] | None) -> Tensor:
        height, width = photo.shape[-2:]
        if self._tileable is None or not self._needs_tiling(height, width):
            self._check_fits(height, width)
            return translator.values(photo)
        rows = self.tile if isinstance(self.tile, int) else None
        options = {"hardware": translator.hardware, "rows": rows, "memory": self.memory, "folder": self.folder}
        try:
            images = [tiling.run_tiled(self._tileable, image[None], **options, advance=advance) for image in photo]  # type: ignore[arg-type]
            return torch.cat(images) if len(images) > 1 else images[0]
        except CommandError as error:  # too little memory for this image; others may be smaller
            raise DataError(str(error)) from None

    def _needs_tiling(self, height: int, width: int) -> bool:
        if isinstance(self.tile, int):
            return True
        return self.tile == "auto" and self._tileable is not None and self._full_pass_bytes(height, width) > self.memory

    def _check_fits(self, height: int, width: int) -> None:
        need = self._full_pass_bytes(height, width)
        if self.tile == "auto" and need > self.memory:
            raise DataError(
                f"{width} x {height} px would take {megabytes(need)}, more than memory= allows, and this model cannot "
                f"be tiled: raise memory=, or shrink the photo with resize="
            )

    def _full_pass_bytes(self, height: int, width: int) -> int:
        """Estimate the bytes needed to run the network on a whole image at once.

        The estimate assumes a 16-bit image, since these are usually translated in the higher precision.
        """
        if self._tileable is None:
            return UNKNOWN_NETWORK_BYTES * height * width
        return tiling.full_pass_bytes(self._tileable, height, width, self.high_precision.hardware.dtype)


def _quantized(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Quantize a batch (N, C, H, W), see `tensors.quantize`; strips of a few rows keep temporary copies small."""
    result = torch.empty(values.shape, dtype=dtype, device=values.device)
    rows = max(1, blending.STRIP * values.shape[2] * 3 // max(1, values.numel()))
    for top in range(0, values.shape[2], rows):
        result[:, :, top : top + rows] = tensors.quantize(values[:, :, top : top + rows], dtype)
    return result


def as_strengths(strength: Any) -> tuple[float, ...]:
    """Convert the value of the option `strength=`, a number or a list, to a tuple.

    Raises:
        CommandError: a value is no number, the list is empty, or it contains a strength twice.
    """
    values = [strength] if isinstance(strength, str) or not isinstance(strength, Sequence) else list(strength)
    try:
        strengths = tuple(map(float, values))
    except (TypeError, ValueError):
        raise CommandError(f"strength={strength}: expected a number from 0 to 1.5, or a list of numbers") from None
    if not strengths or len(set(strengths)) < len(strengths):
        raise CommandError(f"strength={list(strengths)}: give one or more different numbers from 0 to 1.5")
    return strengths


def strength_folders(strengths: Sequence[float]) -> tuple[str, ...]:
    """Return the name of the output's subfolder for each strength; the name is empty if there is a single strength."""
    return ("",) if len(strengths) == 1 else tuple(f"strength-{value:g}" for value in strengths)
