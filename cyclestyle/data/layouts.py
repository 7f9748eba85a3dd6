"""Search for training images in folders not named `trainA` and `trainB`, to suggest settings in error messages."""

import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cyclestyle.filesystem.listing import SYSTEM_FOLDERS, printable
from cyclestyle.images import file_formats

SIDES = ("trainA", "trainB", "testA", "testB")
_DEPTH = 3  # levels below the root that are searched
_MOST_FOLDERS = 500  # folders that are looked at; a data set has few
_LOOKED_AT = 20  # files of a folder that are looked at
_SPLIT = {"train", "training", "test", "testing", "val", "valid", "validation"}


class _Folders(NamedTuple):
    """Folders of a data set: the two training folders, and the test folders if there are any."""

    a: Path
    b: Path
    test_a: Path | None = None
    test_b: Path | None = None


def suggestion(root: Path, domains: tuple[str, str]) -> str:
    """Return the end of an error message: the settings with which the images in or near `root` can be used.

    The text is empty if no layout is recognised. The recognised layouts are:

    * `trainA` and `trainB` in a folder above or below `root`;
    * `trainA` and `trainB` spelled differently (`train_A`, `traina`, `train-a`, `train/A`, `A/train` or plain `A`);
    * two folders of images whose names contain the names of the domains (`monet_jpg` and `photo_jpg` of Kaggle);
    * exactly two folders of images, not named like a split (`train`, `test`, `val`);
    * images that each show both domains side by side.

    Args:
        root: folder that lacks `trainA` or `trainB`.
        domains: names of the two domains.
    """
    for folder in islice(root.absolute().parents, 2):
        if all((folder / side).is_dir() for side in SIDES[:2]):
            return f"a folder above has them: data.root={_quoted(folder)}"
    if not root.is_dir():
        return ""
    with_images = [folder for folder in _below(root) if any(True for _ in images_in(folder))]
    nested = [folder for folder in with_images if folder.name == SIDES[0] and (folder.parent / SIDES[1]).is_dir()]
    if nested:
        return f"they are one level deeper: data.root={_quoted(nested[0].parent)}"
    found = _by_side(root, with_images) or _by_domain(with_images, domains)
    if found is not None:
        values = zip(("a", "b", "test_a", "test_b"), found, strict=True)
        return "give " + " ".join(f"data.{key}={_quoted(path)}" for key, path in values if path is not None)
    if joined := next((folder for folder in (root, *with_images) if _has_joined_pairs(folder)), None):
        return (
            f"the pictures in {printable(joined)} are twice as wide as high, like joined pairs of both domains: cut "
            f"each in the middle into two folders, and give these as data.a= and data.b="
        )
    return ""


def images_in(folder: Path) -> Iterator[Path]:
    """Yield the image files directly in a folder, judged by their extension."""
    try:
        for entry in os.scandir(folder):
            if Path(entry.name).suffix.lower() in file_formats.ALL_ENDINGS and not entry.name.startswith("."):
                yield folder / entry.name
    except OSError:
        return


def _below(root: Path) -> Iterator[Path]:
    """Yield the folders below `root`, level by level: at most `_DEPTH` levels and `_MOST_FOLDERS` folders."""
    level = [root]
    left = _MOST_FOLDERS
    for _ in range(_DEPTH):
        level = [inner for folder in level for inner in _subfolders(folder)][:left]
        left -= len(level)
        yield from level


def _subfolders(folder: Path) -> list[Path]:
    try:
        names = sorted(
            entry.name for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_FOLDERS
        )  # fmt: skip
    except OSError:
        return []
    return [folder / name for name in names]


def _by_side(root: Path, folders: Collection[Path]) -> _Folders | None:
    """Find the training and test folders by their paths below `root`, such as `train_A`, `A/train` or `testB`.

    Folders named plain `A` and `B` are training folders. `folders` are the folders with images; return None if a
    training folder is not among them.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        # Words of the path, as `trainA` is one word for a person and `train_A` two: a capital begins a word.
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", str(folder.relative_to(root)))
        text = "".join(word.lower() for word in words[-2:])
        for split, side in ((split, side) for split in ("train", "test", "") for side in "ab"):
            if text in (f"{split}{side}", f"{side}{split}"):
                named.setdefault(f"{split or 'train'}{side}", folder)
    if not {"traina", "trainb"} <= named.keys():
        return None
    return _Folders(named["traina"], named["trainb"], named.get("testa"), named.get("testb"))


def _by_domain(folders: Collection[Path], domains: tuple[str, str]) -> _Folders | None:
    """Choose the two training folders from `folders`, the folders with images; return None if the choice is unclear.

    For each domain, the only folder whose name contains the name of the domain is chosen. If this fails and there are
    exactly two folders with images, these are chosen, unless one of them is named like a split, such as `train`.
    """
    matching: Mapping[str, list[Path]] = {
        domain: [folder for folder in folders if domain.lower() in folder.name.lower()] for domain in domains
    }
    a, b = (matching[domain] for domain in domains)
    if all(len(domain) > 1 for domain in domains) and len(a) == len(b) == 1 and a != b:
        return _Folders(a[0], b[0])
    if len(folders) == 2 and not any(folder.name.lower() in _SPLIT for folder in folders):
        first, second = folders
        return _Folders(second, first) if a == [second] or b == [first] else _Folders(first, second)
    return None


def _has_joined_pairs(folder: Path) -> bool:
    """Return whether the first images of a folder, at least two, are all twice as wide as high.

    Such images are probably pairs of square images, joined side by side.
    """
    sizes = []
    for path in islice(images_in(folder), _LOOKED_AT):
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except Exception:  # Pillow raises nearly any type for damaged files; another error reports them
            return False
    return len(sizes) > 1 and all(width == 2 * height for width, height in sizes)


def _quoted(path: Path) -> str:
    return shlex.quote(printable(path))
