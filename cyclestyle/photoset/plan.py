"""Planning of the translation of a photo set: the target files of each photo, and the jobs already done.

No image is decoded or written.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError, DataError
from cyclestyle.filesystem import atomic
from cyclestyle.filesystem.listing import PassedOver, printable
from cyclestyle.images import file_formats
from cyclestyle.images.file_formats import Format
from cyclestyle.photoset.inputs import ENDINGS, LIST, STANDARD_INPUT, InputFile, find, folded, identity_of
from cyclestyle.photoset.journal import FOLDER, NAME, Journal, JournalEntry, ReportRow, stamp, writing
from cyclestyle.photoset.masks import MaskFiles
from cyclestyle.photoset.worker_tasks import PhotoFiles

Existing = Literal["skip", "overwrite", "error"]

_NAMED = "named "  # start of the note about a translation with another name


class Job(NamedTuple):
    """One photo and the target files of its translations, one file for each strength.

    A strength is the weight of the model's output in a translation.
    """

    source: InputFile
    targets: tuple[Path, ...]  # relative to the output folder
    notes: tuple[str, ...] = ()
    mask: InputFile | None = None  # None translates the whole photo

    @property
    def key(self) -> str:
        """Key of the job's journal entry: the names of all targets, since one entry covers all translations."""
        return "\0".join(target.as_posix() for target in self.targets)

    @property
    def files(self) -> PhotoFiles:
        """Paths of the photo and of its mask."""
        return PhotoFiles(self.source.path, self.mask and self.mask.path)

    def fingerprint(self, settings: str) -> str:
        """Return a hash of the fingerprint `settings` of a command and the mask's file size and modification time.

        Without a mask, return `settings` itself.
        """
        if self.mask is None:
            return settings
        return hashlib.sha256(f"{settings} {self.mask.size} {self.mask.modified_ns}".encode()).hexdigest()


class Jobs(NamedTuple):
    """All jobs of a command, including those already done."""

    folder: Path  # output folder
    jobs: list[Job]
    is_single: bool  # one photo with a file name as output: no contact sheet, no report
    skipped_own_outputs: int = 0  # count of inputs skipped as translations of earlier commands
    repeated: tuple[Path, ...] = ()  # inputs skipped as further names of other inputs, made by links
    passed_over: PassedOver = PassedOver()  # other files in the input
    unused_masks: tuple[Path, ...] = ()  # masks in a folder that belong to no photo of the input folder

    @property
    def hidden(self) -> Path:
        """Folder that holds the journal, the report and the thumbnails."""
        return self.folder / FOLDER


class Plan(NamedTuple):
    """The jobs of a command, divided into those to do and those already done."""

    folder: Path  # output folder
    jobs: list[Job]  # all jobs
    todo: list[Job]
    already_done: list[ReportRow]  # results of the other jobs: up to date, kept, or unreadable
    journal: Journal
    is_single: bool = False  # one photo with a file name as output: no contact sheet, no report
    passed_over: PassedOver = PassedOver()  # other files in the input


def make_jobs(
    spec: str,
    output: Path,
    *,
    format: Format = "keep",  # noqa: A002
    folders: Sequence[str] = ("",),
    masks: MaskFiles | None = None,
) -> Jobs:
    """Find the photos that an input names, and choose the target files of each photo.

    Args:
        spec: photo, folder, pattern or list, see `inputs.find`.
        output: a folder; if the input is one photo, also a file name with the ending of an image format.
        format: format of the translations, which decides the endings of their file names.
        folders: one folder for each strength, relative to the output folder; "" is the output folder itself. Each photo
            gets one target file in each of these folders.
        masks: masks of the photos; photos without a mask become failures, and masks inside the input are no photos.

    Raises:
        CommandError: a translation would overwrite an input or a mask; or `output` does not fit the input or the
            format; or `format` is `heic` and no HEIC library is installed.
        DataError: no photos were found, or none of them has a mask.
    """
    if format == "heic" and not file_formats.is_written(".heic"):
        raise CommandError("format=heic needs another library: pip install 'cyclestyle[heic]'")
    if output.suffix.lower() in ENDINGS and not output.is_dir():
        return _with_masks(_single(spec, output, format, folders), masks, spec)
    if output.exists() and not output.is_dir():
        raise CommandError(
            f"output={printable(output)} is a file: give a folder, or for one picture a name like a picture's"
        )
    if Path(spec).is_dir() and output.exists() and output.samefile(spec):
        raise CommandError(f"output={printable(output)} is the input folder itself: inputs are never overwritten")
    sources, skipped, repeated, passed_over = find(spec, output=output, known_outputs=_translations)
    sources = [source for source in sources if masks is None or not masks.holds(source.path, spec)]
    if not sources:
        raise DataError(f"all pictures of {printable(Path(spec))} are masks, since mask= contains them")
    targets = target_names([source.name for source in sources], format)
    all_jobs = [
        Job(source, tuple(Path(folder) / name for folder in folders), notes)
        for source, (name, notes) in zip(sources, targets, strict=True)
    ]
    _protect_inputs(all_jobs, output)
    jobs = Jobs(
        output, all_jobs, is_single=False, skipped_own_outputs=skipped, repeated=repeated, passed_over=passed_over
    )
    return _with_masks(jobs, masks, spec)


def make_plan(requested: Jobs, *, existing: Existing, settings: str, world: World) -> Plan:
    """Divide jobs into pending jobs and jobs that need no work, according to the journal.

    A job needs no work if its photo cannot be read, or if the job is up to date: its target files are unchanged and
    were made from the current photo with the current `settings`. All other jobs are pending, except as described for
    `existing`.

    An existing target file is protected if this program did not write it, if it was changed since, or if it was made
    from another photo that still exists and still has this target.

    The journal stays locked until it is released or the process ends. It is not locked if the output is a single file.

    Args:
        requested: all jobs of the command.
        existing: treatment of existing target files. With `skip`, a job with a protected target file is not pending,
            and pending jobs will replace the other existing target files. With `overwrite`, every job whose photo can
            be read is pending, and will also replace protected files. With `error`, no file will be replaced.
        settings: fingerprint of all settings that affect a translation's pixels.
        world: the ranks, which divide the jobs among themselves.

    Raises:
        CommandError: `existing` is `error`, and a target file of a pending job exists; or another command uses this
            output; or the ranks have found different jobs.
        DiskError: the output cannot be written.
    """
    journal = Journal(requested.folder)
    with world.main_first():
        # A single file needs no lock: other files of its folder may be written at the same time. Only a command that
        # holds the lock rewrites the journal and removes temporary files.
        if world.is_main and journal.acquire(is_needed=not requested.is_single):
            journal.read()
            journal.tidy()
            clean_output_folder(requested.folder, requested.jobs)
        if requested.is_single:
            journal.release()
    journal.read()
    ownership = _OutputOwnership(requested, journal)
    todo: list[Job] = []
    done: list[ReportRow] = []
    existing_targets: list[Path] = []
    for job in requested.jobs:
        entry = journal.entries.get(job.key)
        objection = next(filter(None, (ownership.objection(job, target) for target in job.targets)), "")
        if job.source.reason:
            done.append(_row(job, "failed", job.source.reason))
        elif existing != "overwrite" and entry is not None and _is_current(job, entry, settings, requested.folder):
            done.append(_row(job, "up to date", notes=entry.notes, size=entry.size))
        elif existing == "skip" and objection:
            done.append(_row(job, "kept", f"{objection}; existing=overwrite replaces it"))
        else:
            existing_targets += [target for target in job.targets if os.path.lexists(requested.folder / target)]
            todo.append(job)
    if existing == "error" and existing_targets:
        more = f" and {len(existing_targets) - 1:,} more are" if len(existing_targets) > 1 else " is"
        raise CommandError(
            f"{printable(requested.folder / existing_targets[0])}{more} there already: existing=skip or overwrite"
        )
    _check_agreement(todo, world)
    return Plan(requested.folder, requested.jobs, todo, done, journal, requested.is_single, requested.passed_over)


def clean_output_folder(folder: Path, jobs: Iterable[Job]) -> None:
    """Remove the temporary files of killed processes from all folders that hold translations.

    Call this function only while no process writes.

    Args:
        folder: output folder.
        jobs: jobs whose target folders are searched.
    """
    hidden = folder / FOLDER
    places = {folder, *((folder / target).parent for job in jobs for target in job.targets)}
    with writing(folder):
        for place in [*places, hidden, *(path for path in hidden.iterdir() if path.is_dir())]:
            atomic.remove_temporary_files(place)


def target_names(names: Sequence[Path], format: Format) -> list[tuple[Path, tuple[str, ...]]]:  # noqa: A002
    """Choose a unique name for each translation: the photo's name with the new ending, or else another name.

    A change of format can make two names equal, and so can a file system that ignores case. If the translations of
    several photos compete for a name, the photo that already has this name takes precedence, or else the first photo.
    Each other translation gets its photo's full name plus the new ending (`a.jpg.png`), or a number before the ending
    (`a-2.png`). No file gets the name of a folder that other translations need.

    Args:
        names: paths of the photos, relative to the input.
        format: format of the translations.

    Returns:
        For each photo, in the order of `names`: the name of its translation, and notes for the user.
    """
    natural = [file_formats.target_name(name, format) for name in names]
    folders = {folded(parent) for name in natural for parent in name.parents}
    reserved = {folded(name) for name in natural}
    taken: set[str] = set()
    chosen: dict[int, Path] = {}
    for index in sorted(range(len(names)), key=lambda index: natural[index] != names[index]):  # unchanged names first
        name = natural[index]
        if folded(name) in taken | folders:
            alternatives = _alternatives(names[index], natural[index])
            name = next(other for other in alternatives if folded(other) not in taken | folders | reserved)
        taken.add(folded(name))
        chosen[index] = name
    return [
        (chosen[index], tuple(_notes(name, chosen[index], natural[index], format))) for index, name in enumerate(names)
    ]


def heic_as_jpeg(jobs: Iterable[Job]) -> int:
    """Return the number of HEIC photos whose translations are written as JPEG by default."""
    return sum(file_formats.HEIC_AS_JPEG in job.notes for job in jobs)


def renamed(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs whose translations got another name, since the photo's name with the new ending was taken."""
    return [job for job in jobs if any(note.startswith(_NAMED) for note in job.notes)]


def _notes(name: Path, chosen: Path, natural: Path, format: Format) -> Iterator[str]:  # noqa: A002
    """Yield notes for the user about one translation: that HEIC becomes JPEG, and that another name was chosen.

    Args:
        name: path of the photo.
        chosen: path of the translation.
        natural: path that the translation would have if it were not taken.
        format: format of the translations.
    """
    if file_formats.becomes_jpeg(name, format):
        yield file_formats.HEIC_AS_JPEG
    if chosen != natural:
        yield f"{_NAMED}{chosen.name}: the name {natural.name} is taken"


def _alternatives(name: Path, natural: Path) -> Iterator[Path]:
    """Yield other names for the translation of `name` (a.jpg) if `natural` (a.png) is taken: a.jpg.png, a-2.png, ..."""
    if natural.suffix != name.suffix:
        yield name.with_name(name.name + natural.suffix)
    for number in itertools.count(2):
        yield natural.with_stem(f"{natural.stem}-{number}")


def _single(spec: str, output: Path, format: Format, folders: Sequence[str]) -> Jobs:  # noqa: A002
    """Return the only job of a command that has one photo as its input and a file name as its `output`."""
    if len(folders) > 1:
        raise CommandError(f"output={printable(output)} is one file: several strengths need a folder")
    if spec != STANDARD_INPUT and not os.path.lexists(spec):
        find(spec)  # raises the error for a missing input, unless `spec` is a pattern
    if not Path(spec).is_file() or Path(spec).suffix.lower() == LIST:
        raise CommandError(
            f"output={printable(output)} is a name for one picture, but input= is not one picture: give a folder"
        )
    if not file_formats.is_written(output.suffix.lower()):
        raise CommandError(f"output={printable(output)}: this format cannot be written, choose .png")
    if format != "keep" and file_formats.target_name(Path(output.name), format) != Path(output.name):
        raise CommandError(f"output={printable(output)} does not end like format={format}: leave format= out")
    (source,) = find(spec).sources
    job = Job(source, (Path(output.name),))
    _protect_inputs([job], output.parent)
    return Jobs(output.parent, [job], is_single=True)


def _with_masks(jobs: Jobs, masks: MaskFiles | None, spec: str) -> Jobs:
    """Give each job its mask; a job without a mask gets a `reason`, by which it becomes a failure.

    Raises:
        CommandError: a translation would overwrite a mask.
        DataError: no photo has a mask.
    """
    if masks is None:
        return jobs
    found = [(job, masks.of(job.source.name)) for job in jobs.jobs]
    if all(mask.reason for _, mask in found):
        job, mask = found[0]
        others = f", and none of the {len(found):,} pictures has one" if len(found) > 1 else ""
        raise DataError(f"mask={printable(masks.path)}: {printable(job.source.path)}: {mask.reason}{others}")
    masked = [
        job._replace(mask=mask, source=job.source._replace(reason=job.source.reason or mask.reason))
        for job, mask in found
    ]
    _protect_inputs(masked, jobs.folder)
    unused = masks.unused(mask for _, mask in found) if Path(spec).is_dir() else []
    return jobs._replace(jobs=masked, unused_masks=tuple(unused))


def _check_agreement(todo: Sequence[Job], world: World) -> None:
    """Raise a CommandError unless all ranks have found the same jobs `todo`."""
    keys = "\n".join(job.key for job in todo).encode(errors="surrogateescape")
    if not world.all_equal(int.from_bytes(hashlib.sha256(keys).digest()[:7])):
        raise CommandError("the processes do not find the same pictures: is the input changing, or not shared?")


def _protect_inputs(jobs: Sequence[Job], output: Path) -> None:
    """Raise a CommandError if the target of a job is the same file as a photo or a mask, even under another path."""
    sources = {identity_of(path) for job in jobs for path in job.files if path is not None} - {None}
    for job in jobs:
        for target in job.targets:
            if identity_of(output / target) in sources:
                raise CommandError(
                    f"{printable(output / target)} is an input, and inputs are never overwritten: choose another "
                    f"output="
                )


def _is_current(job: Job, entry: JournalEntry, settings: str, output: Path) -> bool:
    """Return whether a job's translations exist unchanged and were made from the current photo and settings."""
    names = {target.as_posix() for target in job.targets}
    is_same = entry.stamp == (job.source.size, job.source.modified_ns) and entry.settings == job.fingerprint(settings)
    return (
        entry.is_done and is_same and names == entry.targets.keys() and all(_is_untouched(entry.targets, output, names))
    )


class _OutputOwnership:
    """Decides, according to the journal, whether a job may replace a file in the output folder."""

    def __init__(self, requested: Jobs, journal: Journal) -> None:
        self.folder = requested.folder
        self._targets_of = {_absolute(job): {target.as_posix() for target in job.targets} for job in requested.jobs}
        self._entries_for: dict[str, list[JournalEntry]] = {}  # keys are targets
        for entry in journal.entries.values():
            for name in entry.targets:
                self._entries_for.setdefault(name, []).append(entry)

    def objection(self, job: Job, target: Path) -> str:
        """Return why `job` must not replace the file at `target`; empty if `job` may, or if no file exists."""
        path = self.folder / target
        if not os.path.lexists(path):
            return ""
        name, current = target.as_posix(), stamp(path)
        makers = [entry for entry in self._entries_for.get(name, []) if entry.targets[name] in (None, current)]
        if not makers:
            return f"{printable(path)} was not written by this program, or was changed since"
        others = [entry.source for entry in makers if self._is_needed_by(entry.source, name, job)]
        if len(others) < len(makers):
            return ""
        return f"{printable(path)} was made from {printable(Path(others[0]))}"

    def _is_needed_by(self, source: str, name: str, job: Job) -> bool:
        """Return whether the photo at the path `source` needs the file `name`, so that `job` must not replace the file.

        A photo that no longer exists needs no file, and neither does the photo of `job` itself. Another photo needs the
        file if `name` is among its targets in this command. A photo outside this command needs all its files.
        """
        if source == _absolute(job) or not Path(source).exists():
            return False
        return name in self._targets_of.get(source, {name})


def _absolute(job: Job) -> str:
    """Return the absolute path of a job's photo as the journal stores it, with links unresolved."""
    return os.path.abspath(job.source.path)  # noqa: PTH100 - the journal does not resolve links


def _translations(folder: Path) -> set[str]:
    """Return the translations that the journal of an output folder records, as paths relative to this folder.

    The set is empty if the folder has no journal.
    """
    if not (folder / FOLDER / NAME).is_file():
        return set()
    journal = Journal(folder)
    journal.read()
    return journal.translations()


def _is_untouched(targets: Mapping[str, object], output: Path, names: Iterable[str]) -> Iterable[bool]:
    return (targets[name] == stamp(output / name) for name in names)


def _row(
    job: Job,
    status: Literal["up to date", "kept", "failed"],
    reason: str = "",
    notes: tuple[str, ...] = (),
    size: tuple[int, int] = (0, 0),
) -> ReportRow:
    return ReportRow(job.source.path, tuple(target.as_posix() for target in job.targets), status, reason, notes, size)
