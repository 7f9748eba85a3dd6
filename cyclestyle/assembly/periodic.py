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
from cyclestyle.errors import CommandError
from cyclestyle.monitor import FaultTolerantLogger, Profile, Waiting
from cyclestyle.monitor.logger import Logger, Phase
from cyclestyle.training.best import BestKeeper
from cyclestyle.training.periodic import Networks, OwnTask, Task, networks_of, own_task, usual_tasks
from cyclestyle.training.state import snapshot_model

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.data import UnpairedFolders
    from cyclestyle.distributed.world import World
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


@contextlib.contextmanager
def opened_loggers(
    cfg: "DictConfig",
    trainer: "Trainer",
    folder: "RunFolder",
    domains: tuple[str, str],
    *,
    recipe: Mapping[str, Any],
    watch: Callable[[], object],
) -> Iterator[Sequence[Logger]]:
    """Context manager: yield the config's loggers, which are closed at the end; ranks other than 0 get no loggers.

    Args:
        recipe: resolved config.
        watch: function that warns if other processes occupy the cores of this process; called on rank 0 after each
            step if training runs on a CPU.
    """
    loggers: list[Logger] = []
    if trainer.world.is_main:
        offered = {
            "folder": folder.path,
            "domains": domains,
            "start": trainer.step,
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
    shared: Mapping[str, Any],
) -> list[Task]:
    """Build the tasks of a run: save, log and sample, then the user's own tasks.

    Args:
        own_tasks: result of `build_own_tasks`.
        shared: values that each checkpoint stores in addition to the state of the trainer, such as the config.
    """

    def snapshot() -> Snapshot:
        model = snapshot_model(trainer, data.domains)
        return Snapshot(model, {**trainer.state_dict(), **shared}, trainer.rank_state_dict())

    best = BestCheckpoint(writer, **compose.arguments_for(cfg.checkpoint, BestCheckpoint))
    keeper = BestKeeper(trainer, functools.partial(writer.save, snapshot), best)
    tasks = usual_tasks(
        trainer,
        save=keeper.save,
        loggers=loggers,
        probes=data.probes(PROBES) if loggers else None,
        on_log=keeper.on_log,
        **compose.arguments_for(cfg.trainer, usual_tasks),
    )
    for name, (task, every) in own_tasks.items():
        tasks.append(own_task(trainer, task, name=name, every=every, loggers=loggers, on_values=keeper.on_task))
    return tasks


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
    """Do nothing; used on ranks other than 0, where `own_task` only waits."""
