"""Builds what a run does beside its steps: the writer of checkpoints, loggers, and periodic tasks."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cyclestyle.calls import takes_positional
from cyclestyle.checkpoints.best import BestCheckpoint
from cyclestyle.checkpoints.writer import CheckpointWriter, Snapshot
from cyclestyle.cli import compose
from cyclestyle.cli.nodes import split_program_keys
from cyclestyle.errors import CommandError, warn
from cyclestyle.monitor import FaultTolerantLogger, Profile, Waiting
from cyclestyle.monitor.logger import Logger, Phase
from cyclestyle.monitor.metrics_file import logged_speeds
from cyclestyle.run.folder import Done
from cyclestyle.run.scores_file import ScoresFile
from cyclestyle.training.best import BestKeeper
from cyclestyle.training.explosion import ExplosionWatch
from cyclestyle.training.messages import no_output
from cyclestyle.training.periodic import Networks, OwnTask, Task, networks_of, own_task, shared_task, usual_tasks
from cyclestyle.training.state import snapshot_model

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.data import UnpairedFolders
    from cyclestyle.distributed.world import World
    from cyclestyle.evaluation.training_scores import TrainingScores
    from cyclestyle.run.folder import RunFolder
    from cyclestyle.training.trainer import Trainer

PROBES = 4  # number of probe images per domain


@contextlib.contextmanager
def opened_writer(cfg: "DictConfig", folder: "RunFolder", world: "World") -> Iterator[CheckpointWriter]:
    """Context manager: yield the writer of the run's checkpoints; at the end, wait for its writes in progress."""
    writer = CheckpointWriter(
        folder.checkpoints,
        world=world,
        saved=lambda path: folder.write_status("running") if world.is_main else None,
        **compose.arguments_for(cfg.checkpoint, CheckpointWriter),
    )
    try:
        yield writer
    finally:
        writer.finish()


def work_done(trainer: "Trainer", folder: "RunFolder", /, *, log_every: int) -> Done:
    """Return which tasks an earlier process already did at the step from which this run resumes.

    All ranks get the same result. A run that is stopped also logs at the step where it stops, even between two regular
    logs. Such an extra log does not count as done: the resumed run removes its line, and thus ends with the same log
    lines as an uninterrupted run.

    Args:
        log_every: number of steps between two logs.
    """
    world = trainer.world
    log, tasks = (world.any(world.is_main and done, no_timeout=True) for done in folder.done(trainer.step))
    is_due = tasks or trainer.step % log_every == 0 or trainer.step >= trainer.total
    return Done(log=log and is_due, tasks=tasks)


@contextlib.contextmanager
def opened_loggers(
    cfg: "DictConfig",
    trainer: "Trainer",
    folder: "RunFolder",
    domains: tuple[str, str],
    *,
    recipe: Mapping[str, Any],
    watch: Callable[[], object],
    done: Done,
) -> Iterator[Sequence[Logger]]:
    """Context manager: yield the config's loggers, which are closed at the end; ranks other than 0 get no loggers.

    Args:
        recipe: resolved config.
        watch: function that warns if other processes occupy the cores of this process; called on rank 0 after each
            step if training runs on a CPU.
        done: tasks that an earlier process did at the trainer's step, see `work_done`. Loggers keep existing log
            lines of earlier steps; they keep those of this step only if logging is among the tasks.
    """
    loggers: list[Logger] = []
    if trainer.world.is_main:
        trainer.running_means.earlier_speeds = logged_speeds(folder.path, trainer.step)
        offered = {
            "folder": folder.path,
            "domains": domains,
            "start": trainer.step,
            "log_from": trainer.step + done.log,
            "total": trainer.total,
            "networks": networks_of(trainer),
            "config": recipe,
        }
        loggers = [
            FaultTolerantLogger(functools.partial(compose.build_with, node, offered), name=f"logger.{name}")
            for name, node in cfg.logger.items()
            if node is not None
        ]
        loggers += profilers(trainer, folder, **compose.arguments_for(cfg.trainer, profilers))
        if trainer.hardware.device.type == "cpu":
            loggers.append(Waiting(watch))
    try:
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


def profilers(trainer: "Trainer", folder: "RunFolder", /, *, profile: bool) -> list[Logger]:
    """Return a list that contains the profiler if `profile` is true, else an empty list."""
    build = functools.partial(Profile, folder.path, phases=list(Phase), device=trainer.hardware.device.type)
    return [FaultTolerantLogger(build, name="trainer.profile")] if profile else []


def build_tasks(
    cfg: "DictConfig",
    trainer: "Trainer",
    data: "UnpairedFolders",
    folder: "RunFolder",
    writer: CheckpointWriter,
    loggers: Sequence[Logger],
    *,
    own_tasks: Mapping[str, tuple[OwnTask, int]],
    scores: "TrainingScores | None" = None,
    shared: Mapping[str, Any],
    done: Done,
) -> list[Task]:
    """Build the tasks of a run: save, log and sample, then the user's own tasks, then the scores of the generators.

    Args:
        own_tasks: result of `build_own_tasks`.
        scores: object that scores the generators every `scores.every` steps; None if this is switched off.
        shared: values that each checkpoint stores in addition to the state of the trainer, such as the config.
        done: tasks that an earlier process did at the trainer's step, see `work_done`; they are not repeated.
    """

    def snapshot() -> Snapshot:
        model = snapshot_model(trainer, data.domains)
        return Snapshot(model, {**trainer.state_dict(), **shared}, trainer.rank_state_dict())

    best = BestCheckpoint(writer, **compose.arguments_for(cfg.checkpoint, BestCheckpoint))
    watch = ExplosionWatch(
        note=no_output if folder.notes else folder.note,  # noted once, although each process may report it
        report=warn if trainer.world.is_main else no_output,
        **compose.arguments_for(cfg.trainer, ExplosionWatch),
    )

    def on_log(step: int, values: Mapping[str, float]) -> None:
        keeper.on_log(step, values)
        watch.on_log(step, values)

    expected = set[str]() if scores is None else scores.expected
    keeper = BestKeeper(trainer, functools.partial(writer.save, snapshot), best, expected=expected)
    tasks = usual_tasks(
        trainer,
        save=keeper.save,
        loggers=loggers,
        probes=data.probes(PROBES) if loggers else None,
        on_log=on_log,
        done=done,
        **compose.arguments_for(cfg.trainer, usual_tasks),
    )
    for name, (task, every) in own_tasks.items():
        tasks.append(
            own_task(
                trainer,
                task,
                name=name,
                every=every,
                loggers=loggers,
                on_values=keeper.on_task,
                at_start=not done.tasks,
            )
        )
    file = opened_scores_file(trainer, folder, done=done, is_used=scores is not None)
    if scores is not None:
        task = functools.partial(score, scores, trainer, data.domains, file)

        def on_scores(step: int, values: Mapping[str, float]) -> None:
            keeper.on_task(step, values, evaluations=None if file is None else len(file))

        tasks.append(
            shared_task(
                trainer,
                task,
                key="scores",
                every=cfg.scores.every,
                loggers=loggers,
                on_values=on_scores,
                at_start=not done.tasks,
            )
        )
    return tasks


def opened_scores_file(trainer: "Trainer", folder: "RunFolder", *, done: Done, is_used: bool) -> ScoresFile | None:
    """Open `scores.jsonl` on rank 0, and remove the lines of steps that are evaluated again.

    Return None on other ranks.

    Args:
        done: tasks that an earlier process did at the trainer's step.
        is_used: whether this process evaluates; if not, the lines are removed, and None is returned.
    """
    if not trainer.world.is_main:
        return None
    file = ScoresFile(folder.path, start=trainer.step + done.tasks)
    return file if is_used else None


def score(
    scores: "TrainingScores",
    trainer: "Trainer",
    domains: tuple[str, str],
    file: ScoresFile | None,
    step: int,
    networks: Networks,
) -> dict[str, float]:
    """Score the trainer's networks and return the numbers to log; add a line to `file` unless `file` is None."""
    values, record = scores(snapshot_model(trainer, domains))
    if file is not None:
        file.append(step, record)
    return values


def build_own_tasks(
    cfg: "DictConfig", trainer: "Trainer", data: "UnpairedFolders", folder: "RunFolder", *, recipe: Mapping[str, Any]
) -> dict[str, tuple[OwnTask, int]]:
    """Build the user's own tasks: name -> (task, number of steps between two calls).

    Args:
        recipe: resolved config.

    Raises:
        CommandError: a task rejects its arguments, or cannot be called with a step and networks.
    """
    offered = {
        "folder": folder.path,
        "domains": data.domains,
        "data": data,
        "hardware": trainer.hardware,
        "seed": cfg.seed,
        "config": recipe,
    }
    tasks: dict[str, tuple[OwnTask, int]] = {}
    for name, node in cfg.tasks.items():
        if node is not None:
            own, rest = split_program_keys(f"tasks.{name}", node)
            # Tasks run on rank 0 alone, so the other ranks do not build them.
            task = compose.build_with(rest, offered) if trainer.world.is_main else _no_task
            if not callable(task) or not takes_positional(task, 2):
                raise CommandError(
                    f"tasks.{name}: {type(task).__name__} cannot be called with (step, networks): see docs/extending.md"
                )
            tasks[str(name)] = (task, own["every"])
    return tasks


def _no_task(step: int, networks: Networks) -> None:
    """Do nothing: placeholder for a user's task on ranks other than 0, since such tasks run on rank 0 alone."""
