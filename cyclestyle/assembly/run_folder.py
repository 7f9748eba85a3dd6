"""Opens the run folder of a training command, and adapts the config to the run that it holds."""

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped, unused-ignore]

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.cli import compose
from cyclestyle.run.folder import RunFolder
from cyclestyle.signals import StopRequest
from cyclestyle.training.messages import PrintLine, no_output, record_abandoned

if TYPE_CHECKING:
    from cyclestyle.distributed.world import World
    from cyclestyle.run.failure import FailureReport


def lock_run_folder(cfg: DictConfig, world: "World", stop: StopRequest, failure_report: "FailureReport") -> RunFolder:
    """Return the run folder; rank 0 creates and locks it first.

    From then on, rank 0 records a failure or a second Ctrl-C in status.json in the folder. The run stops once the
    folder contains a file named `stop`.

    Raises:
        CommandError: another process uses the folder, or the folder holds a run and `resume.mode` is `never`.
        DiskError: the folder cannot be written.
    """
    folder = RunFolder(
        Path(cfg.run_dir),
        **compose.arguments_for(cfg.checkpoint, Checkpoints),
        **compose.arguments_for(cfg.resume, RunFolder),
    )
    with world.all_or_none(no_timeout=True):
        if world.is_main:
            folder.acquire()
    if world.is_main:
        failure_report.folder = folder
        stop.watch(folder.path / "stop")
        stop.on_second_interrupt(functools.partial(record_abandoned, folder))
    return folder


def keep_raw_colour(cfg: DictConfig, folder: RunFolder, report: PrintLine) -> None:
    """Change `data.colour=managed` to `raw` if `folder` holds a run with raw colours, so that this run resumes.

    Runs of versions without `data.colour` have raw colours. The recipe is in config.yaml, or else in a checkpoint.
    """
    if cfg.data.get("colour") != "managed":  # a data class of the user's own may lack this key
        return
    recipe: Any = None
    with contextlib.suppress(OSError, ValueError, YAMLError):
        recipe = OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml"))
    if not (isinstance(recipe, dict) and isinstance(recipe.get("data"), dict)):  # not a config that the run wrote
        checkpoint = folder.checkpoints.load(warn=no_output)
        recipe = None if checkpoint is None else checkpoint.training["recipe"]
    if recipe is not None and recipe["data"].get("colour", "raw") == "raw":
        cfg.data.colour = "raw"
        report("this run was started with data.colour=raw, and keeps it")
