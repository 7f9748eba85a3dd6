"""Decoded photos in memory: pixels, transparency, metadata and notes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

PixelArray = npt.NDArray[Any]  # uint8 or uint16; values use the full range of the dtype


@dataclass(frozen=True)
class Metadata:
    """Metadata to copy from a photo to its output file.

    All fields are empty if `reading.read` was called with `metadata=False`.
    """

    exif: bytes = b""  # `Exif\\0\\0` and a TIFF structure: orientation 1, no thumbnail
    xmp: bytes = b""  # XML in UTF-8
    dpi: tuple[float, float] | None = None  # pixels per inch, across and down
    iptc: bytes = b""  # IPTC-IIM records


@dataclass(frozen=True, eq=False)
class Mask:
    """Mask of a photo: how much of its translation each pixel receives."""

    weights: npt.NDArray[np.uint16]  # (H, W); 0 keeps the photo, 65535 takes the translation
    unfilled: PixelArray | None = None  # pixels of the photo before `cutouts.filled`; None if they are equal


@dataclass(frozen=True, eq=False)
class Photo:
    """Photo decoded from a user's file: upright, in sRGB."""

    pixels: PixelArray  # (H, W, 3), or (H, W, 1) for a grey translation; uint8 or uint16, sRGB, upright
    alpha: PixelArray | None = None  # (H, W), same dtype as `pixels`; `pixels` are not premultiplied by it
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()  # to show to the photo's owner, a few words each
    mask: Mask | None = None  # None translates the whole photo


def largest(samples: PixelArray) -> int:
    """Return the largest value of the dtype of `samples`, 255 or 65535: white in colours, opaque in alpha."""
    return int(np.iinfo(samples.dtype).max)


def to_8_bits(samples: PixelArray) -> PixelArray:
    """Scale uint16 samples to uint8 with rounding; return uint8 samples unchanged."""
    return samples if samples.dtype == np.uint8 else ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def fault(photo: Photo) -> str:
    """Return the reason why the arrays in a photo are invalid; empty if they are valid."""
    pixels, alpha = photo.pixels, photo.alpha
    if pixels.dtype not in (np.uint8, np.uint16):
        return f"numbers of the type {pixels.dtype}"
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        return f"channels of the shape {pixels.shape}, not (height, width, 3)"
    if not pixels.size:
        return "no pixels"
    if photo.mask is not None and photo.mask.weights.shape != pixels.shape[:2]:
        return f"a mask of {photo.mask.weights.shape} for colours of {pixels.shape}"
    if alpha is not None and (alpha.dtype != pixels.dtype or alpha.shape != pixels.shape[:2]):
        return f"alpha of {alpha.dtype} {alpha.shape} for colours of {pixels.dtype} {pixels.shape}"
    return ""
