"""Opens the run folder of a training command, and adapts the config of the command to a run in this folder."""

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

EARLIER = {"colour": "raw", "decoder": "earlier"}  # keys of `data` that earlier versions lacked: their behaviour


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


def keep_reading(cfg: DictConfig, folder: RunFolder, report: PrintLine) -> None:
    """Change `data.colour` and `data.decoder` in `cfg`, so that a run of an earlier version reads images as before.

    Earlier versions lacked these keys, and behaved as `data.colour=raw` and `data.decoder=earlier` do now. A key in
    `cfg` is set to this earlier value if the saved config of the run in `folder` lacks the key or has the earlier
    value. The saved config is read from config.yaml, or else from a checkpoint; without one, `cfg` is unchanged.

    Args:
        report: function called with one line of text for each changed key.
    """
    # A data class of the user's own may lack these keys.
    present = [key for key in EARLIER if cfg.data.get(key) not in (None, EARLIER[key])]
    recipe = _recipe(folder) if present else None
    if recipe is None:
        return
    for key in present:
        if recipe["data"].get(key, EARLIER[key]) == EARLIER[key]:
            cfg.data[key] = EARLIER[key]
            report(f"this run was started with data.{key}={EARLIER[key]}, and keeps it")


def _recipe(folder: RunFolder) -> Any:
    """Return the config of the run in a folder, as nested dicts; None if the folder holds no run."""
    recipe: Any = None
    with contextlib.suppress(OSError, ValueError, YAMLError):
        recipe = OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml"))
    if not (isinstance(recipe, dict) and isinstance(recipe.get("data"), dict)):  # not a config that the run wrote
        checkpoint = folder.checkpoints.load(warn=no_output)
        recipe = None if checkpoint is None else checkpoint.training["recipe"]
    return recipe
