"""Reading of image files by worker processes, for the networks that measure images (`evaluation.rulers`).

This module imports no torch, so a worker starts in a fraction of a second.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cyclestyle.images import decoding, file_formats, high_bit_depth, reading
from cyclestyle.images.photo import PixelArray


def read_square(path: Path, sides: Sequence[int]) -> PixelArray:
    """Read an image as upright, opaque sRGB, and resize it to a square.

    Args:
        sides: side of the square in px. With several sides, the image is resized to each in turn. Without sides, the
            image keeps its size. Each resizing uses an antialiased bicubic filter and rounds the pixels to 8 bits.

    Returns:
        uint8 (H, W, 3). H and W are the last of `sides`; without sides, they are those of the image.

    Raises:
        ImageError: see `reading.open_image`.
    """
    image = reading.read_8_bit(path)
    for side in sides:
        image = decoding.resize(image, side, side)
    return np.array(image)


def content_hash(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file.

    Raises:
        ImageError: the file cannot be read.
    """
    with decoding.open_bytes(path) as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
        return digest.hexdigest()


def shorter_side(path: Path) -> int:
    """Return the length in px of an image's shorter side, from the header of its file.

    Raises:
        ImageError: the file cannot be read, or has no header of an image.
    """
    with decoding.open_bytes(path) as stream:
        header = high_bit_depth.header(path, stream)
        if header is not None:
            return min(header.width, header.height)
        with decoding.identify(path, stream, formats=file_formats.READ) as image:
            return min(image.size)
