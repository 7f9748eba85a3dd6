"""The contact sheet of a command: what `sheet` shows, of the pictures that a plan was about."""

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
    """Write the page of an output folder; returns where it is, or the folder where something else has its name.

    Args:
        thumbnails: folder of the thumbnails.
        facts: about the command.
        labels: of the translations of each picture, where there are several.

    Raises:
        DiskError: it cannot be written.
    """
    cards = [_card(line, folder, thumbnails, labels) for line in outcome.lines if line.status != "kept"]
    kept = outcome.count("kept")
    told = [*([f"{kept:,} kept as they were, not shown"] * bool(kept)), *facts, f"in {_duration(outcome.elapsed_s)}"]
    html = page.page(cards, title=folder.absolute().name, facts=told, labels=labels)
    path = folder / page.NAME
    with writing(path):
        try:
            page.write(path, html)
        except CommandError:
            warn(f"{printable(path)} is not ours and stays as it is: move it away for a contact sheet")
            return folder
    return path


def _card(line: ReportRow, folder: Path, thumbnails: Path, labels: Sequence[str]) -> Card:
    if line.status == "failed":
        return Card(os.fspath(line.source), (0, 0), "", (), None, (), failed=line.reason)
    pictures = [_if_there(thumbnails / name, folder) for name in thumbnail_names(line.targets)]
    target = PurePosixPath(line.targets[0])
    return Card(
        os.fspath(PurePosixPath(*target.parts[1:]) if labels else target),  # without the strength's folder
        line.size,
        pictures[0],
        tuple(pictures[1:]),
        _relative(line.source, folder),
        line.targets,
        note="; ".join(line.notes),
    )


def _if_there(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.exists() else ""


def _relative(path: Path, folder: Path) -> str | None:
    """A path as a page in the folder can name it."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return None


def _duration(seconds: float) -> str:
    """A time as people read it, in two units at most."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
