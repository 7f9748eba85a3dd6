"""What a photographer's file comes to."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[Any]  # uint8 or uint16, 0 to the largest of the type


@dataclass(frozen=True)
class Metadata:
    """What is kept besides the pixels; empty unless it was asked for."""

    exif: bytes = b""  # a TIFF structure after `Exif\\0\\0`: upright, without thumbnail
    xmp: bytes = b""  # XML in UTF-8
    dpi: tuple[float, float] | None = None  # pixels per inch, across and down


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture as it should be seen."""

    pixels: Samples  # (H, W, 3), uint8 or uint16, sRGB, upright
    alpha: Samples | None = None  # (H, W), of the same type; colours are not multiplied by it
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()  # what its owner should know, a few words each


def largest(samples: Samples) -> int:
    """White, or opaque: 255 or 65535."""
    return int(np.iinfo(samples.dtype).max)
