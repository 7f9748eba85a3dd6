"""Contact sheet for the photos of one `translate` command: a page with one card per photo."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cyclestyle.errors import CommandError, warn
from cyclestyle.filesystem.listing import printable
from cyclestyle.photoset.contact_sheet import page
from cyclestyle.photoset.contact_sheet.page import Card
from cyclestyle.photoset.journal import ReportRow, writing
from cyclestyle.photoset.runner import JobResult, thumbnail_names


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
    cards = [_card(row, folder, thumbnails, labels) for row in outcome.lines if row.status != "kept"]
    kept = outcome.count("kept")
    counts = [f"{kept:,} kept as they were, not shown"] if kept else []
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


def _card(row: ReportRow, folder: Path, thumbnails: Path, labels: Sequence[str]) -> Card:
    if row.status == "failed":
        return Card(os.fspath(row.source), (0, 0), "", (), None, (), failed=row.reason)
    before, *after = [_relative_if_exists(thumbnails / name, folder) for name in thumbnail_names(row.targets)]
    target = PurePosixPath(row.targets[0])
    return Card(
        os.fspath(PurePosixPath(*target.parts[1:]) if labels else target),  # without the strength's folder
        row.size,
        before,
        tuple(after),
        _relative(row.source, folder),
        row.targets,
        note="; ".join(row.notes),
    )


def _relative_if_exists(path: Path, folder: Path) -> str:
    """Return `path` relative to `folder`, or an empty string if the file does not exist."""
    return path.relative_to(folder).as_posix() if path.exists() else ""


def _relative(path: Path, folder: Path) -> str | None:
    """Return `path` relative to the page's folder `folder`; None if the page cannot link to the file."""
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
