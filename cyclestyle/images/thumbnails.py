"""Encoding of thumbnails for the contact sheet, an HTML page that shows each photo beside its translation.

Worker processes import this module, so it does not import PyTorch.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL = 960, 320  # largest width and height, px; all rows of the contact sheet have the same height
WEB_COPY = 2560, 2560  # largest width and height, px, of the copy of a file that browsers cannot show
MAX_PROFILE_BYTES = (
    4096  # bytes; profiles of cameras have 0.5 to 3 kB; those of scanners up to 1 MB, far more than a thumbnail
)

PixelArray = NDArray[Any]  # uint8 or uint16

_QUALITY = 78  # WebP quality; gives 8 to 55 kB per thumbnail


def thumbnail(
    pixels: PixelArray,
    alpha: PixelArray | None = None,
    *,
    profile: bytes | None = None,
    largest: tuple[int, int] = THUMBNAIL,
) -> bytes:
    """Shrink an image to fit the size `largest`, and encode it as WebP; an image that already fits is not resized.

    Args:
        pixels: RGB colours (H, W, 3) or grey (H, W, 1), uint8 or uint16.
        alpha: (H, W) with the dtype of `pixels`, where 0 is transparent; None for an opaque image.
        profile: ICC profile of the colours; None for sRGB. Only profiles of at most `MAX_PROFILE_BYTES` are embedded.
        largest: largest width and height of the result, px.
    """
    height, width, count = pixels.shape
    image = Image.fromarray(_to_uint8(pixels if count == 3 else np.repeat(pixels, 3, axis=2)))
    if alpha is not None:
        image.putalpha(Image.fromarray(_to_uint8(alpha)))

    scale = min(1.0, largest[0] / width, largest[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    embedded = profile if profile and len(profile) <= MAX_PROFILE_BYTES else None
    image.save(stream, "WEBP", quality=_QUALITY, icc_profile=embedded)
    return stream.getvalue()


def _to_uint8(samples: PixelArray) -> NDArray[np.uint8]:
    """Reduce uint16 samples to their upper 8 bits; return uint8 samples unchanged.

    If the uint16 samples were made from 8-bit samples, this restores the exact 8-bit values.
    """
    if samples.dtype == np.uint16:
        return (samples >> 8).astype(np.uint8)
    assert samples.dtype == np.uint8, samples.dtype
    return np.ascontiguousarray(samples)
