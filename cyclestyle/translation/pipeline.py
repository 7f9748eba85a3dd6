"""What is done to the pixels of a picture: the model, in pieces where it must be, and how much of its answer counts."""

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
from cyclestyle.translation import blending as strengths
from cyclestyle.translation import pipeline
from cyclestyle.translation.blending import Keep
from cyclestyle.translation.tiled import tiling
from cyclestyle.translation.translator import Translator

MOST_IN_BATCH = 2**21  # pixels in a batch of several pictures; 64 channels take about 1 GB for each million in float32
VERSION = 1  # of what comes out; one more whenever the same settings give other pixels
UNKNOWN = 900  # bytes for each pixel that a network takes of which nothing else is known: those of the default one

Tile = int | Literal["auto", "off"]


class TranslationPipeline:
    """A model and how its answers are used.

    Args:
        translator: one direction of a model.
        strength: how far to go, from 0, the picture itself, over 1, the model's answer, to 1.5; see `strength.blend`.
            With several there are as many results.
        keep: what of the picture stays: `none`, its `colour`, or its `luminance`.
        tile: `auto` computes pictures in pieces that would take more than `memory` as a whole, `off` none, and a number
            all of them, in strips of that many px.
        memory: bytes that computing may take, besides PyTorch's own.
        folder: for what memory cannot hold while a picture is computed in pieces.
        deep: what computes pictures of 16 bits, if not the translator: bf16 has 8 bits of its own.

    Raises:
        CommandError: values out of their ranges, or a model that cannot be computed in pieces.
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
        deep: Translator | None = None,
    ) -> None:
        self.deep = deep or translator
        self.translator, self.keep, self.tile, self.folder = translator, keep, tile, folder
        self.strengths = as_strengths(strength)
        for one in self.strengths:
            strengths.check(one, keep)
        self.memory = tiling.parse_memory(str(memory))
        network = translator.generator
        self._in_parts = network if network is not None and tiling.can_tile(network) else None
        if isinstance(tile, int) and tile < 1:
            raise CommandError(f"tile={tile}: give the height of a piece in px, auto or off")
        if isinstance(tile, int) and self._in_parts is None:
            raise CommandError(f"tile={tile}: this model cannot be computed in pieces, only its ResNets and U-Nets can")

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
        **how: Any,
    ) -> "TranslationPipeline":
        """A treatment with the model of a checkpoint; `how` is for `Translator.load`.

        Pictures of 16 bits are computed in fp32, unless `precision` asks for another.
        """
        translator = Translator.load(checkpoint, **how)
        deep = translator.in_fp32() if how.get("precision", "auto") == "auto" else translator
        return cls(translator, strength=strength, keep=keep, tile=tile, memory=memory, folder=folder, deep=deep)

    def __str__(self) -> str:
        return ", ".join([str(self.translator), *self._looks])

    @property
    def facts(self) -> list[str]:
        """What people may want to know of it on a page."""
        step = "" if self.translator.step is None else f", step {self.translator.step:,}"
        return [self.translator.direction, f"{self.translator.path}{step}", *self._looks]

    @property
    def labels(self) -> list[str]:
        """Of the results, where there are several for each picture."""
        return [f"{one:.0%}" for one in self.strengths] if len(self.strengths) > 1 else []

    @property
    def _looks(self) -> list[str]:
        told = [] if self.strengths == (1.0,) else [f"strength {', '.join(f'{one:g}' for one in self.strengths)}"]
        return told if self.keep == "none" else [*told, f"the photo's {self.keep} kept"]

    def __call__(self, pixels: Tensor, *, advance: Callable[[float], object] | None = None) -> list[Tensor]:
        """The results for pictures of one size, one for each strength: uint8 or uint16 (N, 3, H, W) as they came.

        Args:
            advance: is told the share that is done, where it takes long.

        Raises:
            DataError: it cannot be done within the memory.
        """
        photo = tensors.to_float(pixels)
        made = self._translated(photo, self.translator if pixels.dtype == torch.uint8 else self.deep, advance)
        return [
            tensors.quantize(strengths.blend(photo, made, strength=one, keep=self.keep), pixels.dtype)
            for one in self.strengths
        ]

    def max_batch(self, height: int, width: int) -> int:
        """How many pictures of a size may go through the model in one batch."""
        if self._in_pieces(height, width):
            return 1
        return max(1, min(pipeline.MOST_IN_BATCH // (height * width), self.memory // self._whole_bytes(height, width)))

    def fingerprint(self, **more: object) -> str:
        """The same for equal results: it covers the weights and all settings that change pixels, and `more`.

        The precision is among them; batches, pieces and devices, which change the order of sums, are not.
        """
        told = {
            "version": VERSION,
            "weights": self.translator.fingerprint,
            "precision": [self.translator.hardware.precision, self.deep.hardware.precision],
            "strength": self.strengths,
            "keep": self.keep,
        }
        return hashlib.sha256(json.dumps(told | more, sort_keys=True).encode()).hexdigest()

    def _translated(self, photo: Tensor, translator: Translator, advance: Callable[[float], object] | None) -> Tensor:
        height, width = photo.shape[-2:]
        if self._in_parts is None or not self._in_pieces(height, width):
            self._check_fits(height, width)
            return translator.values(photo)
        rows = self.tile if isinstance(self.tile, int) else None
        how = {"hardware": translator.hardware, "rows": rows, "memory": self.memory, "folder": self.folder}
        try:
            return torch.cat(
                [tiling.run_tiled(self._in_parts, one[None], **how, advance=advance) for one in photo]  # type: ignore[arg-type]
            )
        except CommandError as error:  # too little memory for this picture; others may be smaller
            raise DataError(str(error)) from None

    def _in_pieces(self, height: int, width: int) -> bool:
        if isinstance(self.tile, int):
            return True
        return self.tile == "auto" and self._in_parts is not None and self._whole_bytes(height, width) > self.memory

    def _check_fits(self, height: int, width: int) -> None:
        need = self._whole_bytes(height, width)
        if self.tile == "auto" and need > self.memory:
            raise DataError(
                f"{width} x {height} px would take {megabytes(need)}, more than memory= allows, and this model cannot "
                f"be computed in pieces: raise memory=, or shrink the picture with resize="
            )

    def _whole_bytes(self, height: int, width: int) -> int:
        """By the precision that takes most."""
        if self._in_parts is None:
            return UNKNOWN * height * width
        return tiling.full_pass_bytes(self._in_parts, height, width, self.deep.hardware.dtype)


def as_strengths(strength: float | Sequence[float]) -> tuple[float, ...]:
    """The strengths that were asked for.

    Raises:
        CommandError: none, or one twice.
    """
    several = tuple(map(float, strength)) if isinstance(strength, Sequence) else (float(strength),)
    if not several or len(set(several)) < len(several):
        raise CommandError(f"strength={list(several)}: give one or more different numbers from 0 to 1.5")
    return several


def strength_folders(several: Sequence[float]) -> tuple[str, ...]:
    """Where in the output the results of each strength go: for a single one, nowhere in particular."""
    return ("",) if len(several) == 1 else tuple(f"strength-{one:g}" for one in several)
