"""Pictures as files and pictures as tensors: the only place that knows both.

A picture is an upright RGB `PIL.Image`, its pixels are uint8 (3, H, W), and networks see float in [-1, 1].
"""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cyclestyle.errors import DataError
from cyclestyle.files import replacing

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_deflate"},
}


# What Pillow raises at damaged files, among them struct.error from garbled EXIF.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, Image.DecompressionBombError
)  # fmt: skip


def find(root: Path) -> list[Path]:
    """All picture files below `root`, relative to it, in an order that depends on their names alone.

    Folders are entered once each, so that links cannot lead in circles; names that start with a dot are passed over.

    Raises:
        DataError: a folder that cannot be listed.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)  # decides which of two links is entered
        except OSError as error:
            raise DataError(f"{folder.absolute()} cannot be listed: {error.strerror}") from None
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            asked = path if entry.is_symlink() else entry  # of a link to itself, a Path says no and an entry raises
            if asked.is_dir():
                folders.append(path)
            elif path.suffix.lower() in EXTENSIONS and asked.is_file():
                found.append(path.relative_to(root))
    return sorted(found, key=lambda path: path.parts)


def read(path: Path) -> Image.Image:
    """The picture in a file: RGB, turned upright; what was transparent lies on white.

    Raises:
        DataError: the file is not a picture, or its data are damaged.
    """
    try:
        with Image.open(path) as opened:
            return to_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a picture that can be read") from None
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged or unreadable picture ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any colour mode as RGB; 16-bit grey keeps its brightness, transparency is laid over white.

    Raises:
        ValueError: floating-point colours, which have no agreed white: Pillow would make most of them black.
    """
    if image.mode == "F":
        raise ValueError("floating-point colours are not supported")
    if image.mode.startswith("I"):  # Pillow's own conversion would cut 16 bits at 255: all white
        grey = np.asarray(image, dtype=np.float32) / 257.0
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic with antialiasing, as the reference does it."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 pixels (..., H, W) as floats in [-1, 1], of PyTorch's default type."""
    return pixels.to(torch.get_default_dtype()) / 127.5 - 1.0


def to_uint8(values: Tensor) -> Tensor:
    """Float in [-1, 1] as uint8, rounded; values beyond the range are clipped."""
    return ((values.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_pixels(pixels: Tensor) -> Image.Image:
    """uint8 (3, H, W) as an RGB picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def save(image: Image.Image, path: Path) -> None:
    """Write a picture in the format that the name's ending says, whole or not at all."""
    format_name = Image.registered_extensions()[path.suffix.lower()]
    with replacing(path) as stream:
        image.save(stream, format=format_name, **_SAVE_OPTIONS.get(format_name, {}))
