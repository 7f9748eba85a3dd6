"""Search for the masks that `mask=` names: one mask for all photos, or a folder with a mask for each photo."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cyclestyle.errors import CommandError, DataError
from cyclestyle.filesystem.listing import list_contents, nearest_existing, printable
from cyclestyle.photoset import inputs
from cyclestyle.photoset.inputs import ENDINGS, FORMATS, InputFile, folded, identity_of

MAX_FEATHER = 1000  # px; the time to feather a mask grows with the width of its soft edges


class MaskFiles(NamedTuple):
    """Masks that a command uses: a single one for all photos, or those in a folder."""

    path: Path  # folder of the masks, or the only mask
    single: InputFile | None  # the only mask, which applies to all photos; None for a folder
    by_name: dict[str, list[InputFile]]  # masks of a folder, under each of the names by which photos find them

    def of(self, name: Path) -> InputFile:
        """Return the mask of the photo with the relative path `name`; its `reason` is not empty if it has none.

        In a folder, the first of these names that exists is taken for `sub/a.jpg`: `sub/a.jpg`, `sub/a.jpg.png` with
        any ending, `sub/a.png` with any ending, and the same with other capitals or another Unicode normalization.
        """
        if self.single is not None:
            return self.single
        for key in _keys_of_photo(name):
            if found := self.by_name.get(key):
                if len(found) == 1:
                    return found[0]
                paths = " and ".join(printable(mask.path) for mask in found[:2])
                return InputFile(found[0].path, name, reason=f"it has several masks, {paths}: remove all but one")
        path = self.path / name.with_suffix(".png")
        return InputFile(path, name, reason=f"it has no mask {printable(path)} (or another ending): add one")

    def holds(self, path: Path, spec: str) -> bool:
        """Return whether the file at `path`, found in the input `spec`, is one of the masks rather than a photo.

        This is the case in a mask folder inside the input. A mask folder that contains the whole input holds no photo.
        """
        if Path(spec).resolve().is_relative_to(self.path.resolve()):
            return False
        if self.single is not None:
            return identity_of(path) == identity_of(self.path)
        return path.parent.resolve().is_relative_to(self.path.resolve())

    def unused(self, used: Iterable[InputFile]) -> list[Path]:
        """Return the paths of the masks in the folder that are not among the masks `used`, sorted."""
        everything = {mask.path for masks in self.by_name.values() for mask in masks}
        return sorted(everything - {mask.path for mask in used})


def check(mask: str | Path | None, feather: int, *, input: str) -> None:  # noqa: A002
    """Raise a CommandError if `feather` is out of range or has no `mask`, or `mask` is the folder `input`."""
    if not 0 <= feather <= MAX_FEATHER:
        raise CommandError(f"feather={feather}: give the width of the soft edges in px, 0 to {MAX_FEATHER:,}")
    if feather and mask is None:
        raise CommandError(f"feather={feather} softens the edges of masks: give mask= too, or leave it out")
    if mask is not None and Path(mask).is_dir() and Path(input).is_dir() and Path(mask).samefile(input):
        raise CommandError(f"mask={mask} is the input folder itself: put the masks into a folder of their own")


def find(mask: str | Path) -> MaskFiles:
    """Find the masks that the option `mask=` names.

    Args:
        mask: an image file, which is the mask of all photos; or a folder, which is searched with its subfolders.

    Raises:
        DataError: `mask` does not exist, is no image file, or is a folder without image files.
    """
    path = Path(mask)
    if path.is_dir():
        by_name: dict[str, list[InputFile]] = {}
        for file in inputs.all_names(path):
            for key in _keys_of_mask(file.name):
                by_name.setdefault(key, []).append(file)
        if not by_name:
            raise DataError(
                f"mask={printable(path)}: no pictures ({FORMATS}) in this folder, which contains {list_contents(path)}"
            )
        return MaskFiles(path, None, by_name)
    if not path.exists():
        raise DataError(f"mask={printable(path)}: no such file or folder: {nearest_existing(path)}")
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"mask={printable(path)} does not end like a picture ({FORMATS})")
    return MaskFiles(path, inputs.one_file(path), {})


def _keys_of_photo(name: Path) -> Iterator[str]:
    """Yield the keys under which the mask of a photo is looked up, best match first."""
    yield f"name {name.as_posix()}"
    yield f"stem {name.as_posix()}"
    yield f"stem {name.with_suffix('').as_posix()}"
    yield f"folded {folded(name.with_suffix(''))}"


def _keys_of_mask(name: Path) -> Iterator[str]:
    """Yield the keys under which a mask is found, see `_keys_of_photo`."""
    yield f"name {name.as_posix()}"
    yield f"stem {name.with_suffix('').as_posix()}"
    yield f"folded {folded(name.with_suffix(''))}"
