"""What translating a set takes: which picture goes where, and what is done already. Nothing is decoded or written."""

import hashlib
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError
from cyclestyle.filesystem import atomic
from cyclestyle.filesystem.listing import printable
from cyclestyle.images import file_formats
from cyclestyle.images.file_formats import Format
from cyclestyle.photoset.inputs import ENDINGS, LIST, InputFile, find, identity_of
from cyclestyle.photoset.journal import FOLDER, NAME, Journal, JournalEntry, ReportRow, stamp, writing

Existing = Literal["skip", "overwrite", "error"]


class Job(NamedTuple):
    """One picture, and where its translations go: one, or one for each strength of a sweep."""

    source: InputFile
    targets: tuple[Path, ...]  # relative to the output folder
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name in the journal, such that a sweep is one entry and a single translation another."""
        return "\0".join(target.as_posix() for target in self.targets)


class Jobs(NamedTuple):
    """All pictures that are meant."""

    folder: Path  # the output
    jobs: list[Job]
    is_single: bool  # one picture that goes under a name of its own, with nothing else around it
    skipped_own_outputs: int = 0  # pictures that are translations themselves, and were passed over

    @property
    def hidden(self) -> Path | None:
        """Where the journal and its like stand."""
        return None if self.is_single else self.folder / FOLDER


class Plan(NamedTuple):
    """What there is to do."""

    folder: Path  # the output
    jobs: list[Job]  # all pictures
    todo: list[Job]
    already_done: list[ReportRow]  # the other pictures: up to date, kept, or such that they cannot be read
    journal: Journal | None  # None for a single picture under a name of its own


def jobs(wanted: str, output: Path, *, format: Format = "keep", folders: Sequence[str] = ("",)) -> Jobs:  # noqa: A002
    """The pictures that `wanted` means, see `inputs.find`, and where each goes.

    Args:
        output: a folder; for one picture also a name that ends like a picture's.
        format: of the translations; it decides the ending of their names.
        folders: below the output, one for each translation of a picture.

    Raises:
        CommandError: a translation would take the place of an input, or the output cannot be what it should.
        DataError: there are no pictures.
    """
    if format == "heic" and not file_formats.is_written(".heic"):
        raise CommandError("format=heic needs another library: pip install 'cyclestyle[heic]'")
    if output.suffix.lower() in ENDINGS and not output.is_dir():
        return _single(wanted, output, format, folders)
    if output.exists() and not output.is_dir():
        raise CommandError(
            f"output={printable(output)} is a file: give a folder, or for one picture a name like a picture's"
        )
    if Path(wanted).is_dir() and output.exists() and output.samefile(wanted):
        raise CommandError(f"output={printable(output)} is the input folder itself: inputs are never overwritten")
    sources, passed = find(wanted, output=output, own=_translations)
    found = [
        Job(source, tuple(Path(folder) / name for folder in folders), notes)
        for source, (name, notes) in zip(sources, target_names([one.name for one in sources], format), strict=True)
    ]
    _protect_inputs(found, output)
    return Jobs(output, found, is_single=False, skipped_own_outputs=passed)


def plan(wanted: Jobs, *, existing: Existing, settings: str, world: World) -> Plan:
    """What is still to do, going by the journal, of which this command takes hold.

    A translation is up to date when picture and settings are those that it was made from. Otherwise it is made anew if
    an earlier command made it and nobody changed it since; what else is there is kept.

    Args:
        existing: `skip` is that; `overwrite` makes everything anew, whoever made it; `error` refuses to begin where
            something is there that is not up to date.
        settings: fingerprint of all that decides what a translation looks like.
        world: the processes that share the work.

    Raises:
        CommandError: `existing` is `error` and something is there; another command is at work on this output.
        DiskError: the output cannot be written.
    """
    journal = None if wanted.is_single else Journal(wanted.folder)
    if journal is not None:
        with world.main_first():
            if world.is_main:
                journal.acquire()
                journal.read()
                journal.tidy()
                remove_temporary_files(wanted.folder, wanted.jobs)
        journal.read()
    ours = _OutputOwnership(wanted, journal)
    todo: list[Job] = []
    settled: list[ReportRow] = []
    in_the_way: list[Path] = []
    for job in wanted.jobs:
        entry = journal.entries.get(job.key) if journal is not None else None
        foreign = next(filter(None, (ours.objection(job, target) for target in job.targets)), "")
        if job.source.reason:
            settled.append(_line(job, "failed", job.source.reason))
        elif existing != "overwrite" and entry is not None and _is_current(job, entry, settings, wanted.folder):
            settled.append(_line(job, "up to date", notes=entry.notes, size=entry.size))
        elif existing == "skip" and foreign:
            settled.append(_line(job, "kept", f"{foreign}; existing=overwrite replaces it"))
        else:
            in_the_way += [target for target in job.targets if os.path.lexists(wanted.folder / target)]
            todo.append(job)
    if existing == "error" and in_the_way:
        more = f" and {len(in_the_way) - 1:,} more are" if len(in_the_way) > 1 else " is"
        raise CommandError(
            f"{printable(wanted.folder / in_the_way[0])}{more} there already: existing=skip or overwrite"
        )
    _check_agreement(todo, world)
    return Plan(wanted.folder, wanted.jobs, todo, settled, journal)


def remove_temporary_files(folder: Path, jobs: Iterable[Job]) -> None:
    """Remove what killed processes left half-written wherever translations go; nobody else may be writing there.

    Args:
        folder: the output.
    """
    hidden = folder / FOLDER
    places = {folder, *((folder / target).parent for job in jobs for target in job.targets)}
    with writing(folder):
        for place in [*places, hidden, *(path for path in hidden.iterdir() if path.is_dir())]:
            atomic.remove_temporary_files(place)


def target_names(names: Sequence[Path], format: Format) -> list[tuple[Path, tuple[str, ...]]]:  # noqa: A002
    """The names of translations, with notes where they are not those of the pictures; no two are alike.

    Where a change of format, or a file system that takes capitals and small letters for the same, would make two names
    one, the picture that has the name already keeps it, and the others get their whole name and the new ending, or a
    number. No file gets the name of a folder that others need.
    """
    wanted = [file_formats.target_name(name, format) for name in names]
    folders = {_folded(parent) for name in wanted for parent in name.parents}
    natural = {_folded(name) for name in wanted}
    taken: set[str] = set()
    given: dict[int, Path] = {}
    for index in sorted(range(len(names)), key=lambda index: wanted[index] != names[index]):  # keepers first
        name = wanted[index]
        if _folded(name) in taken | folders:
            others = _others(names[index], wanted[index])
            name = next(other for other in others if _folded(other) not in taken | folders | natural)
        taken.add(_folded(name))
        given[index] = name
    return [
        (given[index], tuple(_notes(name, given[index], wanted[index], format))) for index, name in enumerate(names)
    ]


def heic_as_jpeg(jobs: Iterable[Job]) -> int:
    """How many HEIC are written as JPEG though nobody asked for that."""
    return sum(file_formats.HEIC_AS_JPEG in job.notes for job in jobs)


def _notes(name: Path, given: Path, wanted: Path, format: Format) -> Iterator[str]:  # noqa: A002
    """What the owner of a picture should know about the name of its translation."""
    if file_formats.becomes_jpeg(name, format):
        yield file_formats.HEIC_AS_JPEG
    if given != wanted:
        yield f"named {given.name}: another has its name"


def _others(name: Path, wanted: Path) -> Iterator[Path]:
    """Names for a translation whose own is taken: a.jpg.png, a-2.png, a-3.png and so on."""
    if wanted.suffix != name.suffix:
        yield name.with_name(name.name + wanted.suffix)
    for number in itertools.count(2):
        yield wanted.with_stem(f"{wanted.stem}-{number}")


def _single(wanted: str, output: Path, format: Format, folders: Sequence[str]) -> Jobs:  # noqa: A002
    """One picture, under the name `output`."""
    if len(folders) > 1:
        raise CommandError(f"output={printable(output)} is one file: several strengths need a folder")
    if not Path(wanted).is_file() or Path(wanted).suffix.lower() == LIST:
        raise CommandError(
            f"output={printable(output)} is a name for one picture, but input= is not one: give a folder"
        )
    if not file_formats.is_written(output.suffix.lower()):
        raise CommandError(f"output={printable(output)}: this format cannot be written, choose .png")
    if format != "keep" and file_formats.target_name(Path(output.name), format) != Path(output.name):
        raise CommandError(f"output={printable(output)} is not what format={format} says: leave format= out")
    ((source,), _) = find(wanted)
    job = Job(source, (Path(output.name),))
    _protect_inputs([job], output.parent)
    return Jobs(output.parent, [job], is_single=True)


def _check_agreement(todo: Sequence[Job], world: World) -> None:
    """Raise a CommandError unless all processes have found the same work."""
    told = "\n".join(job.key for job in todo).encode(errors="surrogateescape")
    if not world.all_equal(int.from_bytes(hashlib.sha256(told).digest()[:7])):
        raise CommandError("the processes do not find the same pictures: is the input changing, or not shared?")


def _folded(path: Path) -> str:
    """The same for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", os.fspath(path)).casefold()


def _protect_inputs(found: Sequence[Job], output: Path) -> None:
    """Raise a CommandError if any target is, by whatever name, one of the sources."""
    sources = {identity_of(job.source.path) for job in found} - {None}
    for job in found:
        for target in job.targets:
            if identity_of(output / target) in sources:
                raise CommandError(
                    f"{printable(output / target)} is an input, and inputs are never overwritten: choose another "
                    f"output="
                )


def _is_current(job: Job, entry: JournalEntry, settings: str, output: Path) -> bool:
    names = {target.as_posix() for target in job.targets}
    is_same = entry.stamp == (job.source.size, job.source.modified_ns) and entry.settings == settings
    return (
        entry.is_done and is_same and names == entry.targets.keys() and all(_is_untouched(entry.targets, output, names))
    )


class _OutputOwnership:
    """What is known of the files in an output folder: whose they are."""

    def __init__(self, wanted: Jobs, journal: Journal | None) -> None:
        self.folder = wanted.folder
        self._goes_to = {_absolute(job): {target.as_posix() for target in job.targets} for job in wanted.jobs}
        self._made: dict[str, list[JournalEntry]] = {}
        for entry in journal.entries.values() if journal is not None else ():
            for name in entry.targets:
                self._made.setdefault(name, []).append(entry)

    def objection(self, job: Job, target: Path) -> str:
        """Why the file at a target may not be replaced by a translation of this picture; nothing if it may."""
        path = self.folder / target
        if not os.path.lexists(path):
            return ""
        name, there = target.as_posix(), stamp(path)
        makers = [entry for entry in self._made.get(name, []) if entry.targets[name] in (None, there)]
        if not makers:
            return f"{printable(path)} is not this program's, or was changed since"
        others = [entry.source for entry in makers if self._still_needs(entry.source, name, than=_absolute(job))]
        if len(others) < len(makers):
            return ""
        return f"{printable(path)} was made from {printable(Path(others[0]))}"

    def _still_needs(self, source: str, name: str, *, than: str) -> bool:
        """Whether a file was made from another picture that is there, and has no other place to go."""
        if source == than or not Path(source).exists():
            return False
        return name in self._goes_to.get(source, {name})


def _absolute(job: Job) -> str:
    return os.path.abspath(job.source.path)  # noqa: PTH100 - as the journal has it: no link is followed


def _translations(folder: Path) -> set[str]:
    """The translations that a folder's journal knows of."""
    if not (folder / FOLDER / NAME).is_file():
        return set()
    journal = Journal(folder)
    journal.read()
    return journal.translations()


def _is_untouched(targets: Mapping[str, object], output: Path, names: Iterable[str]) -> Iterable[bool]:
    return (targets[name] == stamp(output / name) for name in names)


def _line(
    job: Job,
    status: Literal["up to date", "kept", "failed"],
    reason: str = "",
    notes: tuple[str, ...] = (),
    size: tuple[int, int] = (0, 0),
) -> ReportRow:
    return ReportRow(job.source.path, tuple(target.as_posix() for target in job.targets), status, reason, notes, size)
