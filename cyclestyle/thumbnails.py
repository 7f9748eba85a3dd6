"""Small pictures of large ones, made in processes that do without PyTorch."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL = 320  # px, longest side

Samples = NDArray[Any]  # uint8 or uint16

_QUALITY = 78  # of WebP: 5 to 20 kB each


def thumbnail(pixels: Samples, alpha: Samples | None = None) -> bytes:
    """A WebP file of at most `THUMBNAIL` px; smaller pictures keep their size.

    Args:
        pixels: (H, W, 3), sRGB, uint8 or uint16.
        alpha: (H, W), 0 is transparent; the thumbnail is then transparent too.
    """
    height, width, _ = pixels.shape
    image = Image.fromarray(_bytes(pixels))
    if alpha is not None:
        image.putalpha(Image.fromarray(_bytes(alpha)))

    scale = min(1.0, THUMBNAIL / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=_QUALITY)
    return stream.getvalue()


def _bytes(samples: Samples) -> NDArray[np.uint8]:
    """The upper 8 of 16 bits, which gives back what was 8 bits before it became 16."""
    if samples.dtype == np.uint16:
        return (samples >> 8).astype(np.uint8)
    assert samples.dtype == np.uint8, samples.dtype
    return np.ascontiguousarray(samples)
