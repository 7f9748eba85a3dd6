"""Lines that a run prints: at its start, at its end, about errors."""

import contextlib
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cyclestyle.errors import CyclestyleError, DivergedError
from cyclestyle.hardware.threads import (
    Choice,
)
from cyclestyle.signals import STOPPED, StopRequest

if TYPE_CHECKING:
    from cyclestyle.data import UnpairedDataset, UnpairedFolders
    from cyclestyle.distributed.world import World
    from cyclestyle.run.folder import ResumePoint, RunFolder
    from cyclestyle.training.trainer import Trainer

PrintLine = Callable[[str], object]


def record_abandoned(folder: "RunFolder") -> None:
    """The last word of a run that a second Ctrl-C ends."""
    folder.write_status("stopped", code=130, reason="second Ctrl-C: steps since the newest checkpoint are lost")


def record_all_abandoned(folder: "RunFolder") -> None:
    """The same from the command that ended all its processes, unless they were refused the folder."""
    until = time.monotonic() + 5  # seconds, in which the system takes the folder from processes that were killed
    while True:
        try:
            folder.acquire()
        except CyclestyleError:
            if time.monotonic() > until:
                return
            time.sleep(0.05)
        else:
            record_abandoned(folder)
            return


def name_images_in_error(error: DivergedError, draws: "UnpairedDataset", batch_size: int) -> DivergedError:
    """The same error with the files of the step that went wrong, drawn again."""
    remedy = "a lower optimizer.lr or trainer.precision=fp32 may help"
    if "skipped" not in str(error):
        remedy += ", trainer.on_nonfinite=skip goes on regardless"
    if error.step is None:
        return error
    pairs = [draws.files(draw) for draw in range(error.step * batch_size, (error.step + 1) * batch_size)]
    files = [f"  {file}" for pair in pairs for file in pair]
    shown = files if len(files) <= 4 else [*files[:3], f"  and {len(files) - 3} more"]
    return DivergedError("\n".join([f"{error}; {remedy}; its pictures were:", *shown]), step=error.step)


def report_finished(
    folder: "RunFolder",
    domains: tuple[str, str],
    trainer: "Trainer",
    stop: StopRequest,
    say: PrintLine,
    *,
    finished: bool,
) -> int:
    """Say how training ended; returns the exit code."""
    if not finished:
        return report_stopped(folder, trainer.world, stop, say, saved=trainer.step)
    if trainer.world.is_main:
        folder.write_status("finished", code=0, reason="reached the last step")
        stop.clear()  # whoever asked for it meanwhile
    say(f"finished at step {trainer.step}: {folder.path}\n{_next_commands(folder.path, domains)}")
    return 0


def report_stopped(folder: "RunFolder", world: "World", stop: StopRequest, say: PrintLine, *, saved: int | None) -> int:
    """Say that the run was asked to stop; returns the exit code.

    Args:
        saved: the step that it was saved at; None or 0 if there was nothing to save.
    """
    if world.is_main:
        folder.write_status("stopped", code=STOPPED, reason=stop.reason or "asked in another process")
        stop.clear()
    what = f"stopped at step {saved}, saved" if saved else "stopped before training"
    say(f"{what}: the same command goes on from here")
    return STOPPED


def announce(
    say: PrintLine,
    folder: "RunFolder",
    data: "UnpairedFolders",
    trainer: "Trainer",
    resumed: "ResumePoint | None",
    chosen: Choice,
) -> None:
    """One look at what starts: data, sizes, batch, hardware, length; and what has changed since the last start."""
    from cyclestyle.hardware.device import device_count

    objective, world = trainer.objective, trainer.world
    sizes = [
        sum(p.numel() for p in module.parameters()) / 2e6 for module in (objective.generators, objective.discriminators)
    ]
    share = (
        f" = {world.size} processes x {trainer.accumulate} x {trainer.batch_size // world.size // trainer.accumulate}"
    )
    divided = world.size * trainer.accumulate > 1
    going_on = "going on from" if resumed is not None else "from"
    say(f"{folder.path}: {going_on} step {trainer.step} to {trainer.total}, {data}")
    say(
        f"global batch {trainer.batch_size}{share if divided else ''}, {trainer.hardware}"
        f"{', CUDA graphs' if trainer.replays else ''}"
        f"{f', {chosen}' if trainer.hardware.device.type == 'cpu' else ''}, "
        f"2 generators of {sizes[0]:.1f} M parameters, 2 discriminators of {sizes[1]:.1f} M"
    )
    if resumed is not None:
        for line in resumed.changes:
            say(f"changed since the last start: {line}")
        if (before := len(resumed.checkpoint.ranks)) != world.size:
            say(
                f"saved by {before} process(es), going on with {world.size}: the same draws, batch, rates and image "
                f"pools, and numbers that are equal but for rounding"
            )
    if chosen.note:
        say(chosen.note)
    visible = device_count(trainer.hardware.device.type)
    if world.size == 1 and visible > 1:
        say(f"this machine has {visible} GPUs: trainer.devices=auto trainer.batch_size={visible} uses them all")


def _next_commands(path: Path, domains: tuple[str, str]) -> str:
    direction = f"{domains[0]}2{domains[1]}"
    look = f"tensorboard --logdir {shlex.quote(str(path.parent))}   (or open the pictures in {path / 'samples'})"
    translate = f"checkpoint={shlex.quote(str(path))} input=FOLDER output=OUT direction={direction}"
    return f"  look:       {look}\n  translate:  python -m cyclestyle.translate {translate}"


def print_line(line: str) -> None:
    """On standard output, if that can be written: whoever reads it may have gone before."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def no_output(*_: object) -> None:
    """Only rank 0 speaks."""
