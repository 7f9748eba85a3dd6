"""`python -m cyclestyle.train`: train a CycleGAN from a config, or resume an earlier run."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclestyle.cli import compose, dispatch
from cyclestyle.distributed.launch import close_streams, relaunch, will_be_restarted, write_exit_code, write_pid
from cyclestyle.errors import CheckpointError, DivergedError
from cyclestyle.hardware.threads import (
    Choice,
    Look,
    Watch,
    check,
    choose,
    look,
    resume,
    spin_briefly,
    threads_of_each,
    usable_threads,
    use,
    usual_threads,
)
from cyclestyle.signals import STOPPED, StopRequest, terminate_with_parent
from cyclestyle.training.messages import (
    PrintLine,
    announce,
    name_images_in_error,
    no_output,
    print_line,
    record_all_abandoned,
    record_killed,
    report_finished,
    report_stopped,
)
from cyclestyle.training.state import restore_or_init

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.data import UnpairedFolders
    from cyclestyle.distributed.world import World
    from cyclestyle.evaluation.training_scores import TrainingScores
    from cyclestyle.hardware.device import Hardware
    from cyclestyle.run.failure import FailureReport
    from cyclestyle.run.folder import Done, ResumePoint, RunFolder
    from cyclestyle.training.trainer import Trainer


def main() -> None:
    """Run the train command and exit with its exit code."""
    run_as_program(lambda stop, since: dispatch.launch("train", functools.partial(run, stop=stop, since=since)))


def run_as_program(body: Callable[[StopRequest, Look], object]) -> None:
    """Call `body`, which trains and ends with `sys.exit`; report the exit code to the launcher, and exit with it.

    The launcher is the process that started this one for one of several devices. If torchrun would restart a training
    that was stopped on request, exit with 0 instead.

    Args:
        body: function with two arguments: the request to stop, and processor-time counters read before the call.
    """
    try:
        # Stop requests are recorded from here on, even during the slow imports. Under torchrun one Ctrl-C arrives
        # twice: from the terminal and from torchrun.
        torchrun = "LOCAL_RANK" in os.environ
        with StopRequest(echo_s=3.0 if torchrun else 0.0) as stop:
            if torchrun:
                terminate_with_parent()
            write_pid()
            spin_briefly()
            body(stop, look())
    except SystemExit as exiting:
        code = int(exiting.code or 0)
        write_exit_code(code)
        if code == STOPPED and will_be_restarted():
            sys.exit(0)
        raise
    finally:
        close_streams()


def run(cfg: "DictConfig", *, stop: StopRequest, since: Look) -> int:
    """Train in this process; if the config asks for several devices, relaunch the command as one process per device.

    Args:
        cfg: checked config of the command `train`.
        stop: request to stop, by which signals end the training early.
        since: processor-time counters, read at the start of the program.

    Returns:
        Exit code: 0 if training finished, 75 if it was stopped on request.
    """
    check(cfg.trainer.threads, key="trainer.threads")
    from cyclestyle.distributed.world import launched, session
    from cyclestyle.hardware.device import device_type, process_count
    from cyclestyle.run.failure import FailureReport
    from cyclestyle.run.folder import RunFolder
    from cyclestyle.training.optimization import check_batch

    if not launched():
        processes = process_count(cfg.trainer.devices, cfg.trainer.device)
        if processes > 1:
            check_batch(cfg.trainer.batch_size, ranks=processes, accumulate=cfg.trainer.accumulate)
            folder = RunFolder(Path(cfg.run_dir))
            threads = threads_of_each(processes)
            abandoned = functools.partial(record_all_abandoned, folder)
            killed = functools.partial(record_killed, folder)
            return relaunch(
                processes, threads=threads, stop=stop, abandoned=abandoned, killed=killed, config=compose.yaml(cfg)
            )
    device = device_type(cfg.trainer.device)
    with session(device, timeout_s=cfg.trainer.timeout_s) as world, FailureReport(world) as failure_report:
        return train(cfg, world, stop, failure_report, since=since)


def train(cfg: "DictConfig", world: "World", stop: StopRequest, failure_report: "FailureReport", *, since: Look) -> int:
    """Build everything that the config names, then train to the end or until a stop is requested.

    Args:
        cfg: checked config of the command `train`.
        world: the ranks that train together.
        stop: request to stop, by which signals or a file in the run folder end the training early.
        failure_report: context manager around this call; it needs the run folder, which this function sets.
        since: processor-time counters, read at the start of the program.

    Returns:
        Exit code: 0 if training finished, 75 if it was stopped on request.
    """
    from cyclestyle import assembly
    from cyclestyle.hardware.device import Hardware
    from cyclestyle.networks.registry import load_plugins
    from cyclestyle.run.environment import record_start
    from cyclestyle.training.optimization import check_batch
    from cyclestyle.training.periodic import check_intervals
    from cyclestyle.training.rates import rate_hint

    # Folder, data and networks are built first: a mistake in their settings then ends the command before a checkpoint
    # is read.
    report: PrintLine = print_line if world.is_main else no_output
    load_plugins(cfg.plugins)
    check_batch(cfg.trainer.batch_size, ranks=world.size, accumulate=cfg.trainer.accumulate)
    folder = assembly.lock_run_folder(cfg, world, stop, failure_report)
    assembly.keep_reading(cfg, folder, report)
    data = assembly.find_images(cfg, folder, world, stop, report)
    if data is None:
        return report_stopped(folder, world, stop, report, saved=None)
    hardware = Hardware(**compose.arguments_for(cfg.trainer, Hardware), one_size=True, world=world)
    objective = assembly.build_objective(cfg, hardware, data=data, report=report)
    assembly.check_crop(cfg.data.crop_size, objective.modules["discriminators"])

    recipe = compose.to_plain(cfg)
    with world.main_first():
        resumed = folder.resume_point(recipe, data.files, bad=data.bad, repair=world.is_main)
    chosen = choose_threads(resumed, hardware, since=since, **compose.arguments_for(cfg.trainer, choose_threads))
    use(chosen.threads)
    trainer = assembly.build_trainer(cfg, objective, hardware, samples_per_epoch=len(data.draws(cfg.seed)))
    check_intervals(**compose.arguments_for(cfg.trainer, check_intervals))
    own_tasks = assembly.build_own_tasks(cfg, trainer, data, folder, recipe=recipe)
    scores = assembly.build_scores(trainer, data, report, **compose.arguments_for(cfg.scores, assembly.build_scores))
    restore_or_init(trainer, data.domains, resumed, init=cfg.init, report=report)
    if not world.all_equal(trainer.step):
        raise CheckpointError(
            f"{folder.path}: process {world.rank} found step {trainer.step}, another process found another step: "
            f"check that all processes see the same folder"
        )
    folder.read_step_from(lambda: trainer.step)
    folder.read_notes(trainer.step)
    # Unless the status is "finished", the last log or samples may be missing although the last step was saved.
    done = assembly.work_done(trainer, folder, **compose.arguments_for(cfg.trainer, assembly.work_done))
    has_finished = done.tasks or world.any(world.is_main and folder.has_finished(), no_timeout=True)
    if resumed is not None and trainer.step >= trainer.total and has_finished:
        report(
            f"{folder.path} finished at step {trainer.step}; set trainer.epochs or trainer.steps higher to continue"
            f"{rate_hint(trainer)}"
        )
        return 0

    if world.is_main:
        auto = {
            "trainer.device": hardware.device.type,
            "trainer.precision": hardware.precision,
            "trainer.threads": chosen.threads,
        }
        folder.write_config(compose.yaml(cfg, auto=auto))
        record_start(folder.path, step=trainer.step, processes=world.size)
        folder.write_status("running")
    announce(report, folder, data, trainer, resumed, chosen)
    shared = {"recipe": recipe, "files": data.files, "threads": chosen.threads}
    finished = fit(cfg, trainer, data, folder, stop, own_tasks=own_tasks, scores=scores, shared=shared, done=done)
    return report_finished(folder, data.domains, trainer, stop, report, finished=finished)


def fit(
    cfg: "DictConfig",
    trainer: "Trainer",
    data: "UnpairedFolders",
    folder: "RunFolder",
    stop: StopRequest,
    *,
    own_tasks: Mapping[str, Any],
    scores: "TrainingScores | None",
    shared: Mapping[str, Any],
    done: "Done",
) -> bool:
    """Train on `data`; write logs and save checkpoints.

    Args:
        own_tasks: user-defined periodic tasks, as built by `assembly.build_own_tasks`.
        scores: object that scores the generators every `scores.every` steps; None if this is switched off.
        shared: values that each checkpoint stores in addition to the state of the trainer: `recipe`, the resolved
            config; `files`, the training files; `threads`, the number of threads of this process.
        done: periodic work, such as logging, that an earlier process has done at the first step; it is not repeated.

    Returns:
        True if the last step was reached; False if a stop was requested before it.

    Raises:
        DivergedError: a loss or gradient was not finite; the error names the images of the step where this happened.
    """
    from cyclestyle import assembly
    from cyclestyle.data.loader import batches, warn_once

    draws, world = data.draws(cfg.seed), trainer.world
    rank_batches = batches(
        draws,
        batch_size=trainer.batch_size,
        start=trainer.step,
        stop=trainer.total,
        rank=world.rank,
        ranks=world.size,
        workers=data.workers,
        pin=trainer.hardware.device.type == "cuda",
        stopping=stop,
    )
    watch = Watch(shared["threads"], key="trainer.threads")
    with (
        contextlib.closing(rank_batches),
        assembly.opened_writer(cfg, folder, world) as writer,
        assembly.opened_loggers(
            cfg, trainer, folder, data.domains, recipe=shared["recipe"], watch=watch, done=done
        ) as loggers,
    ):
        tasks = assembly.build_tasks(
            cfg,
            trainer,
            data,
            folder,
            writer,
            loggers,
            own_tasks=own_tasks,
            scores=scores,
            shared=shared,
            done=done,
        )
        if world.is_main:
            print_line(assembly.forecast_disk(cfg, trainer, data, folder, loggers))

        def on_step(step: int) -> None:
            for logger in loggers:
                logger.on_step(step)

        try:
            return trainer.fit(warn_once(rank_batches), tasks=tasks, on_step=on_step, stop_requested=stop)
        except DivergedError as error:
            raise name_images_in_error(error, draws, trainer.batch_size) from None


def choose_threads(
    resumed: "ResumePoint | None",
    hardware: "Hardware",
    /,
    *,
    threads: int | Literal["auto"] = "auto",
    since: Look | None = None,
) -> Choice:
    """Choose the number of threads for a run.

    With `auto`, a resumed run uses the number of threads that it began with, because rounding depends on this number.
    If fewer threads are available, it uses all of them.

    Args:
        resumed: state to resume from; None for a new run.
        threads: value of `trainer.threads`.
        since: processor-time counters, read at the start of the program; None skips the search for other processes
            that occupy the cores.
    """
    if resumed is None:
        return choose(threads, key="trainer.threads", since=since if hardware.device.type == "cpu" else None)
    # Older checkpoints lack the number of threads; their runs used PyTorch's default.
    saved = resumed.checkpoint.training.get("threads", usual_threads())
    return resume(threads, saved=saved, available=usable_threads())


if __name__ == "__main__":
    main()
