"""Messages that a run prints at its start, at its end and on divergence; also the final entry in status.json."""

import contextlib
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cyclestyle.errors import CyclestyleError, DivergedError
from cyclestyle.hardware.threads import Choice
from cyclestyle.signals import STOPPED, StopRequest
from cyclestyle.training.rates import rate_lines

if TYPE_CHECKING:
    from cyclestyle.checkpoints.best import Best
    from cyclestyle.data import UnpairedDataset, UnpairedFolders
    from cyclestyle.distributed.world import World
    from cyclestyle.run.folder import ResumePoint, RunFolder
    from cyclestyle.training.trainer import Trainer

PrintLine = Callable[[str], object]


def record_killed(folder: "RunFolder", reason: str) -> None:
    """Write the state `failed` to status.json for a run whose rank 0 was killed and could not write the file itself.

    Do nothing if no rank has created the run folder, or if another command uses the folder.
    """
    if folder.path.is_dir() and _acquired(folder):
        folder.write_status("failed", code=1, reason=reason)


def record_abandoned(folder: "RunFolder") -> None:
    """Write the state `stopped` to status.json for a run that a second Ctrl-C ends immediately."""
    folder.write_status("stopped", code=130, reason="second Ctrl-C: steps since the newest checkpoint are lost")


def record_all_abandoned(folder: "RunFolder") -> None:
    """Write the state `stopped` to status.json after the launcher has killed all ranks because of a second Ctrl-C.

    Do nothing if another command holds the lock of the folder, since status.json then belongs to that command.
    """
    if _acquired(folder):
        record_abandoned(folder)


def _acquired(folder: "RunFolder") -> bool:
    """Try for 5 s to lock the run folder; return whether this succeeded.

    The operating system releases the lock of a killed rank 0, which may take a moment.
    """
    until = time.monotonic() + 5
    while True:
        try:
            folder.acquire()
        except CyclestyleError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        else:
            return True


def name_images_in_error(error: DivergedError, draws: "UnpairedDataset", batch_size: int) -> DivergedError:
    """Return a copy of `error` whose text also lists remedies and the image files of the diverged step.

    If `error` does not name a step, return it unchanged.

    Args:
        draws: training data. Its method `files` returns the two image files of a training pair, which is given by its
            number, counted from 0 over the whole run.
        batch_size: number of training pairs per step, over all ranks.
    """
    remedy = "a lower optimizer.lr or trainer.precision=fp32 may help"
    if "skipped" not in str(error):
        remedy += ", trainer.on_nonfinite=skip leaves such updates out"
    if error.step is None:
        return error
    pairs = [draws.files(draw) for draw in range(error.step * batch_size, (error.step + 1) * batch_size)]
    files = [f"  {file}" for pair in pairs for file in pair]
    shown = files if len(files) <= 4 else [*files[:3], f"  and {len(files) - 3} more"]
    return DivergedError("\n".join([f"{error}; {remedy}; images of that step:", *shown]), step=error.step)


def report_finished(
    folder: "RunFolder",
    domains: tuple[str, str],
    trainer: "Trainer",
    stop: StopRequest,
    report: PrintLine,
    *,
    finished: bool,
) -> int:
    """Write the final status to status.json and print the last lines of a run; return the exit code.

    Args:
        finished: whether the last step was reached; if False, the run is reported as stopped.
    """
    if not finished:
        return report_stopped(folder, trainer.world, stop, report, saved=trainer.step)
    if trainer.world.is_main:
        from cyclestyle.run.folder import Done

        folder.write_status("finished", code=0, reason="reached the last step", done=Done(log=True, tasks=True))
        stop.clear()  # removes a stop file that appeared during the last step
    best = folder.checkpoints.best()
    report(f"finished at step {trainer.step}: {folder.path}")
    for note in folder.notes:
        report(f"  note:       {note['text']}")
    if best is not None:
        report(f"  best:       {best.name} {best.value:.6g} at step {best.step}: {folder.path / 'best'}")
    for line in _scores(folder, best):
        report(f"  scores:     {line}")
    report(_next_commands(folder.path, domains))
    return 0


def report_stopped(
    folder: "RunFolder", world: "World", stop: StopRequest, report: PrintLine, *, saved: int | None
) -> int:
    """Write status.json and print the last line of a run that was stopped on request; return the exit code.

    Args:
        saved: step of the last checkpoint; None or 0 if the run was stopped before training.
    """
    if world.is_main:
        from cyclestyle.run.folder import Done

        reason = stop.reason or "asked in another process"
        folder.write_status("stopped", code=STOPPED, reason=reason, done=Done(log=True) if saved else None)
        stop.clear()
    what = f"stopped at step {saved}, saved" if saved else "stopped before training"
    for note in folder.notes:
        report(f"note: {note['text']}")
    report(f"{what}: the same command continues from here")
    return STOPPED


def announce(
    report: PrintLine,
    folder: "RunFolder",
    data: "UnpairedFolders",
    trainer: "Trainer",
    resumed: "ResumePoint | None",
    chosen: Choice,
) -> None:
    """Print the first lines of a run: its folder, steps, data, batch size, hardware and network sizes.

    Args:
        resumed: checkpoint that the run resumes from, and the settings and files that have changed since then; these
            changes are printed too. None for a new run.
        chosen: number of CPU threads, printed only if the run trains on a CPU, and a note about it for the user.
    """
    from cyclestyle.hardware.device import device_count

    objective, world = trainer.objective, trainer.world
    sizes_m = [
        sum(p.numel() for p in objective.modules[name].parameters()) / 2e6 for name in ("generators", "discriminators")
    ]
    accumulate = trainer.updater.accumulate
    share = f" = {world.size} processes x {accumulate} x {trainer.batch_size // world.size // accumulate}"
    is_divided = world.size * accumulate > 1
    start = "resuming from" if resumed is not None else "from"
    report(f"{folder.path}: {start} step {trainer.step} to {trainer.total}, {data}")
    report(
        f"global batch {trainer.batch_size}{share if is_divided else ''}, {trainer.hardware}"
        f"{', CUDA graphs' if trainer.is_graphed else ''}"
        f"{f', {chosen}' if trainer.hardware.device.type == 'cpu' else ''}, "
        f"2 generators of {sizes_m[0]:.1f} M parameters, 2 discriminators of {sizes_m[1]:.1f} M"
    )
    if resumed is not None:
        for line in resumed.changes:
            report(f"changed since the last start: {line}")
        if (before := len(resumed.checkpoint.ranks)) != world.size:
            report(
                f"saved by {before} process(es), continuing with {world.size}: the same draws, batch, rates and image "
                f"pools, and numbers that are equal but for rounding, random numbers of networks and terms, and their "
                f"buffers"
            )
    for line in rate_lines(trainer, resumed=resumed is not None):
        report(line)
    if chosen.note:
        report(chosen.note)
    visible = device_count(trainer.hardware.device.type)
    if world.size == 1 and visible > 1:
        report(f"this machine has {visible} GPUs: trainer.devices=auto trainer.batch_size={visible} uses them all")


def _scores(folder: "RunFolder", best: "Best | None") -> list[str]:
    """Return lines that summarize the evaluations in scores.jsonl, see `score_summary.summary`.

    The best evaluation is chosen by the number that `best` names. If `best` is None, or no evaluation has this number,
    it is chosen by `kid`.
    """
    from cyclestyle.run.scores_file import read_evaluations
    from cyclestyle.training.score_summary import summary

    evaluations = read_evaluations(folder.path)
    lines = summary(evaluations, best.name, best.mode) if best is not None else []
    return lines or summary(evaluations, "kid")


def _next_commands(path: Path, domains: tuple[str, str]) -> str:
    direction = f"{domains[0]}2{domains[1]}"
    view = f"tensorboard --logdir {shlex.quote(str(path.parent))}   (or open the pictures in {path / 'samples'})"
    translate = f"checkpoint={shlex.quote(str(path))} input=FOLDER output=OUT direction={direction}"
    return f"  view:       {view}\n  translate:  python -m cyclestyle.translate {translate}"


def print_line(line: str) -> None:
    """Print a line to stdout; ignore an OSError, since stdout may be a pipe whose reader has already exited."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def no_output(*_: object) -> None:
    """Print nothing; used instead of `print_line` on ranks other than 0."""
