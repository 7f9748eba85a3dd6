"""Translation of a photo set: workers read photos, the model translates them in batches, workers write the results.

Each finished photo is recorded in the journal immediately, so after any stop, the same command translates the remaining
photos. All photos of a batch have the same size.
"""

import contextlib
import dataclasses
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
from cyclestyle.images import tensors
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.photo import Photo, fault
from cyclestyle.photoset import batching, worker_tasks
from cyclestyle.photoset.failure_streak import FailureStreak
from cyclestyle.photoset.journal import Journal, JournalEntry, ReportRow, Status, disk_error, started_entry, writing
from cyclestyle.photoset.plan import Job, Plan, clean_output_folder
from cyclestyle.photoset.worker_pool import Task, Workers
from cyclestyle.photoset.worker_tasks import Reading, Writing, Written
from cyclestyle.progress import Counter, Progress
from cyclestyle.translation import masking

SHOWN = 5  # maximum number of failures in the summary; the report lists all failures


class Pipeline(Protocol):
    """Interface of a model with its settings, see `TranslationPipeline`.

    A call translates a batch of images, a uint8 or uint16 tensor (N, 3, H, W). It returns a list with one tensor
    (N, C, H, W) of the same dtype for each strength, that is, each weight of the model's output in a translation.
    C is 1 if the model's output is grey, else 3. `max_batch` returns the maximum N for images of a height and width.
    """

    def __call__(self, pixels: Tensor, *, advance: Callable[[float], object] | None = None) -> list[Tensor]: ...
    def max_batch(self, height: int, width: int) -> int: ...


class LoadedPhoto(NamedTuple):
    """A photo that has been read, and its job."""

    job: Job
    photo: Photo
    pixels: Tensor  # (3, H, W); shares the memory of `photo.pixels` where possible


class Settings(NamedTuple):
    """Options for reading and writing photos, and a fingerprint of all settings that affect a translation's pixels."""

    reading: Reading
    writing: Writing
    fingerprint: str  # fingerprint of all settings that affect a translation's pixels


class JobResult(NamedTuple):
    """Report rows of all photos of a command, and the elapsed time."""

    lines: list[ReportRow]  # one row for each photo, in order
    elapsed_s: float
    remaining: int = 0  # number of photos that a stopped command did not reach

    def count(self, *statuses: str) -> int:
        return sum(row.status in statuses for row in self.lines)

    @property
    def failures(self) -> list[ReportRow]:
        return [row for row in self.lines if row.status == "failed"]


def check(*, batch_size: int, workers: int | Literal["auto"]) -> None:
    """Raise a CommandError for a batch size below 1 or a negative number of workers."""
    batching.check_batch_size(batch_size)
    if workers != "auto" and workers < 0:
        raise CommandError(f"workers={workers}: give a number of processes, or 0 for threads of this one")


def run_plan(
    plan: Plan,
    pipeline: Pipeline,
    settings: Settings,
    *,
    world: World | None = None,
    workers: int | Literal["auto"] = "auto",
    batch_size: int = 8,
) -> JobResult:
    """Run the jobs of a plan, one job for each photo; several ranks divide the jobs among themselves.

    Args:
        plan: jobs, output and journal.
        pipeline: translates a batch of images.
        settings: options for reading and writing.
        world: the ranks that divide the jobs; by default, only this process.
        workers: number of processes per rank that read and write files; 0 means threads instead of processes; for
            `auto`, see `Workers.suited`.
        batch_size: maximum number of images of one size that are translated together.

    Returns:
        On every rank: the outcome of all photos of the command, including those that were up to date.

    Raises:
        DiskError: the output cannot be written; all files written so far are complete.
    """
    world = world or World()
    if settings.writing.sheet is not None:
        with writing(settings.writing.sheet):  # an error here affects all thumbnails, so it ends the command
            settings.writing.sheet.mkdir(parents=True, exist_ok=True)
    share = plan.todo[world.rank :: world.size]
    with Workers.suited(workers, len(share)) as pool, _SharedProgress(len(plan.todo), world) as progress:
        rows = translate(
            share, pipeline, settings, workers=pool, journal=plan.journal, batch_size=batch_size, progress=progress
        )
        if world.size > 1:
            world.any(False, no_timeout=True)
            plan.journal.read()
            entries = plan.journal.entries
            rows = [
                report_row(job, entries.get(job.key) or failed_entry(job, None, "it was not processed"))
                for job in plan.todo
            ]
        if world.is_main:
            remove_temporaries(plan)
        elapsed_s = progress.elapsed_s
    return job_result(plan, rows, elapsed_s)


@contextlib.contextmanager
def unfinished(plan: Plan, settings: Settings, *, report: Callable[[JobResult], object] | None) -> Iterator[None]:
    """Context manager: if the `with` block is stopped, by a signal or an error, report the photos done so far.

    Args:
        plan: plan of the command.
        settings: settings with which the photos are translated.
        report: called with the outcomes so far if at least one photo is translated or up to date; None reports nothing.
    """
    started_at = time.perf_counter()
    try:
        yield
    except BaseException:
        if report is not None:
            with contextlib.suppress(CyclestyleError, OSError):  # the first error matters; the disk may be full
                outcome = _outcome_so_far(plan, settings, time.perf_counter() - started_at)
                if outcome.count("translated", "up to date"):
                    report(outcome)
        raise


def _outcome_so_far(plan: Plan, settings: Settings, elapsed_s: float) -> JobResult:
    """Return the outcomes that the journal of a stopped command has recorded.

    Photos that the command did not reach have no row in the result: its field `remaining` is their number.
    """
    plan.journal.read()
    entries = [(job, plan.journal.entries.get(job.key)) for job in plan.todo]
    rows = [
        report_row(job, entry)
        for job, entry in entries
        if entry is not None
        and (entry.reason or (entry.is_done and entry.settings == job.fingerprint(settings.fingerprint)))
    ]
    return job_result(plan, rows, elapsed_s)._replace(remaining=len(plan.todo) - len(rows))


def complete_sheet(plan: Plan, outcome: JobResult, settings: Settings, workers: int | Literal["auto"]) -> None:
    """Write the missing thumbnails of photos that an earlier command translated without a contact sheet.

    A thumbnail that cannot be written is left out.
    """
    sheet = settings.writing.sheet
    if sheet is None:
        return
    current = {row.targets for row in outcome.lines if row.status == "up to date"}
    jobs = [job for job in plan.jobs if tuple(target.as_posix() for target in job.targets) in current]
    jobs = [
        job for job in jobs if not all((sheet / name).exists() for name in sheet_names(job.source.path, job.targets))
    ]
    with Workers.suited(workers, len(jobs)) as pool:
        for _, task in pool.ahead(functools.partial(_rewrite_thumbnails, how=settings.writing), jobs):
            try:
                pool.finish(task)
            except Exception as error:
                _reason(error)  # raises fatal errors; without a thumbnail, the page shows the photo itself


def _rewrite_thumbnails(job: Job, how: Writing) -> None:
    worker_tasks.rewrite_thumbnails(job.source.path, job.targets, thumbnail_names(job.targets), how)


def remove_temporaries(plan: Plan) -> None:
    """Remove the temporary files of killed workers; call this function only when no worker is writing."""
    if not plan.is_single:
        clean_output_folder(plan.folder, plan.todo)


def job_result(plan: Plan, rows: Sequence[ReportRow], elapsed_s: float) -> JobResult:
    """Return the outcome of a command, with the rows of all its photos, sorted by the path of the photo.

    Args:
        plan: plan of the command; supplies the rows of the photos that needed no work.
        rows: rows of the photos that this command translated, or failed to translate.
        elapsed_s: duration of the command in seconds.
    """
    all_rows = sorted([*plan.already_done, *rows], key=lambda row: row.source.parts)
    return JobResult(all_rows, elapsed_s)


def translate(
    todo: Sequence[Job],
    pipeline: Pipeline,
    settings: Settings,
    *,
    workers: Workers,
    journal: Journal | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[ReportRow]:
    """Run jobs; a photo that fails does not stop the other photos.

    Args:
        todo: jobs to run.
        pipeline: translates a batch of images.
        settings: options for reading and writing.
        workers: pool that reads and writes files.
        journal: records the finished jobs; None records nothing.
        batch_size: maximum number of images of one size that are translated together.
        progress: counts the finished jobs.

    Returns:
        The outcome of each job, in the order of completion.

    Raises:
        DiskError: the output cannot be written; all files written so far are complete.
    """
    work = _Work(pipeline, settings, workers, journal, progress)
    batching.check_batch_size(batch_size)
    batches = batching.batches(work.loaded(todo), batch_size, max_batch=pipeline.max_batch, first_batch_size=1)
    try:
        for batch in batches:
            work.translate_batch(batch)
        work.finish()
    except BaseException:  # a full disk, or a stop signal
        work.abort()
        raise
    return work.rows


def translate_one(job: Job, pipeline: Pipeline, settings: Settings) -> JournalEntry:
    """Read, translate and write one photo; return its journal entry, which states the reason if a step failed.

    Raises:
        DiskError: the output cannot be written.
        Exception: the model failed, and the cause is neither this photo nor a lack of memory.
    """
    pending = pending_entry(job, settings)
    try:
        photo = _checked(job, worker_tasks.read_files(job.files, settings.reading))
        pixels = tensors.array_to_tensor(photo.pixels)[None]
    except Exception as error:
        return pending._replace(reason=_reason(error))
    try:
        results = pipeline(pixels)
    except Exception as error:
        if not _concerns_one_photo(error):
            raise
        return pending._replace(reason=_reason(error))
    try:
        arrays = [masking.masked(photo, tensors.tensor_to_array(result[0])) for result in results]
        thumbs = thumbnail_names(job.targets)
        photo = dataclasses.replace(photo, mask=None)  # its memory is not needed any more
        written = worker_tasks.write(photo, arrays, job.targets, thumbs, settings.writing, job.source.path)
    except Exception as error:
        return pending._replace(reason=_reason(error))
    return _done_entry(pending, job, photo, written)


def pending_entry(job: Job, settings: Settings) -> JournalEntry:
    """Return the journal entry that is recorded before the translations of a photo are written."""
    settings_of_job = job.fingerprint(settings.fingerprint)
    return started_entry(job.source, settings_of_job, (target.as_posix() for target in job.targets))


def failed_entry(job: Job, journal: Journal | None, reason: str) -> JournalEntry:
    """Return the journal entry of a failed photo.

    The entry lists the translation files that the photo's previous entry lists, except files that no longer exist: if
    a file of the same name appears later, it belongs to the user.
    """
    previous = journal.entries.get(job.key) if journal is not None else None
    entry = started_entry(job.source, "", ())._replace(reason=reason)
    if journal is None or previous is None:
        return entry
    existing = {name: stamp for name, stamp in previous.targets.items() if os.path.lexists(journal.output / name)}
    return entry._replace(targets=existing)


def thumbnail_names(targets: Sequence[str | Path]) -> list[str]:
    """Return names for the thumbnails of a photo and of its translations, in this order.

    Args:
        targets: file names of the translations; each thumbnail name begins with a hash of the first of them.
    """
    stem = hashlib.sha256(os.fsencode(targets[0])).hexdigest()[:16]
    return [f"{stem}-{number}.webp" for number in range(1 + len(targets))]


def sheet_names(source: Path, targets: Sequence[str | Path]) -> list[str]:
    """Return the names of all images that the contact sheet needs for a photo: thumbnails and web-sized copies."""
    thumbs = thumbnail_names(targets)
    return [*thumbs, *filter(None, web_copy_names(thumbs, source, targets))]


def web_copy_names(thumbs: Sequence[str], source: Path, targets: Sequence[str | Path]) -> list[str]:
    """Return the names of the web-sized copies of a photo and its translations, in the order of their thumbnails.

    A name is empty if browsers can show the file itself, so it needs no copy.

    Args:
        thumbs: names of the thumbnails, see `thumbnail_names`.
        source: path of the photo.
        targets: names of the translations.
    """
    files = [source, *map(Path, targets)]
    return [worker_tasks.web_copy_name(thumb, file) for thumb, file in zip(thumbs, files, strict=True)]


def report_row(job: Job, entry: JournalEntry) -> ReportRow:
    """Make a photo's report row from its journal entry, after the photo was translated or has failed."""
    status: Status = "translated" if entry.is_done else "failed"
    reason = entry.reason if entry.reason or entry.is_done else "it was not processed"
    targets = tuple(target.as_posix() for target in job.targets)
    return ReportRow(job.source.path, targets, status, reason, entry.notes, entry.size, entry.elapsed_s)


def summary(outcome: JobResult, plan: Plan, *, where: Path) -> str:
    """Return the text that summarizes a command: one line with counts, then one line for each of the first failures.

    The last line counts the files of the input that are no photos, if there are any.

    Args:
        outcome: outcome of all photos.
        plan: plan of the command.
        where: path of the contact sheet or the output folder, printed at the end of the first line.
    """
    done, current, kept = (outcome.count(status) for status in ("translated", "up to date", "kept"))
    detail = f" ({f'{done:,} translated, ' if done else ''}{current:,} up to date)" if current else ""
    aside = f", {kept:,} kept as {'it was' if kept == 1 else 'they were'}" if kept else ""
    pace = f" ({done / outcome.elapsed_s:.1f} photos/s)" if done > 1 else ""
    first = (
        f"{done + current:,} ok{detail}{aside}, {len(outcome.failures):,} failed "
        f"in {outcome.elapsed_s:.{0 if outcome.elapsed_s >= 10 else 1}f} s{pace}: {printable(where)}"
    )
    lines = [f"{printable(row.source)}: {row.reason}" for row in outcome.failures[:SHOWN]]
    if len(outcome.failures) > SHOWN:
        report = plan.journal.folder / "report.jsonl"
        lines.append(f"and {len(outcome.failures) - SHOWN:,} more, all listed in {printable(report)}")
    kept_rows = [row for row in outcome.lines if row.status == "kept"]
    if kept_rows:
        more = f", and {len(kept_rows) - 1:,} more" if len(kept_rows) > 1 else ""
        lines.append(f"kept: {kept_rows[0].reason}{more}")
    if passed_over := plan.passed_over.summary():
        lines.append(passed_over)
    return "\n  ".join([first, *lines])


class _SharedProgress:
    """Context manager that counts the finished photos of all ranks; rank 0 shows the count."""

    def __init__(self, total: int, world: World) -> None:
        self.world = world
        self.counter = Counter(total) if world.is_main else None
        self._started_at = time.perf_counter()

    def __enter__(self) -> "_SharedProgress":
        if self.counter is not None:
            self.counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.counter is not None:
            self.counter.__exit__(*error)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started_at

    def advance(self) -> None:
        done = self.world.total("translated", 1)
        if self.counter is not None:
            self.counter.set_done(done)

    def partial(self, share: float) -> None:
        if self.counter is not None:
            self.counter.partial(share)


class _Work:
    """Jobs in progress: photos that are being read, translated or written."""

    def __init__(
        self,
        pipeline: Pipeline,
        settings: Settings,
        workers: Workers,
        journal: Journal | None,
        progress: Progress | None,
    ) -> None:
        self.pipeline, self.settings, self.workers = pipeline, settings, workers
        self.journal, self.progress = journal, progress
        self.rows: list[ReportRow] = []
        self.streak = FailureStreak()
        self._writing: deque[tuple[Job, Photo, JournalEntry, Task[Written]]] = deque()
        self._area = batching.MAX_WAITING_PIXELS  # pixels of the last photo read, as an estimate for the next ones

    def loaded(self, todo: Iterable[Job]) -> Iterator[LoadedPhoto]:
        """Yield the photos of the jobs `todo` while workers read the next ones; record unreadable photos as failed."""
        jobs = {job.files: job for job in todo}
        for files, reading in self.workers.ahead(
            functools.partial(worker_tasks.read_files, how=self.settings.reading), jobs, max_ahead=self._max_waiting
        ):
            job = jobs[files]
            try:
                photo = _checked(job, self.workers.finish(reading))
                pixels = tensors.array_to_tensor(photo.pixels)
            except Exception as error:
                self._note(job, failed_entry(job, self.journal, _reason(error)))
                continue
            self._area = photo.pixels.shape[0] * photo.pixels.shape[1]
            yield LoadedPhoto(job, photo, pixels)

    def translate_batch(self, batch: Sequence[LoadedPhoto]) -> None:
        """Translate a batch and start to write the translations.

        If the model fails on the batch, its photos are translated one by one.

        Raises:
            Exception: the model's error, if it would affect all photos. If the model has failed on too many photos in a
                row, the error that it raised on the first of these photos.
        """
        advance = None if self.progress is None else self.progress.partial
        started_at = time.perf_counter()
        try:
            results = self.pipeline(torch.stack([loaded.pixels for loaded in batch]), advance=advance)
        except Exception as error:
            if is_fatal(error):
                raise
            if len(batch) > 1:
                for loaded in batch:
                    self.translate_batch([loaded])
            elif _concerns_one_photo(error):
                self._note(batch[0].job, failed_entry(batch[0].job, self.journal, _reason(error)))
            else:
                self.streak.add(batch[0].job, model_failure_reason(error), error)
            return
        self._clear_streak()
        elapsed_s = (time.perf_counter() - started_at) / len(batch)
        for number, (job, photo, _) in enumerate(batch):
            entry = pending_entry(job, self.settings)._replace(elapsed_s=elapsed_s)
            if self.journal is not None:
                self.journal.add(job.key, entry)
            arrays = [masking.masked(photo, tensors.tensor_to_array(result[number])) for result in results]
            photo = dataclasses.replace(photo, mask=None)  # its memory is not needed any more
            task = self.workers.start(
                worker_tasks.write,
                photo,
                arrays,
                job.targets,
                thumbnail_names(job.targets),
                self.settings.writing,
                job.source.path,
            )
            self._writing.append((job, photo, entry, task))
        self.note_written()

    def note_written(self, *, wait_for_all: bool = False) -> None:
        """Record the photos whose files have been written.

        Wait if the files of too many photos are being written; with `wait_for_all`, wait until all files are written.
        """
        while self._writing and (
            wait_for_all or len(self._writing) > self._max_waiting() or self._writing[0][3].future.done()
        ):
            job, photo, entry, task = self._writing[0]
            try:
                entry = _done_entry(entry, job, photo, self.workers.finish(task))
            except Exception as error:
                entry = failed_entry(job, self.journal, _reason(error))
            self._note(job, entry)
            self._writing.popleft()

    def finish(self) -> None:
        """Wait until all files are written, and record them.

        Raises:
            Exception: the model's error, if the model has failed and has translated no photo.
        """
        self.note_written(wait_for_all=True)
        self.streak.finish()
        self._clear_streak()

    def abort(self) -> None:
        """Cancel the writing tasks that have not started, and wait for the others.

        The photos written by then are recorded, so that the next command skips them.
        """
        for job, photo, entry, task in self._writing:
            if task.future.cancel() or task.future.exception() is not None:
                continue
            with contextlib.suppress(DiskError):
                self._note(job, _done_entry(entry, job, photo, task.future.result()))

    def _clear_streak(self) -> None:
        """Record as failed all photos of the present streak, on which the model failed in a row, and end the streak.

        This is called when the model has translated another photo, so it is not the model that is broken.
        """
        for job, reason in self.streak.clear():
            self._note(job, failed_entry(job, self.journal, reason))

    def _max_waiting(self) -> int:
        """Return the maximum number of photos that may wait for the model; equally many may wait to be written.

        The maximum is lower for large photos.
        """
        return max(1, min(self.workers.max_ahead, batching.MAX_WAITING_PIXELS // self._area))

    def _note(self, job: Job, entry: JournalEntry) -> None:
        if self.journal is not None:
            self.journal.add(job.key, entry)
        self.rows.append(report_row(job, entry))
        if self.progress is not None:
            self.progress.advance()


def _done_entry(pending: JournalEntry, job: Job, photo: Photo, written: Written) -> JournalEntry:
    """Complete the pending journal entry of a photo whose translations were written."""
    height, width = photo.pixels.shape[:2]
    notes = tuple(dict.fromkeys([*job.notes, *written.notes]))
    return pending._replace(targets={**written.stamps}, size=(width, height), notes=notes)


def is_fatal(error: Exception) -> bool:
    """Return whether an error would affect all photos, such as a full disk or a lost device."""
    if isinstance(error, CyclestyleError):
        return not isinstance(error, DataError)
    return not memory.is_out_of_memory(error) and memory.resource_error(error) is not None


def model_failure_reason(error: Exception) -> str:
    """Return the failure reason to report for a photo on which the model fails, although it works on other photos."""
    return one_line(f"the model fails on it ({type(error).__name__}: {error})")


def _concerns_one_photo(error: Exception) -> bool:
    """Return whether an error of the model is due to the photo, or to a lack of memory for this photo."""
    return isinstance(error, DataError) or memory.is_out_of_memory(error)


def _checked(job: Job, photo: Photo) -> Photo:
    """Return `photo`; raise an ImageError if one of its arrays has an invalid dtype or shape."""
    if problem := fault(photo):
        raise ImageError(job.source.path, f"it was read as {problem}", permanent=False)
    return photo


def _reason(error: Exception) -> str:
    """Return the failure reason to report for a photo on which `error` was raised.

    Raises:
        DiskError: the disk is full.
        Exception: `error` itself, if it would affect all photos.
    """
    if isinstance(error, ImageError):
        return error.reason
    if is_fatal(error):
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
