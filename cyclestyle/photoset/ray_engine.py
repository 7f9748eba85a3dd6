"""A set of pictures over the machines of a Ray cluster, all of which see the same files."""

import logging
import os
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
from cyclestyle.photoset.doubts import Doubts
from cyclestyle.photoset.journal import JournalEntry, ReportRow
from cyclestyle.photoset.plan import Job, Plan
from cyclestyle.photoset.runner import JobResult, Settings
from cyclestyle.progress import Counter
from cyclestyle.translation.pipeline import TranslationPipeline

Make = Callable[[], TranslationPipeline]

LOST = "the process that was at it was killed twice: is it too large for the memory?"


def run_plan(plan: Plan, make: Make, settings: Settings, *, workers: int | Literal["auto"] = "auto") -> JobResult:
    """Do what a plan says through Ray Data: actors hold the model, and each picture is one call of `translate_one`.

    The cluster is the one that `RAY_ADDRESS` names, else this machine. The journal is written here, by one process.

    Args:
        make: the model and its settings; it is called in every actor.
        workers: actors; by themselves one for each GPU of the cluster, without GPUs one for each machine.

    Raises:
        CommandError: Ray is not installed.
        DiskError: the output cannot be written; what has been written so far is whole.
        ResourceError: a device was lost.
        BrokenModelError: the model fails on too many pictures in a row, or on all.
    """
    plan = _absolute(plan)
    writing = settings.writing._replace(
        output=plan.folder, sheet=settings.writing.sheet and settings.writing.sheet.absolute()
    )
    settings = settings._replace(writing=writing)
    lines: list[ReportRow] = []
    done: set[str] = set()
    doubts = Doubts()

    def note(job: Job, entry: JournalEntry) -> None:
        if plan.journal is not None:
            plan.journal.add(job.key, entry)
        lines.append(runner.line(job, entry))
        done.add(job.key)

    def settle() -> None:
        for job, reason in doubts.settled():
            note(job, runner.failed_entry(job, plan.journal, reason))

    with Counter(len(plan.todo)) as counter:
        for job, made in _made(plan, make, settings, workers):
            if isinstance(made, BrokenModelError):
                doubts.add(job, made.reason, made)
            else:
                note(job, made)
            if isinstance(made, JournalEntry) and made.is_done:
                settle()
            counter.advance()
        doubts.end()
        settle()
        runner.remove_temporaries(plan)
        elapsed_s = counter.elapsed_s
    for job in plan.todo:
        if job.key not in done:
            note(job, runner.failed_entry(job, plan.journal, LOST))
    return runner.outcome(plan, lines, elapsed_s)


class BrokenModelError(Exception):
    """What a model has raised in another process.

    Args:
        trace: its traceback there.
        reason: for the report.
    """

    def __init__(self, trace: str, reason: str) -> None:
        super().__init__(trace)
        self.reason = reason


class Actor:
    """A model that lives in a process of the cluster."""

    def __init__(self, make: Make, settings: Settings, todo: Sequence[Job]) -> None:
        self.treatment, self.settings, self.todo = make(), settings, todo

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Treat the picture of a number; errors are in the row, not raised: Ray would try again."""
        number = int(row["number"])
        nothing = {"number": number, "entry": None, "disk": "", "device": "", "trace": "", "reason": ""}
        try:
            return nothing | {"entry": runner.translate_one(self.todo[number], self.treatment, self.settings)}
        except DiskError as error:
            return nothing | {"disk": str(error)}
        except Exception as error:
            if runner.is_final(error):
                known = error if isinstance(error, CyclestyleError) else memory.resource_error(error, TRANSLATING)
                return nothing | {"device": str(known)}
            return nothing | {"trace": traceback.format_exc(), "reason": runner.of_the_model(error)}


def _made(
    plan: Plan, make: Make, settings: Settings, workers: int | Literal["auto"]
) -> Iterator[tuple[Job, JournalEntry | BrokenModelError]]:
    """What came of each picture, in the order in which they are done, but for those that killed their actor twice."""
    if not plan.todo:
        return
    ray = library()
    started = not ray.is_initialized()
    if started:
        _start(ray)
    try:
        for job in plan.todo:
            if plan.journal is not None:
                plan.journal.add(job.key, runner.pending_entry(job, settings))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # a block is a picture: whatever happens to one, the others go on
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actors = workers if workers != "auto" else gpus or len(ray.nodes())
        numbers = ray.data.from_items([{"number": number} for number in range(len(plan.todo))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions of Ray have another name for the last argument
            results = numbers.repartition(len(plan.todo)).map(
                Actor,
                fn_constructor_args=(make, settings, plan.todo),
                concurrency=min(max(1, actors), len(plan.todo)),
                num_gpus=1 if gpus else 0,
                max_task_retries=1,  # Ray Data's own number is infinite, which a picture that kills its actor uses up
            )
        for row in results.iter_rows():
            if row["disk"]:
                raise DiskError(row["disk"])
            if row["device"]:
                raise ResourceError(row["device"])
            made = BrokenModelError(row["trace"], row["reason"]) if row["trace"] else row["entry"]
            yield plan.todo[row["number"]], made
    finally:
        if started:
            ray.shutdown()


def _absolute(plan: Plan) -> Plan:
    """The plan such that processes that run in other folders understand it."""
    todo = [job._replace(source=job.source._replace(path=job.source.path.absolute())) for job in plan.todo]
    return plan._replace(folder=plan.folder.absolute(), todo=todo)


def _start(ray: Any) -> None:
    """Join the cluster that `RAY_ADDRESS` names, else start one of this machine.

    By itself Ray would join whatever was started here last, and wait for it for minutes where it was killed since.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        with _quietly():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, include_dashboard=False)
    except ConnectionError:
        raise CommandError(f"engine=ray: no Ray cluster answers at RAY_ADDRESS={address}") from None


def library() -> Any:
    """Ray, which is an extra; raises CommandError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise CommandError("engine=ray needs Ray: pip install 'cyclestyle[ray]'") from None
    return ray


@contextmanager
def _quietly() -> Iterator[None]:
    """Ray's parts in C++ are quiet from here on; what Ray raises is raised all the same.

    They would warn of what Ray Data itself does with the arguments of actors, and, while they are started, tell that
    they were asked to be quiet.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
