"""A folder of pictures, or one picture, through a model: the same tree with the same names comes out.

First everything is planned, without writing; then pictures are read, translated and written as a stream.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from cyclestyle import images
from cyclestyle.errors import CommandError, DataError, DiskError
from cyclestyle.files import write_text
from cyclestyle.listing import contents, shown, surroundings
from cyclestyle.translation import stream
from cyclestyle.translation.progress import Counter

Existing = Literal["keep", "overwrite"]

FORMATS = "JPEG, PNG, WebP, BMP or TIFF"  # in words, what images.EXTENSIONS says
SHOWN = 5  # failures on the screen; the file has them all
LOG_NAME = "failed.txt"
_LOG_HEADER = "# These pictures could not be translated by cyclestyle."


class Job(NamedTuple):
    """One picture, and where its translation goes."""

    source: Path
    target: Path


class Plan(NamedTuple):
    """What there is to do."""

    jobs: list[Job]
    kept: int  # pictures whose translations are there already
    output: Path  # as the user gave it
    log: Path | None  # where failures are listed; a single picture needs no list


class Failure(NamedTuple):
    """A picture that has no translation, and why."""

    source: Path
    reason: str

    def __str__(self) -> str:
        return f"{shown(self.source)}: {self.reason}"


class Outcome(NamedTuple):
    """What has been done."""

    translated: int
    kept: int
    failures: list[Failure]
    elapsed_s: float


def plan(input: Path, output: Path, *, existing: Existing = "keep") -> Plan:  # noqa: A002
    """What translating `input` to `output` takes; nothing is written or decoded.

    Args:
        input: a folder, searched with all that lies below it, or one picture.
        output: a folder; for one picture also a file name with a picture's ending.
        existing: what happens to translations that are there: they are kept, or made again.

    Raises:
        CommandError: a translation would take the place of an input.
        DataError: there are no pictures.
    """
    if input.is_dir():
        jobs = _folder_jobs(input, output)
        log: Path | None = output / LOG_NAME
    else:
        jobs, log = [_file_job(input, output)], None
    _protect_inputs(jobs)

    todo = jobs if existing == "overwrite" else [job for job in jobs if not job.target.exists()]
    return Plan(todo, kept=len(jobs) - len(todo), output=output, log=log)


def translate(planned: Plan, model: stream.Model, *, batch_size: int = 8) -> Outcome:
    """Carry out a plan; pictures that fail do not keep the others from being done.

    Args:
        model: translates uint8 (N, 3, H, W) to the same.
        batch_size: pictures of one size that go through it together, at most.

    Raises:
        DiskError: the output cannot be written; what has been written so far is whole.
    """
    stream.check_batch_size(batch_size)
    failures: list[Failure] = []
    done = 0
    with Counter(len(planned.jobs)) as counter:
        for result in _results(planned.jobs, model, batch_size=batch_size):
            if isinstance(result, Failure):
                failures.append(result)
            else:
                done += 1
            counter.advance()
        elapsed_s = counter.elapsed_s
    failures.sort(key=lambda failure: failure.source.parts)
    if planned.log is not None:
        _keep_log(failures, planned.log)
    return Outcome(done, planned.kept, failures, elapsed_s)


def summary(outcome: Outcome, planned: Plan) -> str:
    """What has been done, for people: one line, and below it a few of those that failed."""
    pace = f" ({outcome.translated / outcome.elapsed_s:.1f} photos/s)" if outcome.translated else ""
    first = (
        f"{outcome.translated} translated, {outcome.kept} kept, {len(outcome.failures)} failed "
        f"in {outcome.elapsed_s:.{0 if outcome.elapsed_s >= 10 else 1}f} s{pace}: {shown(planned.output)}"
    )
    lines = [str(failure) for failure in outcome.failures[:SHOWN]]
    if len(outcome.failures) > SHOWN:
        lines.append(f"and {len(outcome.failures) - SHOWN} more, all listed in {shown(planned.log or planned.output)}")
    return "\n  ".join([first, *lines])


def find(folder: Path, *, without: Path | None = None) -> list[Path]:
    """The names of all pictures below a folder; none of those that lie in `without`.

    Raises:
        DataError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {shown(folder.absolute())}: {surroundings(folder)}")
    names = images.find(folder)
    if without is not None:
        hidden = without.resolve()
        names = [name for name in names if not (folder / name).resolve().is_relative_to(hidden)]
    if not names:
        raise DataError(f"no pictures ({FORMATS}) in {shown(folder.absolute())}, which contains {contents(folder)}")
    return names


def _folder_jobs(folder: Path, output: Path) -> list[Job]:
    if output.exists() and not output.is_dir():
        raise CommandError(f"output={shown(output)} is a file, but input={shown(folder)} is a folder: give a folder")
    if output.exists() and output.samefile(folder):
        raise CommandError(f"output={shown(output)} is the input folder itself: inputs are never overwritten")
    is_inside = output.resolve().is_relative_to(folder.resolve())
    return [Job(folder / name, output / name) for name in find(folder, without=output if is_inside else None)]


def _file_job(file: Path, output: Path) -> Job:
    if not file.is_file():
        raise DataError(f"no picture or folder {shown(file.absolute())}: {surroundings(file)}")
    if file.suffix.lower() not in images.EXTENSIONS:
        raise DataError(f"{shown(file.absolute())} does not end like a picture ({FORMATS})")
    is_name = output.suffix.lower() in images.EXTENSIONS and not output.is_dir()
    if not is_name and output.exists() and not output.is_dir():
        raise CommandError(f"output={shown(output)} is a file that does not end like a picture ({FORMATS})")
    return Job(file, output if is_name else output / file.name)


def _protect_inputs(jobs: Sequence[Job]) -> None:
    """Raise a CommandError if any target is, by whatever name, one of the sources."""
    sources = {_identity(job.source) for job in jobs} - {None}
    for job in jobs:
        if _identity(job.target) in sources:
            raise CommandError(
                f"{shown(job.target)} is an input, and inputs are never overwritten: choose another output="
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """The same for all names of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _results(jobs: Sequence[Job], model: stream.Model, *, batch_size: int) -> Iterator[Path | Failure]:
    """The file that came of each job, or why there is none."""
    targets = {job.source: job.target for job in jobs}
    failures: list[Failure] = []

    def failed(source: Path, error: Exception) -> None:
        failures.append(Failure(source, error.reason if isinstance(error, images.PictureError) else str(error)))

    writing: deque[tuple[Path, Future[Path]]] = deque()
    with ThreadPoolExecutor(stream.THREADS) as pool:
        for made in stream.translated(targets, model, batch_size=batch_size, pool=pool, failed=failed):
            writing.append((made.source, pool.submit(_write, made.translation, targets[made.source])))
            while len(writing) > stream.MOST_AHEAD:
                yield _settled(*writing.popleft())
            yield from _drained(failures)
        while writing:
            yield _settled(*writing.popleft())
        yield from _drained(failures)


def _write(pixels: Tensor, target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        images.save(images.from_pixels(pixels), target)
    except OSError as error:
        if error.errno is None:  # Pillow's own: the picture is at fault, not the disk
            raise
        raise _disk_error(target, error) from None
    return target


def _settled(source: Path, writing: "Future[Path]") -> Path | Failure:
    """The written file; a picture that its format cannot hold is a failure, a disk that takes no more ends the job."""
    try:
        return writing.result()
    except (OSError, ValueError) as error:
        return Failure(source, f"its translation cannot be written: {error}")


def _disk_error(path: Path, error: OSError) -> DiskError:
    remedy = "all pictures written so far are whole, and the same command does the rest"
    return DiskError(f"cannot write {shown(path.absolute())}: {error.strerror}; {remedy}")


def _drained(failures: list[Failure]) -> Iterator[Failure]:
    while failures:
        yield failures.pop(0)


def _keep_log(failures: Sequence[Failure], log: Path) -> None:
    """List what failed; where all went well, take an earlier list of ours away."""
    try:
        if failures:
            log.parent.mkdir(parents=True, exist_ok=True)
            write_text(log, "\n".join([_LOG_HEADER, *map(str, failures), ""]))
        elif log.is_file() and log.read_bytes().startswith(_LOG_HEADER.encode()):
            log.unlink()
    except OSError as error:
        raise _disk_error(log, error) from None
