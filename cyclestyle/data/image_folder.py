"""One folder of training or test images: its files and, after inspection, which of them are usable."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cyclestyle.data.crop import Crop
from cyclestyle.data.inspection import FileCheck
from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import SYSTEM_FOLDERS, listing, printable
from cyclestyle.images import decoding, file_formats
from cyclestyle.images.decoders import DecoderName

BadFiles = Literal["skip", "use", "error"]
SmallImages = Literal["resize", "skip", "error"]
# HEIC files are listed even if the library that reads them is missing: they are reported, never skipped silently.
ENDINGS: dict[DecoderName, frozenset[str]] = {
    "photo": file_formats.ALL_ENDINGS,
    "earlier": decoding.EXTENSIONS | {".gif"},
}
NARROW = 2**14  # a 16-bit image whose values span less, a quarter of the range, is reported


class FileRules(NamedTuple):
    """Settings that decide which image files are used; `UnpairedFolders` documents each setting."""

    crop: Crop
    bad_files: BadFiles
    small_images: SmallImages
    max_pixels: int
    tolerance: float  # largest accepted share of damaged files, from 0 to 1
    has_full_range: bool  # whether values of 16-bit files are used as they are


class ImageFolder:
    """The images in a folder and its subfolders at any depth; their order depends on the file names alone.

    Unusable files keep their indices in `files`, so that no other index changes when a file becomes unreadable.

    Args:
        folder: root folder.
        what: words that name these images in messages, such as `pictures of monet`.
        decoder: decides which files are listed. `photo` lists files of all known formats, except those in system
            folders such as `$RECYCLE.BIN`. `earlier` lists the same files as earlier versions of this program, so that
            their runs can be resumed: it includes system folders, and lists no HEIC, AVIF, JFIF or JPEG 2000.

    Attributes:
        files: paths of all images.
        damaged: unreadable files: a dictionary from file names, relative to the folder, to error texts.
        incomplete: JPEG files that lack their last bytes: a dictionary from file names to error texts. They are also
            in `damaged`, unless `FileRules.bad_files` is `use`.
        small: images that are smaller than the crop after resizing: a dictionary from file names to texts that state
            the sizes.
        excluded: readable images that are not used: a dictionary from file names to reasons. These are images with more
            than `FileRules.max_pixels` pixels, and the images in `small` unless `FileRules.small_images` is `resize`.
        notes: remarks on the folder for the user.

    `classify` fills the four dictionaries, and adds to `notes`.

    Raises:
        DataError: the folder cannot be listed.
    """

    def __init__(self, folder: Path, what: str, *, decoder: DecoderName = "photo") -> None:
        self.folder, self.what = folder, what
        skipped = SYSTEM_FOLDERS if decoder == "photo" else frozenset[str]()
        self.listing = listing(folder, endings=ENDINGS[decoder], system_folders=skipped)
        self.files = [folder / candidate.name for candidate in self.listing.candidates]
        self.damaged: dict[str, str] = {}
        self.incomplete: dict[str, str] = {}
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
        """Apply `rules` to the inspection results: fill `damaged`, `incomplete`, `small`, `excluded` and `notes`.

        `checks` holds the inspection results, keyed by file name relative to the folder.
        """
        self.damaged, self.incomplete, self.small, self.excluded = {}, {}, {}, {}
        animated: list[str] = []
        narrow: dict[str, tuple[int, int]] = {}
        for candidate in self.listing.candidates:
            name, (facts, reason, _) = str(candidate.name), checks[candidate.name]
            if facts is not None and reason:
                self.incomplete[name] = reason
            if facts is None or (reason and rules.bad_files != "use"):
                self.damaged[name] = reason
                continue
            width, height = facts.width, facts.height
            if width * height > rules.max_pixels:
                self.excluded[name] = f"{decoding.too_large(width, height, rules.max_pixels)} (data.max_pixels)"
                continue
            if not rules.crop.fits(width, height):
                self.small[name] = f"{width} x {height} pixels are less than data.crop_size={rules.crop.crop_size}"
            animated += [name] if facts.animated else []
            if facts.values is not None and 0 < facts.values[1] - facts.values[0] < NARROW:
                narrow[name] = facts.values
        self.excluded |= self.small if rules.small_images != "resize" else {}

        self.notes = self._notes_of_listing()
        if skipped := self.skipped:
            self.notes.append(with_details(f"{self._share(skipped)} not used:", self._lines(skipped)))
        if rules.bad_files == "use" and self.incomplete:
            lacking = f"{self._share(self.incomplete)} without the last bytes of the file"
            self.notes.append(f"{lacking}, and used all the same ({first_names(self.incomplete)})")
        if narrow and rules.has_full_range:
            self.notes.append(self._narrow_note(narrow))
        if animated:
            self.notes.append(f"{self._share(animated)} animated: the first frame is used ({first_names(animated)})")
        if self.small and rules.small_images == "resize":
            enlarged = f"smaller than data.crop_size={rules.crop.crop_size} and enlarged"
            self.notes.append(f"{self._share(self.small)} {enlarged} ({first_names(self.small)})")

    def require_usable(self, rules: FileRules) -> None:
        """Raise a DataError if more images are damaged or small than `rules` permit, or fewer than two are usable."""
        percent = f"{100 * rules.tolerance:g} %"
        tolerated = int(len(self.files) * rules.tolerance + 1e-9)  # 0.29 of 100 files are 29, in spite of rounding
        damaged = self.damaged | {str(name): f"cannot be listed: {why}" for name, why in self.listing.unlisted.items()}
        if rules.bad_files == "error" and damaged:
            remedy = f"repair or remove them, or skip up to {percent} with data.bad_files=skip"
            raise self._error(f"damaged: {remedy}", damaged)
        if len(self.damaged) > tolerated:
            what = f"damaged, more than the {percent} that is skipped ({tolerated:,}): repair or remove them, or raise "
            what += f"data.tolerance={rules.tolerance:g}"
            if usable := len(self.incomplete.keys() & self.damaged.keys()):
                what += f"; data.bad_files=use takes the {usable:,} that only lack their last bytes"
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

    def _narrow_note(self, narrow: Mapping[str, tuple[int, int]]) -> str:
        """Return a note on 16-bit images that use a small part of the range of values; it suggests `data.range`.

        Args:
            narrow: dictionary from file names to the smallest and the largest value in the file.
        """
        low, high = min(low for low, _ in narrow.values()), max(high for _, high in narrow.values())
        suggested = (0, 2 ** high.bit_length() - 1) if low < high // 4 else (low, high)
        return (
            f"{self._share(narrow)} almost uniform: values {low:,} to {high:,} of 0 to 65,535 ({first_names(narrow)}); "
            f"if this is their whole range, data.range=[{suggested[0]},{suggested[1]}] scales it to black to white"
        )

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
        if summary := listed.passed_over.summary():
            notes.append(f"{self.what}: {summary}")
        return notes


def with_details(first: str, lines: Sequence[str]) -> str:
    """Return `first` with `lines` indented below it.

    If there are more than five lines, only four are shown, followed by the number of lines left out.
    """
    below = lines if len(lines) <= 5 else [*lines[:4], f"and {len(lines) - 4:,} more"]
    return "\n  ".join([first, *below])


def first_names(names: Collection[str | Path]) -> str:
    """Return the first three of `names` as text, followed by the number of further names, if any."""
    some = ", ".join(printable(Path(name)) for name in list(names)[:3])
    return some if len(names) <= 3 else f"{some} and {len(names) - 3:,} more"
