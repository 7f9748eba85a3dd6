"""Orphans in an output folder: translations whose photos no longer exist; `prune=` lists or removes them."""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from cyclestyle.errors import CommandError
from cyclestyle.filesystem.listing import printable
from cyclestyle.photoset.journal import Journal, JournalEntry, ReportRow, stamp, writing
from cyclestyle.photoset.plan import Job, Plan
from cyclestyle.photoset.runner import SHOWN, sheet_names

Prune = Literal["no", "list", "remove"]


class Orphan(NamedTuple):
    """A journal entry whose photo no longer exists, and the translations in this entry that may be removed."""

    key: str  # key of the entry, see `Job.key`
    source: Path  # former path of the photo
    targets: tuple[str, ...]  # translations that exist and are unchanged, relative to the output folder


def parse(value: bool | str | None, *, input: str) -> Prune:  # noqa: A002
    """Convert a value of the option `prune=` to `no`, `list` or `remove`.

    `true` means `remove`, and `false` or null means `no`.

    Raises:
        CommandError: the value is unknown; or it is `list` or `remove`, but the path `input` is not a folder.
    """
    meant = {"true": "remove", "false": "no", "none": "no", "null": "no"}
    text = str(value).lower()
    known: dict[str, Prune] = {name: name for name in get_args(Prune)}
    prune = known.get(meant.get(text, text))
    if prune is None:
        raise CommandError(f"prune={value}: give list, remove or false")
    if prune != "no" and not Path(input).is_dir():
        raise CommandError(
            f"prune={value} needs a folder as input=: which photos are gone cannot be known from {input}"
        )
    return prune


def find(plan: Plan, root: Path) -> list[Orphan]:
    """Find the journal entries whose photos were below the folder `root` and no longer exist, sorted by photo.

    An entry is left out if one of its translations has the name of an output file of a photo that still exists. Entries
    of photos outside `root` are left out too, since the disk of these photos may not be mounted. Of the other entries,
    the result lists only translations that are unchanged since they were written.

    The entries of the plan's journal must be up to date, see `Journal.read`.
    """
    absolute_root = Path(os.path.abspath(root))  # noqa: PTH100 - the journal does not resolve links
    needed = _needed(plan.jobs, plan.journal.entries.values())
    return sorted(_orphans(plan.journal, absolute_root, needed), key=lambda orphan: orphan.source.parts)


def remove(plan: Plan, orphans: Iterable[Orphan]) -> None:
    """Remove the files of orphans, their contact sheet images, their journal entries, and folders that become empty.

    Raises:
        DiskError: a file cannot be removed, or the journal cannot be written.
    """
    removed = []
    try:
        for orphan in orphans:
            for target in orphan.targets:
                _remove_file(plan.folder, plan.folder / target)
            for name in sheet_names(orphan.source, orphan.key.split("\0")):
                _remove_file(plan.journal.folder, plan.journal.folder / "thumbnails" / name)
            removed.append(orphan.key)
    finally:
        plan.journal.discard(removed)


def rows(orphans: Iterable[Orphan], prune: Prune) -> list[ReportRow]:
    """Return a report row for each orphan; its status is `removed` if `prune` is `remove`, and `orphan` otherwise."""
    status: Literal["orphan", "removed"] = "removed" if prune == "remove" else "orphan"
    return [ReportRow(orphan.source, orphan.targets, status, "its photo is gone") for orphan in orphans]


def summary(orphans: Collection[Orphan], prune: Prune, *, report: Path) -> str:
    """Return the text printed for the user: the number of orphaned files, and the names of the first `SHOWN` files.

    The text refers to the file `report` if there are more.
    """
    count = sum(len(orphan.targets) for orphan in orphans)
    what = "1 translation whose photo is gone" if count == 1 else f"{count:,} translations whose photos are gone"
    remedy = f": prune=remove removes {'it' if count == 1 else 'them'}" if count else ""
    done = f"removed {what}" if prune == "remove" else f"{what}{remedy}"
    names = [target for orphan in orphans for target in orphan.targets]
    lines = [printable(Path(name)) for name in names[:SHOWN]]
    if len(names) > SHOWN:
        lines.append(f"and {len(names) - SHOWN:,} more, all listed in {printable(report)}")
    return "\n  ".join([f"prune={prune}: {done}", *lines])


def _needed(jobs: Iterable[Job], entries: Iterable[JournalEntry]) -> set[str]:
    """Return the names of all translations that must be kept, since their photos exist.

    These are the targets of all `jobs`, and the targets of those journal `entries` whose photo still exists.
    """
    names = {target.as_posix() for job in jobs for target in job.targets}
    for entry in entries:
        if not _is_gone(Path(entry.source)):
            names.update(entry.targets)
    return names


def _orphans(journal: Journal, root: Path, needed: set[str]) -> Iterator[Orphan]:
    for key, entry in journal.entries.items():
        source = Path(entry.source)
        if not source.is_relative_to(root) or not needed.isdisjoint(entry.targets) or not _is_gone(source):
            continue
        written = {name: stamp_then for name, stamp_then in entry.targets.items() if stamp_then is not None}
        if targets := tuple(name for name in written if stamp(journal.output / name) == written[name]):
            yield Orphan(key, source, targets)


def _is_gone(path: Path) -> bool:
    """Return whether a path does not exist; False if that cannot be known, as below a broken link."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return not any(parent.is_symlink() and not parent.exists() for parent in path.parents)
    except OSError:  # such as a missing permission
        return False
    return False


def _remove_file(output: Path, path: Path) -> None:
    """Remove the file `path` and all folders that become empty, except the folder `output`, which contains them."""
    with writing(path):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # a folder with other files
        for parent in path.parents:
            if parent == output:
                break
            parent.rmdir()
