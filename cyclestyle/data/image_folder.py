"""One folder of training or test images: its files and, after inspection, which of them are usable."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cyclestyle.data.crop import Crop
from cyclestyle.data.inspection import FileCheck
from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import listing, printable
from cyclestyle.images import decoding

BadFiles = Literal["skip", "error"]
SmallImages = Literal["resize", "skip", "error"]
ENDINGS = decoding.EXTENSIONS | {".gif"}  # GIF files can be read but not written


class FileRules(NamedTuple):
    """Settings that decide which image files are used; `UnpairedFolders` documents each setting."""

    crop: Crop
    bad_files: BadFiles
    small_images: SmallImages
    max_pixels: int


class ImageFolder:
    """The images in a folder and its subfolders at any depth; their order depends on the file names alone.

    Unusable files keep their indices in `files`, so that no other index changes when a file becomes unreadable.

    Args:
        folder: root folder.
        what: words that name these images in messages, such as `pictures of monet`.

    Attributes:
        files: paths of all images.
        damaged: unreadable files: a dictionary from file names, relative to the folder, to error texts.
        small: images that are smaller than the crop after resizing: a dictionary from file names to texts with sizes.
        excluded: readable images that are not used, as they are too large or small: a dictionary from file names to
            reasons.
        notes: remarks on the folder for the user.

    `classify` fills `damaged`, `small` and `excluded`, and adds to `notes`.

    Raises:
        DataError: the folder cannot be listed.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self.folder, self.what = folder, what
        self.listing = listing(folder, endings=ENDINGS)
        self.files = [folder / candidate.name for candidate in self.listing.candidates]
        self.damaged: dict[str, str] = {}
        self.small: dict[str, str] = {}
        self.excluded: dict[str, str] = {}
        self.notes = self._notes_of_listing()

    @property
    def sizes(self) -> dict[str, int]:
        """File sizes in bytes, keyed by file name, in the order of `files`.

        They are used to identify a data set without opening its files.
        """
        return {str(candidate.name): candidate.size for candidate in self.listing.candidates}

    @property
    def skipped(self) -> dict[str, str]:
        """All unused files, `damaged` and `excluded` together: a dictionary from file names to reasons."""
        return self.damaged | self.excluded

    @property
    def skipped_indices(self) -> frozenset[int]:
        """Indices into the list `files`, one for each unused file."""
        candidates, skipped = self.listing.candidates, self.skipped
        return frozenset(slot for slot, candidate in enumerate(candidates) if str(candidate.name) in skipped)

    @property
    def usable(self) -> list[Path]:
        """Paths of all files that are not in `skipped`, in the order of `files`."""
        skipped = self.skipped_indices
        return [file for slot, file in enumerate(self.files) if slot not in skipped]

    def classify(self, checks: Mapping[Path, FileCheck], rules: FileRules) -> None:
        """Apply `rules` to the inspection results `checks`: fill `damaged`, `small`, `excluded` and `notes`."""
        self.damaged, self.small, self.excluded = {}, {}, {}
        animated: list[str] = []
        for candidate in self.listing.candidates:
            name, (facts, reason, _) = str(candidate.name), checks[candidate.name]
            if facts is None:
                self.damaged[name] = reason
                continue
            width, height = facts.width, facts.height
            if width * height > rules.max_pixels:
                self.excluded[name] = f"{decoding.too_large(width, height, rules.max_pixels)} (data.max_pixels)"
                continue
            if not rules.crop.fits(width, height):
                self.small[name] = f"{width} x {height} pixels are less than data.crop_size={rules.crop.crop_size}"
            animated += [name] if facts.animated else []
        self.excluded |= self.small if rules.small_images != "resize" else {}

        self.notes = self._notes_of_listing()
        if skipped := self.skipped:
            self.notes.append(with_details(f"{self._share(skipped)} not used:", self._lines(skipped)))
        if animated:
            self.notes.append(f"{self._share(animated)} animated: the first frame is used ({first_names(animated)})")
        if self.small and rules.small_images == "resize":
            enlarged = f"smaller than data.crop_size={rules.crop.crop_size} and enlarged"
            self.notes.append(f"{self._share(self.small)} {enlarged} ({first_names(self.small)})")

    def require_usable(self, rules: FileRules) -> None:
        """Raise a DataError if `rules` forbid some of the files, or if fewer than two files are usable."""
        tolerated = len(self.files) // 100
        damaged = self.damaged | {str(name): f"cannot be listed: {why}" for name, why in self.listing.unlisted.items()}
        if rules.bad_files == "error" and damaged:
            raise self._error("damaged: repair or remove them, or skip up to 1 % with data.bad_files=skip", damaged)
        if len(self.damaged) > tolerated:
            what = f"damaged, more than the 1 % that is skipped ({tolerated:,}): repair or remove them"
            raise self._error(what, self.damaged)
        if rules.small_images == "error" and self.small:
            remedy = "remove them, lower data.crop_size, or set data.small_images=resize or skip"
            raise self._error(f"too small: {remedy}", self.small)
        if len(self.files) - len(self.skipped) < 2:
            raise self._error("not used; training needs two usable ones", self.skipped)

    def _error(self, what: str, reasons: Mapping[str, str]) -> DataError:
        first = f"{self._share(reasons, where=f' in {printable(self.folder.absolute())}')} {what}"
        return DataError(with_details(first, self._lines(reasons)))

    def _share(self, names: Collection[str], *, where: str = "") -> str:
        return f"{len(names):,} of {len(self.files):,} {self.what}{where} {'is' if len(names) == 1 else 'are'}"

    def _lines(self, reasons: Mapping[str, str]) -> list[str]:
        return [f"{printable(self.folder / name)}: {reason}" for name, reason in reasons.items()]

    def _notes_of_listing(self) -> list[str]:
        listed = self.listing
        notes = [
            f"the folder {printable(self.folder / name)} cannot be listed ({why}): its files are not used"
            for name, why in listed.unlisted.items()
        ]
        if listed.named_like_pictures:
            names = first_names(listed.named_like_pictures)
            notes.append(f"folders among the {self.what} that are named like files: {names}")
        if listed.repeated:
            notes.append(f"further names of the same {self.what} are left out: {first_names(listed.repeated)}")
        return notes


def with_details(first: str, lines: Sequence[str]) -> str:
    """Return `first` with `lines` indented below it; more than five are cut to four and the number of the others."""
    below = lines if len(lines) <= 5 else [*lines[:4], f"and {len(lines) - 4:,} more"]
    return "\n  ".join([first, *below])


def first_names(names: Collection[str | Path]) -> str:
    """Return the first three of `names` as text, followed by the number of further names, if any."""
    some = ", ".join(printable(Path(name)) for name in list(names)[:3])
    return some if len(names) <= 3 else f"{some} and {len(names) - 3:,} more"
