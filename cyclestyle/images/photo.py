"""What a photographer's file comes to."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

PixelArray = npt.NDArray[Any]  # uint8 or uint16, 0 to the largest of the type


@dataclass(frozen=True)
class Metadata:
    """What is kept besides the pixels; empty unless it was asked for."""

    exif: bytes = b""  # a TIFF structure after `Exif\\0\\0`: upright, without thumbnail
    xmp: bytes = b""  # XML in UTF-8
    dpi: tuple[float, float] | None = None  # pixels per inch, across and down


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture as it should be seen."""

    pixels: PixelArray  # (H, W, 3), uint8 or uint16, sRGB, upright
    alpha: PixelArray | None = None  # (H, W), of the same type; colours are not multiplied by it
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()  # what its owner should know, a few words each


def largest(samples: PixelArray) -> int:
    """White, or opaque: 255 or 65535."""
    return int(np.iinfo(samples.dtype).max)


def fault(photo: Photo) -> str:
    """Why a photo is none that the rest of the program can work with; empty where it is."""
    pixels, alpha = photo.pixels, photo.alpha
    if pixels.dtype not in (np.uint8, np.uint16):
        return f"numbers of the type {pixels.dtype}"
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        return f"channels of the shape {pixels.shape}, not (height, width, 3)"
    if not pixels.size:
        return "no pixels"
    if alpha is not None and (alpha.dtype != pixels.dtype or alpha.shape != pixels.shape[:2]):
        return f"alpha of {alpha.dtype} {alpha.shape} for colours of {pixels.dtype} {pixels.shape}"
    return ""
