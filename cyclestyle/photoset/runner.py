"""A set of pictures as one job: read by workers, translated in batches of one size, written by workers, noted down.

What is done is in the journal as soon as it is, so that whatever ends the program, the same command does the rest.
"""

import contextlib
import functools
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError, CyclestyleError, DataError, DiskError
from cyclestyle.filesystem.atomic import is_disk_error
from cyclestyle.filesystem.listing import one_line, printable
from cyclestyle.hardware import memory
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.photo import Photo, PixelArray, fault
from cyclestyle.photoset import batching, worker_tasks
from cyclestyle.photoset.doubts import Doubts
from cyclestyle.photoset.journal import Journal, JournalEntry, ReportRow, Status, disk_error, started_entry, writing
from cyclestyle.photoset.plan import Job, Plan, remove_temporary_files
from cyclestyle.photoset.worker_pool import Task, Workers
from cyclestyle.photoset.worker_tasks import Reading, Writing, Written
from cyclestyle.progress import Counter, Progress

SHOWN = 5  # failures on the screen; the report has them all


class Pipeline(Protocol):
    """What is done to pictures of one size: uint8 or uint16 (N, 3, H, W), each result likewise."""

    def __call__(self, pixels: Tensor, *, advance: Callable[[float], object] | None = None) -> list[Tensor]: ...
    def max_batch(self, height: int, width: int) -> int: ...


class LoadedPhoto(NamedTuple):
    """A picture that has been read."""

    job: Job
    photo: Photo
    pixels: Tensor  # (3, H, W), the photo's own


class Settings(NamedTuple):
    """How pictures are read and written."""

    reading: Reading
    writing: Writing
    fingerprint: str  # of all that decides what a translation looks like


class JobResult(NamedTuple):
    """How a command has fared."""

    lines: list[ReportRow]  # of every picture, in order
    elapsed_s: float

    def count(self, *statuses: str) -> int:
        return sum(line.status in statuses for line in self.lines)

    @property
    def failures(self) -> list[ReportRow]:
        return [line for line in self.lines if line.status == "failed"]


def check(*, batch_size: int, workers: int | Literal["auto"]) -> None:
    """Raise a CommandError for numbers that are none."""
    batching.check_batch_size(batch_size)
    if workers != "auto" and workers < 0:
        raise CommandError(f"workers={workers}: give a number of processes, or 0 for threads of this one")


def run_plan(
    plan: Plan,
    treatment: Pipeline,
    settings: Settings,
    *,
    world: World | None = None,
    workers: int | Literal["auto"] = "auto",
    batch_size: int = 8,
) -> JobResult:
    """Do what a plan says, together with the other processes where there are any.

    Args:
        workers: processes that read and write.
        batch_size: pictures of one size that go through the model together, at most.

    Raises:
        DiskError: the output cannot be written; what has been written so far is whole.
    """
    world = world or World()
    if settings.writing.sheet is not None:
        with writing(settings.writing.sheet):  # what stands in the way of all thumbnails is no photo's failure
            settings.writing.sheet.mkdir(parents=True, exist_ok=True)
    mine = plan.todo[world.rank :: world.size]
    with Workers.suited(workers, len(mine)) as hands, _Shared(len(plan.todo), world) as progress:
        lines = translate(
            mine, treatment, settings, workers=hands, journal=plan.journal, batch_size=batch_size, progress=progress
        )
        if world.size > 1 and plan.journal is not None:
            world.any(False, patient=True)
            plan.journal.read()
            entries = plan.journal.entries
            lines = [line(job, entries.get(job.key) or failed_entry(job, None, "it was not done")) for job in plan.todo]
        if world.is_main:
            remove_temporaries(plan)
        elapsed_s = progress.elapsed_s
    return outcome(plan, lines, elapsed_s)


def complete_sheet(plan: Plan, outcome: JobResult, settings: Settings, workers: int | Literal["auto"]) -> None:
    """Make the thumbnails that pictures lack which were translated when no contact sheet was asked for."""
    sheet = settings.writing.sheet
    if sheet is None:
        return
    current = {line.targets for line in outcome.lines if line.status == "up to date"}
    jobs = [job for job in plan.jobs if tuple(target.as_posix() for target in job.targets) in current]
    jobs = [job for job in jobs if not all((sheet / name).exists() for name in thumbnail_names(job.targets))]
    with Workers.suited(workers, len(jobs)) as hands:
        for _, task in hands.ahead(functools.partial(_rewrite_thumbnails, how=settings.writing), jobs):
            try:
                hands.finish(task)
            except Exception as error:
                _reason(error)  # a picture without a thumbnail is shown as it is


def _rewrite_thumbnails(job: Job, how: Writing) -> None:
    worker_tasks.rewrite_thumbnail(job.source.path, job.targets, thumbnail_names(job.targets), how)


def remove_temporaries(plan: Plan) -> None:
    """Remove what workers that were killed have left half-written; all others have ended their work."""
    if plan.journal is not None:
        remove_temporary_files(plan.folder, plan.todo)


def outcome(plan: Plan, lines: Sequence[ReportRow], elapsed_s: float) -> JobResult:
    """How a command has fared whose work has come to `lines`."""
    everything = sorted([*plan.already_done, *lines], key=lambda line: line.source.parts)
    return JobResult(everything, elapsed_s)


def translate(
    todo: Sequence[Job],
    treatment: Pipeline,
    settings: Settings,
    *,
    workers: Workers,
    journal: Journal | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[ReportRow]:
    """Carry out jobs; pictures that fail do not keep the others from being done.

    Args:
        journal: takes down what is done.
        batch_size: pictures of one size that go through the model together, at most.

    Returns:
        How each of them fared, in the order in which they were done.

    Raises:
        DiskError: the output cannot be written; what has been written so far is whole.
    """
    work = _Work(treatment, settings, workers, journal, progress)
    batching.check_batch_size(batch_size)
    try:
        for batch in batching.batches(work.loaded(todo), batch_size, most=treatment.max_batch, first=1):
            work.translate_batch(batch)
        work.end()
    except BaseException:  # the disk is full, or somebody asks to stop
        work.break_off()
        raise
    return work.lines


def translate_one(job: Job, treatment: Pipeline, settings: Settings) -> JournalEntry:
    """Read, translate and write one picture, and nothing else; what went wrong with it is in the entry.

    Raises:
        DiskError: the output cannot be written.
        Exception: of the model, unless it is about this picture's size or memory that ran out.
    """
    start = pending_entry(job, settings)
    try:
        photo = _checked(job, worker_tasks.read(job.source.path, settings.reading))
        pixels = _tensor(photo.pixels)[None]
    except Exception as error:
        return start._replace(reason=_reason(error))
    try:
        made = treatment(pixels)
    except Exception as error:
        if not _is_of_the_picture(error):
            raise
        return start._replace(reason=_reason(error))
    try:
        arrays = [_array(one[0]) for one in made]
        written = worker_tasks.write(photo, arrays, job.targets, thumbnail_names(job.targets), settings.writing)
    except Exception as error:
        return start._replace(reason=_reason(error))
    return _entry(start, job, photo, written)


def pending_entry(job: Job, settings: Settings) -> JournalEntry:
    """What is noted before the translations of a picture are written."""
    return started_entry(job.source, settings.fingerprint, (target.as_posix() for target in job.targets))


def failed_entry(job: Job, journal: Journal | None, reason: str) -> JournalEntry:
    """What is noted of a picture that has no translation.

    It claims what is there by the journal, and nothing else: whatever appears in its place is somebody's own.
    """
    before = journal.entries.get(job.key) if journal is not None else None
    entry = started_entry(job.source, "", ())._replace(reason=reason)
    if journal is None or before is None:
        return entry
    there = {name: stamp for name, stamp in before.targets.items() if os.path.lexists(journal.output / name)}
    return entry._replace(targets=there)


def thumbnail_names(targets: Sequence[str | Path]) -> list[str]:
    """Names of the thumbnails of a picture and of its translations, which the targets tell."""
    name = hashlib.sha256(os.fsencode(targets[0])).hexdigest()[:16]
    return [f"{name}-{number}.webp" for number in range(1 + len(targets))]


def line(job: Job, entry: JournalEntry) -> ReportRow:
    """What the report says of a picture that was worked on."""
    status: Status = "translated" if entry.is_done else "failed"
    reason = entry.reason if entry.reason or entry.is_done else "it was not done"
    targets = tuple(target.as_posix() for target in job.targets)
    return ReportRow(job.source.path, targets, status, reason, entry.notes, entry.size, entry.elapsed_s)


def summary(outcome: JobResult, plan: Plan, *, where: Path) -> str:
    """What has been done, for people: one line, and below it a few of those that failed."""
    done, current, kept = (outcome.count(status) for status in ("translated", "up to date", "kept"))
    detail = f" ({f'{done:,} translated, ' if done else ''}{current:,} up to date)" if current else ""
    aside = f", {kept:,} kept as {'it was' if kept == 1 else 'they were'}" if kept else ""
    pace = f" ({done / outcome.elapsed_s:.1f} photos/s)" if done > 1 else ""
    first = (
        f"{done + current:,} ok{detail}{aside}, {len(outcome.failures):,} failed "
        f"in {outcome.elapsed_s:.{0 if outcome.elapsed_s >= 10 else 1}f} s{pace}: {printable(where)}"
    )
    lines = [f"{printable(line.source)}: {line.reason}" for line in outcome.failures[:SHOWN]]
    if len(outcome.failures) > SHOWN and plan.journal is not None:
        report = plan.journal.folder / "report.jsonl"
        lines.append(f"and {len(outcome.failures) - SHOWN:,} more, all listed in {printable(report)}")
    kept_lines = [line for line in outcome.lines if line.status == "kept"]
    if kept_lines:
        more = f", and {len(kept_lines) - 1:,} more" if len(kept_lines) > 1 else ""
        lines.append(f"kept: {kept_lines[0].reason}{more}")
    return "\n  ".join([first, *lines])


class _Shared:
    """A counter that all processes advance and one of them shows."""

    def __init__(self, total: int, world: World) -> None:
        self.world = world
        self.counter = Counter(total) if world.is_main else None
        self._began = time.perf_counter()

    def __enter__(self) -> "_Shared":
        if self.counter is not None:
            self.counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.counter is not None:
            self.counter.__exit__(*error)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    def advance(self) -> None:
        done = self.world.total("translated", 1)
        if self.counter is not None:
            self.counter.set_done(done)

    def partial(self, share: float) -> None:
        if self.counter is not None:
            self.counter.partial(share)


class _Work:
    """The work in progress: what is being read, and what is being written."""

    def __init__(
        self,
        treatment: Pipeline,
        settings: Settings,
        workers: Workers,
        journal: Journal | None,
        progress: Progress | None,
    ) -> None:
        self.treatment, self.settings, self.workers = treatment, settings, workers
        self.journal, self.progress = journal, progress
        self.lines: list[ReportRow] = []
        self.doubts = Doubts()
        self._writing: deque[tuple[Job, Photo, JournalEntry, Task[Written]]] = deque()
        self._area = batching.MOST_WAITING  # pixels of the picture that was read last: sets are mostly of one size

    def loaded(self, todo: Iterable[Job]) -> Iterator[LoadedPhoto]:
        """The pictures, read ahead; those that cannot be read are noted."""
        jobs = {job.source.path: job for job in todo}
        for path, reading in self.workers.ahead(
            functools.partial(worker_tasks.read, how=self.settings.reading), jobs, most=self._most
        ):
            job = jobs[path]
            try:
                photo = _checked(job, self.workers.finish(reading))
                pixels = _tensor(photo.pixels)
            except Exception as error:
                self._note(job, failed_entry(job, self.journal, _reason(error)))
                continue
            self._area = photo.pixels.shape[0] * photo.pixels.shape[1]
            yield LoadedPhoto(job, photo, pixels)

    def translate_batch(self, batch: Sequence[LoadedPhoto]) -> None:
        """Translate a batch and have it written; where the model fails on it, its pictures are translated one by one.

        Raises:
            Exception: of the model, once it has failed on too many pictures in a row, or on all.
        """
        within = None if self.progress is None else self.progress.partial
        since = time.perf_counter()
        try:
            made = self.treatment(torch.stack([one.pixels for one in batch]), advance=within)
        except Exception as error:
            if is_final(error):
                raise
            if len(batch) > 1:
                for one in batch:
                    self.translate_batch([one])
            elif _is_of_the_picture(error):
                self._note(batch[0].job, failed_entry(batch[0].job, self.journal, _reason(error)))
            else:
                self.doubts.add(batch[0].job, of_the_model(error), error)
            return
        self._settle()
        elapsed_s = (time.perf_counter() - since) / len(batch)
        for number, (job, photo, _) in enumerate(batch):
            entry = pending_entry(job, self.settings)._replace(elapsed_s=elapsed_s)
            if self.journal is not None:
                self.journal.add(job.key, entry)
            arrays = [_array(results[number]) for results in made]
            task = self.workers.start(
                worker_tasks.write, photo, arrays, job.targets, thumbnail_names(job.targets), self.settings.writing
            )
            self._writing.append((job, photo, entry, task))
        self.write_down()

    def write_down(self, *, everything: bool = False) -> None:
        """Note what has been written; not more than a few pictures wait to be."""
        while self._writing and (everything or len(self._writing) > self._most() or self._writing[0][3].future.done()):
            job, photo, entry, task = self._writing[0]
            try:
                entry = _entry(entry, job, photo, self.workers.finish(task))
            except Exception as error:
                entry = failed_entry(job, self.journal, _reason(error))
            self._note(job, entry)
            self._writing.popleft()

    def end(self) -> None:
        """Have everything written and noted; raises the model's error if it has translated nothing."""
        self.write_down(everything=True)
        self.doubts.end()
        self._settle()

    def break_off(self) -> None:
        """Write nothing more, but note what has been written, so that it need not be made again."""
        for job, photo, entry, task in self._writing:
            if task.future.cancel() or task.future.exception() is not None:
                continue
            with contextlib.suppress(DiskError):
                self._note(job, _entry(entry, job, photo, task.future.result()))

    def _settle(self) -> None:
        """Note the pictures that the model has failed on, since it works on others."""
        for job, reason in self.doubts.settled():
            self._note(job, failed_entry(job, self.journal, reason))

    def _most(self) -> int:
        """How many pictures may wait before the model, and as many behind it: large ones take memory."""
        return max(1, min(self.workers.most_ahead, batching.MOST_WAITING // self._area))

    def _note(self, job: Job, entry: JournalEntry) -> None:
        if self.journal is not None:
            self.journal.add(job.key, entry)
        self.lines.append(line(job, entry))
        if self.progress is not None:
            self.progress.advance()


def _entry(start: JournalEntry, job: Job, photo: Photo, written: Written) -> JournalEntry:
    height, width = photo.pixels.shape[:2]
    notes = tuple(dict.fromkeys([*job.notes, *written.notes]))
    return start._replace(targets={**written.stamps}, size=(width, height), notes=notes)


def is_final(error: Exception) -> bool:
    """Whether an error would meet all pictures alike: a disk that is full, a device that is lost."""
    if isinstance(error, CyclestyleError):
        return not isinstance(error, DataError)
    return not memory.is_out_of_memory(error) and memory.resource_error(error) is not None


def of_the_model(error: Exception) -> str:
    """Why a picture has no translation on which the model fails, but not on others."""
    return one_line(f"the model fails on it ({type(error).__name__}: {error})")


def _is_of_the_picture(error: Exception) -> bool:
    """Whether a model's error is about this picture, or memory for it."""
    return isinstance(error, DataError) or memory.is_out_of_memory(error)


def _checked(job: Job, photo: Photo) -> Photo:
    """The photo, if a batch can be made of it; raises PictureError."""
    if found := fault(photo):
        raise ImageError(job.source.path, f"it was read as {found}", permanent=False)
    return photo


def _reason(error: Exception) -> str:
    """Why a picture has no translation; what would meet the others alike is raised, a full disk as a DiskError."""
    if isinstance(error, ImageError):
        return error.reason
    if is_final(error):
        raise error
    if isinstance(error, DataError):
        return str(error)
    if memory.is_out_of_memory(error):
        return "out of memory: shrink it with resize=, or see memory="
    if not isinstance(error, OSError):
        return one_line(worker_tasks.unexpected(error))
    if error.filename is None:
        raise error
    if is_disk_error(error):
        raise disk_error(Path(error.filename), error) from None
    return f"cannot write {printable(Path(error.filename))}: {(error.strerror or '').lower()}"


def _tensor(pixels: PixelArray) -> Tensor:
    """(H, W, 3) as (3, H, W), without a copy where that can be."""
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)


def _array(pixels: Tensor) -> PixelArray:
    """(3, H, W) as (H, W, 3)."""
    return pixels.permute(1, 2, 0).contiguous().cpu().numpy()
