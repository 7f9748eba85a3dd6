"""Translation of a photo set on a Ray cluster whose machines share a file system."""

import logging
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from cyclestyle.errors import CommandError, CyclestyleError, DiskError, ResourceError
from cyclestyle.hardware import memory
from cyclestyle.hardware.memory import TRANSLATING
from cyclestyle.photoset import runner
from cyclestyle.photoset.failure_streak import FailureStreak
from cyclestyle.photoset.inputs import InputFile
from cyclestyle.photoset.journal import JournalEntry, ReportRow
from cyclestyle.photoset.plan import Job, Plan
from cyclestyle.photoset.runner import JobResult, Settings
from cyclestyle.progress import Counter
from cyclestyle.translation.pipeline import TranslationPipeline

Make = Callable[[], TranslationPipeline]

RETRIES = 1  # number of times that Ray repeats a call whose actor died
ANSWER_S = 5.0  # seconds within which a cluster must accept a connection

LOST = "the process that translated it was killed twice: is it too large for the memory?"


def run_plan(plan: Plan, make: Make, settings: Settings, *, workers: int | Literal["auto"] = "auto") -> JobResult:
    """Run a plan with Ray Data: each actor holds the model, and translates a photo with one call of `translate_one`.

    The cluster is the one at the address in the environment variable `RAY_ADDRESS`; without this variable, a cluster is
    started on this machine. Only this process writes the journal.

    Args:
        plan: jobs, output and journal.
        make: called in every actor; returns the model with its settings.
        settings: options for reading and writing.
        workers: number of actors; `auto` means one actor for each GPU of the cluster, or for each machine if the
            cluster has no GPUs.

    Returns:
        The outcome of all photos of the command, including those that were up to date.

    Raises:
        CommandError: Ray is not installed, or no cluster answers at `RAY_ADDRESS`.
        DiskError: the output cannot be written; all files written so far are complete.
        ResourceError: a device was lost.
        BrokenModelError: the model fails on too many photos in a row, or on all photos.
    """
    plan = _absolute(plan)
    writing = settings.writing._replace(
        output=plan.folder, sheet=settings.writing.sheet and settings.writing.sheet.absolute()
    )
    settings = settings._replace(writing=writing)
    rows: list[ReportRow] = []
    done: set[str] = set()
    streak = FailureStreak()

    def note(job: Job, entry: JournalEntry) -> None:
        plan.journal.add(job.key, entry)
        rows.append(runner.report_row(job, entry))
        done.add(job.key)

    def clear_streak() -> None:
        for job, reason in streak.clear():
            note(job, runner.failed_entry(job, plan.journal, reason))

    with Counter(len(plan.todo)) as counter:
        for job, result in _results(plan, make, settings, workers):
            if isinstance(result, BrokenModelError):
                streak.add(job, result.reason, result)
            else:
                note(job, result)
            if isinstance(result, JournalEntry) and result.is_done:
                clear_streak()
            counter.advance()
        streak.finish()
        clear_streak()
        runner.remove_temporaries(plan)
        elapsed_s = counter.elapsed_s
    for job in plan.todo:
        if job.key not in done:
            note(job, runner.failed_entry(job, plan.journal, LOST))
    return runner.job_result(plan, rows, elapsed_s)


class BrokenModelError(Exception):
    """Error that the model raised on a photo in an actor, which is another process.

    It stops the command only if the model fails on too many photos in a row, or on all photos.

    Args:
        trace: text of the traceback in the actor.
        reason: failure reason for the report.
    """

    def __init__(self, trace: str, reason: str) -> None:
        super().__init__(trace)
        self.reason = reason


class Actor:
    """Ray actor: one process of the cluster, which holds the model and translates photos."""

    def __init__(self, make: Make, settings: Settings, todo: Sequence[Job]) -> None:
        self.pipeline, self.settings, self.todo = make(), settings, todo

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Translate the photo of the job whose index in `self.todo` is `row["number"]`.

        Return a row with this index and either the photo's journal entry or an error message. Errors are not raised,
        since Ray would repeat the call after a raised error.
        """
        number = int(row["number"])
        empty = {"number": number, "entry": None, "disk": "", "device": "", "trace": "", "reason": ""}
        try:
            return empty | {"entry": runner.translate_one(self.todo[number], self.pipeline, self.settings)}
        except DiskError as error:
            return empty | {"disk": str(error)}
        except Exception as error:
            if runner.is_fatal(error):
                user_error = error if isinstance(error, CyclestyleError) else memory.resource_error(error, TRANSLATING)
                return empty | {"device": str(user_error)}
            return empty | {"trace": traceback.format_exc(), "reason": runner.model_failure_reason(error)}


def _results(
    plan: Plan, make: Make, settings: Settings, workers: int | Literal["auto"]
) -> Iterator[tuple[Job, JournalEntry | BrokenModelError]]:
    """Yield each job with its journal entry or the model's error, in the order of completion.

    Jobs of photos that killed their actor twice are left out.
    """
    if not plan.todo:
        return
    ray = library()
    is_started_here = not ray.is_initialized()
    if is_started_here:
        _start(ray)
    try:
        for job in plan.todo:
            plan.journal.add(job.key, runner.pending_entry(job, settings))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # each block is one photo, and a failed photo must not stop the others
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        resources, count = ray.cluster_resources(), len(plan.todo)
        gpus = int(resources.get("GPU", 0))
        actors = min(max(1, workers if workers != "auto" else gpus or len(ray.nodes())), count)
        numbers = ray.data.from_items([{"number": number} for number in range(count)], override_num_blocks=count)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions of Ray have another name for `max_task_retries`
            results = numbers.map(
                Actor,
                fn_constructor_args=(make, settings, plan.todo),
                concurrency=actors,
                num_gpus=1 if gpus else 0,
                num_cpus=cores_of_each(actors, resources.get("CPU", 1)),
                max_task_retries=RETRIES,  # without a limit, a photo that kills its actor would be repeated for ever
            )
        for row in results.iter_rows():
            if row["disk"]:
                raise DiskError(row["disk"])
            if row["device"]:
                raise ResourceError(row["device"])
            result = BrokenModelError(row["trace"], row["reason"]) if row["trace"] else row["entry"]
            yield plan.todo[row["number"]], result
    finally:
        if is_started_here:
            ray.shutdown()


def cores_of_each(actors: int, cores: float) -> float:
    """Return the number of cores that Ray reserves for each actor: 1, or `cores` / (`actors` + 1) if this is less.

    The cores that remain are for Ray's own tasks, which would wait for ever if the actors reserved all cores.
    """
    return min(1.0, int(100 * cores / (actors + 1)) / 100)


def _absolute(plan: Plan) -> Plan:
    """Return the plan with absolute paths, since actors run in other working directories."""
    todo = [
        job._replace(source=_with_absolute_path(job.source), mask=job.mask and _with_absolute_path(job.mask))
        for job in plan.todo
    ]
    return plan._replace(folder=plan.folder.absolute(), todo=todo)


def _with_absolute_path(file: InputFile) -> InputFile:
    return file._replace(path=file.path.absolute())


def _start(ray: Any) -> None:
    """Join the cluster at `RAY_ADDRESS`; without this environment variable, start a cluster on this machine.

    By default, Ray would join the cluster that was last started on this machine, and wait for minutes if that cluster
    was killed.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    check_address(address)
    try:
        with _silenced_stderr():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, include_dashboard=False)
    except (ConnectionError, ValueError):
        raise CommandError(f"engine=ray: no Ray cluster answers at RAY_ADDRESS={address}") from None


def check_address(address: str) -> None:
    """Raise a CommandError unless a server accepts connections at an address `HOST:PORT` or `ray://HOST:PORT`.

    Ray itself would try to connect for minutes. Other addresses, such as `local` and `auto`, are not checked.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, ValueError, OverflowError):
        raise CommandError(f"engine=ray: no Ray cluster answers at RAY_ADDRESS={address}") from None


def library() -> Any:
    """Import Ray, an optional dependency; raise a CommandError if it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise CommandError("engine=ray needs Ray: pip install 'cyclestyle[ray]'") from None
    return ray


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Context manager for the start of Ray: discard stderr in the `with` block; Ray's exceptions are still raised.

    Also set `RAY_BACKEND_LOG_LEVEL` to `fatal`, unless the user has set this environment variable. At lower levels,
    Ray's C++ processes would later warn about how Ray Data itself passes arguments to actors. Each of these processes
    reports its changed log level on stderr, and this report is discarded too.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
