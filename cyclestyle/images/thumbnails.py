"""Small pictures of large ones, made in processes that do without PyTorch."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL = 960, 320  # px, width and height at most: a page shows rows of one height, however wide its pictures are
MOST_PROFILE = 4096  # bytes; cameras' are 0.5 to 3 kB, and a scanner's 1 MB would be nearly all of each thumbnail

PixelArray = NDArray[Any]  # uint8 or uint16

_QUALITY = 78  # of WebP: 8 to 55 kB each


def thumbnail(pixels: PixelArray, alpha: PixelArray | None = None, *, profile: bytes | None = None) -> bytes:
    """A WebP file of at most `THUMBNAIL` px each way; smaller pictures keep their size.

    Args:
        pixels: (H, W, 3), uint8 or uint16.
        alpha: (H, W), 0 is transparent; the thumbnail is then transparent too.
        profile: ICC, of other colours than sRGB; one above `MOST_PROFILE` is left out.
    """
    height, width, _ = pixels.shape
    image = Image.fromarray(_bytes(pixels))
    if alpha is not None:
        image.putalpha(Image.fromarray(_bytes(alpha)))

    scale = min(1.0, THUMBNAIL[0] / width, THUMBNAIL[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    kept = profile if profile and len(profile) <= MOST_PROFILE else None
    image.save(stream, "WEBP", quality=_QUALITY, icc_profile=kept)
    return stream.getvalue()


def _bytes(samples: PixelArray) -> NDArray[np.uint8]:
    """The upper 8 of 16 bits, which gives back what was 8 bits before it became 16."""
    if samples.dtype == np.uint16:
        return (samples >> 8).astype(np.uint8)
    assert samples.dtype == np.uint8, samples.dtype
    return np.ascontiguousarray(samples)
