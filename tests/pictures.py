"""Image files for tests; each pixel encodes the number of its image and its own position."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, width: int = 24, height: int = 20) -> Image.Image:
    """RGB image: red depends on x, green on y, and blue is `number`."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 7 % 256, y * 11 % 256, np.full_like(x, number)], axis=2).astype(np.uint8))


def folder_of(folder: Path, count: int, *, first: int = 0, width: int = 24, height: int = 20) -> list[Path]:
    """Save images `first` to `first + count - 1` as 000.png, 001.png, ... in a new folder."""
    folder.mkdir(parents=True)
    files = [folder / f"{index:03}.png" for index in range(count)]
    for index, file in enumerate(files):
        picture(first + index, width, height).save(file)
    return files


def two_domains(root: Path, a: int = 3, b: int = 5, **size: int) -> Path:
    """Create `root`/trainA with `a` images numbered from 0, and `root`/trainB with `b` images numbered from 100."""
    folder_of(root / "trainA", a, **size)
    folder_of(root / "trainB", b, first=100, **size)
    return root
