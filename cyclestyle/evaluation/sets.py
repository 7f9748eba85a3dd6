"""Choice of the files that a direction is scored on: photos, real images of the target domain, true translations."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from cyclestyle.errors import CommandError, DataError
from cyclestyle.filesystem.listing import printable
from cyclestyle.photoset import inputs

_SIDE = re.compile(r"[_-][ABab]$")  # end of the names in data sets of pairs, such as 1_A.jpg and 1_B.jpg


class DataSet(Protocol):
    """Image files of two domains, such as `UnpairedFolders`; a list of test files may be empty."""

    @property
    def train_a(self) -> Sequence[Path]: ...
    @property
    def train_b(self) -> Sequence[Path]: ...
    @property
    def test_a(self) -> Sequence[Path]: ...
    @property
    def test_b(self) -> Sequence[Path]: ...


class Sets(NamedTuple):
    """Files that a direction is scored on.

    Attributes:
        sources: photos that the model translates.
        targets: real images of the target domain, which need not correspond to the photos.
        truths: true translation of each photo, by the path of the photo; None if there are none.
        references: further real images of the target domain, such as the training images. The copying score compares
            translations with them. The floor, the score of real images, compares them with `targets`.
        notes: lines for the user about the choice of the files.
    """

    sources: Sequence[Path]
    targets: Sequence[Path] = ()
    truths: Mapping[Path, Path] | None = None
    references: Sequence[Path] = ()
    notes: tuple[str, ...] = ()


def from_folders(
    input: Path,  # noqa: A002
    *,
    target: Path | None = None,
    truth: Path | None = None,
    limit: int | None = None,
) -> Sets:
    """Return the photos below the folder `input`, the images below `target`, and the true translations in `truth`.

    Without `target`, the true translations are the images of the target domain.

    Args:
        limit: maximum number of images of each set, evenly spaced in the order of their names; None takes all.

    Raises:
        DataError: a folder is missing or has no images, or a photo has no true translation.
    """
    names = evenly_spaced(inputs.names(input), limit)
    sources = [input / name for name in names]
    truths = None
    if truth is not None:
        partners = aligned(names, inputs.names(truth), where=truth)
        truths = {input / name: truth / partner for name, partner in partners.items()}
    if target is not None:
        targets = [target / name for name in evenly_spaced(inputs.names(target), limit)]
    else:
        targets = [] if truths is None else list(truths.values())
    return Sets(sources, targets, truths)


def from_data_set(
    folders: DataSet,
    *,
    side: Literal["ab", "ba"],
    is_aligned: bool = False,
    truth: Path | None = None,
    limit: int | None = None,
) -> Sets:
    """Return the test images of both domains of a data set, and the training images of the target domain.

    A domain without test images is represented by its training images; if this is the target domain, there are no
    references.

    Args:
        side: direction, `ab` from the first domain to the second, or `ba`.
        is_aligned: whether test images of both domains with equal names show the same scene.
        truth: folder with the true translation of each photo; None without one.
        limit: see `from_folders`.

    Raises:
        DataError: a photo has no true translation.
    """
    trained, tested = (folders.train_a, folders.train_b), (folders.test_a, folders.test_b)
    source, target = (0, 1) if side == "ab" else (1, 0)
    everything = [tested[domain] or trained[domain] for domain in (source, target)]
    sources = evenly_spaced(everything[0], limit)
    truths = None
    if is_aligned or truth is not None:
        source_root = _common_folder(everything[0])
        names = [file.relative_to(source_root) for file in sources]
        truth_root = truth or _common_folder(everything[1])
        candidates = inputs.names(truth) if truth else [file.relative_to(truth_root) for file in everything[1]]
        partners = aligned(names, candidates, where=truth_root)
        truths = {source_root / name: truth_root / partner for name, partner in partners.items()}
    references = evenly_spaced(trained[target], limit) if tested[target] else []
    untested = [name for name, domain in (("photos", source), ("target images", target)) if not tested[domain]]
    notes = [f"no test images: the {name} are training images, which the model may know by heart" for name in untested]
    return Sets(sources, evenly_spaced(everything[1], limit), truths, references, tuple(notes))


def evenly_spaced(files: Sequence[Path], limit: int | None) -> list[Path]:
    """Return up to `limit` files, spread evenly over the list, because neighbouring files are often alike.

    Raises:
        CommandError: `limit` is below 1.
    """
    if limit is None or limit >= len(files):
        return list(files)
    if limit < 1:
        raise CommandError(f"images={limit}: give the maximum number of images of a set, 1 or more, or null for all")
    return [files[index * len(files) // limit] for index in range(limit)]


def aligned(names: Sequence[Path], candidates: Sequence[Path], *, where: Path) -> dict[Path, Path]:
    """Return the matching candidate for each of `names`; all paths are relative to their folders.

    Three rules are tried in this order, and the first that finds a candidate decides:

    1. The whole names are equal.
    2. The names are equal without the file ending.
    3. The names are equal without the file ending and without a final `_A`, `_B`, `-A` or `-B`, in capitals or not.

    Args:
        names: paths of the photos.
        candidates: paths of the true translations.
        where: folder of the candidates, for the error text.

    Raises:
        DataError: a name has no partner.
    """
    levels = [{level(candidate): candidate for candidate in candidates} for level in _LEVELS]
    partners = {}
    for name in names:
        found = (by_key.get(level(name)) for level, by_key in zip(_LEVELS, levels, strict=True))
        if (partner := next(filter(None, found), None)) is not None:
            partners[name] = partner
    missing = [name for name in names if name not in partners]
    if missing:
        raise DataError(
            f"{printable(where.absolute())} lacks the truth of {len(missing)} of {len(names)} photos, "
            f"such as {printable(missing[0])}: both folders must have the same file names"
        )
    return partners


def _common_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


def _without_side(name: Path) -> Path:
    return name.with_name(_SIDE.sub("", name.stem) or name.stem)


def _without_ending(name: Path) -> Path:
    return name.with_suffix("")


def _whole(name: Path) -> Path:
    return name


_LEVELS: tuple[Callable[[Path], Path], ...] = (_whole, _without_ending, _without_side)
