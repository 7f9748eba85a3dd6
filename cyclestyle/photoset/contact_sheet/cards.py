"""Contact sheet for the photos of one `translate` command: a page with one card per photo."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cyclestyle.errors import CommandError, warn
from cyclestyle.filesystem.listing import printable
from cyclestyle.photoset.contact_sheet import page
from cyclestyle.photoset.contact_sheet.page import Card
from cyclestyle.photoset.journal import ReportRow, writing
from cyclestyle.photoset.runner import JobResult, thumbnail_names, web_copy_names


def write_contact_sheet(
    folder: Path, outcome: JobResult, *, thumbnails: Path, facts: Sequence[str], labels: Sequence[str] = ()
) -> Path:
    """Write the contact sheet for one `translate` command to the output folder.

    Args:
        folder: output folder.
        outcome: outcome of each photo. Existing output files that the command did not overwrite (status `kept`) are
            counted but get no card.
        thumbnails: folder that contains the thumbnails.
        facts: items to show in the line below the heading, such as the model and its direction.
        labels: one label for each translation of a photo; empty if each photo has a single translation.

    Returns:
        Path of the page. If a file that is not a contact sheet already has the page's name, that file is kept, a
        warning is printed, and `folder` is returned.

    Raises:
        DiskError: the page cannot be written.
    """
    root = _common_folder([row.source for row in outcome.lines])
    cards = [_card(row, folder, thumbnails, labels, root=root) for row in outcome.lines if row.status != "kept"]
    kept = outcome.count("kept")
    counts = [f"{kept:,} kept as they were, not shown"] if kept else []
    counts += [f"stopped early: {outcome.remaining:,} remain"] if outcome.remaining else []
    all_facts = [*counts, *facts, f"in {_duration(outcome.elapsed_s)}"]
    html = page.page(cards, title=folder.absolute().name, facts=all_facts, labels=labels)
    path = folder / page.NAME
    with writing(path):
        try:
            page.write(path, html)
        except CommandError:
            warn(f"{printable(path)} is not a contact sheet of cyclestyle and is kept: move it away to get one")
            return folder
    return path


def _card(row: ReportRow, folder: Path, thumbnails: Path, labels: Sequence[str], *, root: Path) -> Card:
    """Make the card of a photo; its texts contain no absolute path, since a page may be passed on.

    Args:
        row, folder, thumbnails, labels: see `write_contact_sheet`; `row` is not of status `kept`.
        root: absolute path of a folder that contains all photos.
    """
    if row.status == "failed":
        name = os.fspath(row.source.absolute().relative_to(root))
        return Card(name, (0, 0), "", (), None, (), failed=_without_folders(row.reason, root, folder))
    thumbs = thumbnail_names(row.targets)
    before, *after = [_relative_if_exists(thumbnails / name, folder) for name in thumbs]
    copies = [
        _relative_if_exists(thumbnails / name, folder) if name else ""
        for name in web_copy_names(thumbs, row.source, row.targets)
    ]
    target = PurePosixPath(row.targets[0])
    return Card(
        os.fspath(PurePosixPath(*target.parts[1:]) if labels else target),  # without the strength's folder
        row.size,
        before,
        tuple(after),
        _relative(row.source, folder),
        row.targets,
        note=_without_folders("; ".join(row.notes), root, folder),
        copies=tuple(copies) if any(copies) else (),
    )


def _common_folder(paths: Sequence[Path]) -> Path:
    """Return the absolute path of the deepest folder that contains all files; an empty path if there is none."""
    parents = [path.absolute().parent for path in paths]
    try:
        return Path(os.path.commonpath(parents))
    except ValueError:  # no paths, or on Windows, paths on several drives
        return Path()


def _without_folders(text: str, *folders: Path) -> str:
    """Return `text` with each absolute path of a file in one of the `folders` made relative to that folder."""
    for folder in folders:
        if folder != Path(folder.anchor):
            text = text.replace(f"{printable(folder.absolute())}{os.sep}", "")
    return text


def _relative_if_exists(path: Path, folder: Path) -> str:
    """Return `path`, which lies below `folder`, relative to `folder`; an empty string if the file does not exist."""
    return path.relative_to(folder).as_posix() if path.exists() else ""


def _relative(path: Path, folder: Path) -> str | None:
    """Return `path` relative to `folder`, the folder of the page; None if `path` is on another drive (Windows)."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on Windows, a path on another drive
        return None


def _duration(seconds: float) -> str:
    """Format a duration in one or two units, such as `2 min 5 s`."""
    total_minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(total_minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
