"""Picture files for tests, each telling its number and every pixel its place."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, width: int = 24, height: int = 20) -> Image.Image:
    """Red says where in x, green where in y, blue which picture."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 7 % 256, y * 11 % 256, np.full_like(x, number)], axis=2).astype(np.uint8))


def folder_of(folder: Path, count: int, *, first: int = 0, width: int = 24, height: int = 20) -> list[Path]:
    """Pictures `first` to `first + count - 1` as 000.png, 001.png, ... in a new folder."""
    folder.mkdir(parents=True)
    files = [folder / f"{index:03}.png" for index in range(count)]
    for index, file in enumerate(files):
        picture(first + index, width, height).save(file)
    return files


def two_domains(root: Path, a: int = 3, b: int = 5, **size: int) -> Path:
    """trainA with pictures 0, 1, ... and trainB with pictures 100, 101, ..."""
    folder_of(root / "trainA", a, **size)
    folder_of(root / "trainB", b, first=100, **size)
    return root
