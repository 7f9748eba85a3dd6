"""Thumbnails for the contact sheet, encoded in worker processes without PyTorch."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL = 960, 320  # largest width and height in px; all rows of the contact sheet have one height
MAX_PROFILE_BYTES = (
    4096  # bytes; profiles of cameras have 0.5 to 3 kB, of scanners up to 1 MB, far more than a thumbnail
)

PixelArray = NDArray[Any]  # uint8 or uint16

_QUALITY = 78  # WebP quality: 8 to 55 kB a thumbnail


def thumbnail(pixels: PixelArray, alpha: PixelArray | None = None, *, profile: bytes | None = None) -> bytes:
    """Encode an image as WebP, shrunk to fit `THUMBNAIL`; smaller images keep their size.

    Args:
        pixels: (H, W, 3), uint8 or uint16.
        alpha: (H, W), 0 is transparent; None for an opaque thumbnail.
        profile: ICC profile to embed, None for sRGB; not embedded if larger than `MAX_PROFILE_BYTES`.
    """
    height, width, _ = pixels.shape
    image = Image.fromarray(_to_uint8(pixels))
    if alpha is not None:
        image.putalpha(Image.fromarray(_to_uint8(alpha)))

    scale = min(1.0, THUMBNAIL[0] / width, THUMBNAIL[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    embedded = profile if profile and len(profile) <= MAX_PROFILE_BYTES else None
    image.save(stream, "WEBP", quality=_QUALITY, icc_profile=embedded)
    return stream.getvalue()


def _to_uint8(samples: PixelArray) -> NDArray[np.uint8]:
    """Convert uint16 samples to their upper 8 bits, the exact inverse of widening 8 bits to 16; return uint8 as is."""
    if samples.dtype == np.uint16:
        return (samples >> 8).astype(np.uint8)
    assert samples.dtype == np.uint8, samples.dtype
    return np.ascontiguousarray(samples)
