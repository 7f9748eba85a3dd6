"""`python -m cyclestyle.train`: train a CycleGAN from a config, or resume an earlier run."""

import contextlib
import functools
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclestyle.cli import compose, dispatch
from cyclestyle.distributed.launch import close_streams, relaunch, will_be_restarted, write_exit_code, write_pid
from cyclestyle.errors import CheckpointError, CommandError, DivergedError
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
    record_abandoned,
    record_all_abandoned,
    report_finished,
    report_stopped,
)
from cyclestyle.training.state import restore_or_init, snapshot_model

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.checkpoints.writer import CheckpointWriter
    from cyclestyle.data import UnpairedFolders
    from cyclestyle.distributed.world import World
    from cyclestyle.hardware.device import Hardware
    from cyclestyle.monitor.logger import Logger
    from cyclestyle.objectives.cyclegan import CycleGAN, Generators
    from cyclestyle.run.failure import FailureReport
    from cyclestyle.run.folder import ResumePoint, RunFolder
    from cyclestyle.training.trainer import Trainer

PROBES = 4  # number of probe images per domain


def main() -> None:
    """Run the train command and exit with its exit code."""
    try:
        # Stop requests are recorded from here on, even during the slow imports. Under torchrun one Ctrl-C arrives
        # twice: from the terminal and from torchrun.
        torchrun = "LOCAL_RANK" in os.environ
        with StopRequest(echo_s=3.0 if torchrun else 0.0) as stop:
            if torchrun:
                terminate_with_parent()
            write_pid()
            spin_briefly()
            dispatch.launch("train", functools.partial(run, stop=stop, since=look()))
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
            return relaunch(processes, threads=threads, stop=stop, abandoned=abandoned)
    device = device_type(cfg.trainer.device)
    with session(device, timeout_s=cfg.trainer.timeout_s) as world, FailureReport(world) as failure_report:
        return train(cfg, world, stop, failure_report, since=since)


def train(cfg: "DictConfig", world: "World", stop: StopRequest, failure_report: "FailureReport", *, since: Look) -> int:
    """Build everything that the config names, then train to the end or until a stop is requested.

    Args:
        since: processor-time counters, read at the start of the program.

    Returns:
        Exit code: 0 if training finished, 75 if it was stopped on request.
    """
    from cyclestyle.checkpoints.writer import CheckpointWriter
    from cyclestyle.hardware.device import Hardware
    from cyclestyle.training.optimization import check_batch

    # Folder, data and networks are built first: a mistake in their settings then ends the command before a checkpoint
    # is read.
    report: PrintLine = print_line if world.is_main else no_output
    check_batch(cfg.trainer.batch_size, ranks=world.size, accumulate=cfg.trainer.accumulate)
    folder = lock_run_folder(cfg, world, stop, failure_report)
    data = find_images(cfg, folder, world, stop, report)
    if data is None:
        return report_stopped(folder, world, stop, report, saved=None)
    hardware = Hardware(**compose.arguments_for(cfg.trainer, Hardware), one_size=True, world=world)
    objective = build_objective(cfg, hardware)
    check_crop(cfg.data.crop_size, objective)

    recipe = compose.to_plain(cfg)
    with world.main_first():
        resumed = folder.resume_point(recipe, data.files, bad=data.bad, repair=world.is_main)
    chosen = choose_threads(resumed, hardware, since=since, **compose.arguments_for(cfg.trainer, choose_threads))
    use(chosen.threads)
    trainer = build_trainer(cfg, objective, data, hardware)
    restore_or_init(trainer, data.domains, resumed, init=cfg.init)
    if not world.all_equal(trainer.step):
        raise CheckpointError(
            f"{folder.path}: process {world.rank} found step {trainer.step}, another process found another step: "
            f"check that all processes see the same folder"
        )
    folder.read_step_from(lambda: trainer.step)
    # Unless the status is "finished", the last log or samples may be missing although the last step was saved.
    has_finished = world.any(world.is_main and folder.has_finished(), no_timeout=True)
    if resumed is not None and trainer.step >= trainer.total and has_finished:
        report(f"{folder.path} finished at step {trainer.step}; set trainer.epochs or trainer.steps higher to continue")
        return 0

    if world.is_main:
        auto = {
            "trainer.device": hardware.device.type,
            "trainer.precision": hardware.precision,
            "trainer.threads": chosen.threads,
        }
        folder.write_config(compose.yaml(cfg, auto=auto))
        folder.write_status("running")
    announce(report, folder, data, trainer, resumed, chosen)
    writer = CheckpointWriter(
        folder.checkpoints,
        world=world,
        saved=lambda path: folder.write_status("running") if world.is_main else None,
        **compose.arguments_for(cfg.checkpoint, CheckpointWriter),
    )
    shared = {"recipe": recipe, "files": data.files, "threads": chosen.threads}
    finished = fit(cfg, trainer, data, writer, folder, stop, shared=shared)
    return report_finished(folder, data.domains, trainer, stop, report, finished=finished)


def lock_run_folder(
    cfg: "DictConfig", world: "World", stop: StopRequest, failure_report: "FailureReport"
) -> "RunFolder":
    """Return the run folder; rank 0 creates and locks it first.

    From then on, rank 0 records a failure or a second Ctrl-C in status.json in the folder. The run stops once the
    folder contains a file named `stop`.

    Raises:
        CommandError: another process uses the folder, or the folder holds a run and `resume.mode` is `never`.
        DiskError: the folder cannot be written.
    """
    from cyclestyle.run.folder import RunFolder

    folder = RunFolder(
        Path(cfg.run_dir),
        **compose.arguments_for(cfg.checkpoint, RunFolder),
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


def find_images(
    cfg: "DictConfig", folder: "RunFolder", world: "World", stop: StopRequest, report: PrintLine
) -> "UnpairedFolders | None":
    """Find and inspect the training images; rank 0 caches the results, and other ranks on its host reuse them.

    Returns:
        Training data with the image folders of both domains; None if a stop was requested on any rank.

    Raises:
        DataError: images are missing, or too many images are unusable.
    """
    from cyclestyle.run.folder import write_bad_files

    with world.main_first():
        data: UnpairedFolders = compose.build(cfg.data)
        if world.is_main:
            try:
                inspect_with_progress(data, stop)
            finally:
                write_bad_files(folder, data.bad)
    if world.any(stop(), no_timeout=True):
        return None
    if not world.is_main:
        inspect_with_progress(data, stop)
    for note in data.notes:
        report(note)
    return data


def inspect_with_progress(data: "UnpairedFolders", stop: StopRequest) -> None:
    """Inspect the training images; show a progress counter if the inspection has to decode images."""
    from cyclestyle.progress import Counter

    with contextlib.ExitStack() as exit_stack:
        counters: list[Counter] = []

        def on_progress(done: int, total: int) -> None:
            if not counters:
                counters.append(exit_stack.enter_context(Counter(total, what="inspecting pictures")))
            counters[0].advance()

        data.inspect(on_progress=on_progress, stopping=stop)


@contextlib.contextmanager
def opened_loggers(
    cfg: "DictConfig", folder: "RunFolder", trainer: "Trainer", domains: tuple[str, str], *, watch: Callable[[], object]
) -> Iterator[Sequence["Logger"]]:
    """Context manager: yield the config's loggers, which are closed at the end; ranks other than 0 get no loggers.

    Args:
        watch: function that warns if other processes occupy the cores of this process; called on rank 0 after each
            step if training runs on a CPU.
    """
    from cyclestyle.monitor import FaultTolerantLogger, Waiting

    loggers: list[Logger] = []
    if trainer.world.is_main:
        run_values = {"folder": folder.path, "domains": domains, "start": trainer.step, "total": trainer.total}
        loggers = [
            FaultTolerantLogger(functools.partial(compose.build, node, **run_values), name=f"logger.{name}")
            for name, node in cfg.logger.items()
            if node is not None
        ]
        loggers += profilers(folder, trainer, **compose.arguments_for(cfg.trainer, profilers))
        if trainer.hardware.device.type == "cpu":
            loggers.append(Waiting(watch))
    try:
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


def profilers(folder: "RunFolder", trainer: "Trainer", /, *, profile: bool) -> "list[Logger]":
    """Return a list that contains the profiler if `profile` is true, else an empty list."""
    from cyclestyle.monitor import FaultTolerantLogger, Profile
    from cyclestyle.monitor.logger import Phase

    build = functools.partial(Profile, folder.path, phases=list(Phase), device=trainer.hardware.device.type)
    return [FaultTolerantLogger(build, name="trainer.profile")] if profile else []


def fit(
    cfg: "DictConfig",
    trainer: "Trainer",
    data: "UnpairedFolders",
    writer: "CheckpointWriter",
    folder: "RunFolder",
    stop: StopRequest,
    *,
    shared: Mapping[str, Any],
) -> bool:
    """Train on `data`; write logs and save checkpoints.

    Args:
        shared: values that each checkpoint stores in addition to the state of the trainer.

    Returns:
        True if the last step was reached; False if a stop was requested before it.

    Raises:
        DivergedError: a loss or gradient was not finite; the error names the images of the step where this happened.
    """
    from cyclestyle.checkpoints.writer import Snapshot
    from cyclestyle.data.loader import batches, warn_once

    def snapshot() -> Snapshot:
        return Snapshot(
            snapshot_model(trainer, data.domains), {**trainer.state_dict(), **shared}, trainer.rank_state_dict()
        )

    draws = data.draws(cfg.seed)
    rank_batches = batches(
        draws,
        batch_size=trainer.batch_size,
        start=trainer.step,
        stop=trainer.total,
        rank=trainer.world.rank,
        ranks=trainer.world.size,
        workers=data.workers,
        pin=trainer.hardware.device.type == "cuda",
        stopping=stop,
    )
    watch = Watch(shared["threads"], key="trainer.threads")
    with contextlib.closing(rank_batches), opened_loggers(cfg, folder, trainer, data.domains, watch=watch) as loggers:
        try:
            return trainer.fit(
                warn_once(rank_batches),
                save=functools.partial(writer.save, snapshot),
                loggers=loggers,
                probes=data.probes(PROBES) if loggers else None,
                stop_requested=stop,
            )
        except DivergedError as error:
            raise name_images_in_error(error, draws, trainer.batch_size) from None
        finally:
            writer.finish()


def build_objective(cfg: "DictConfig", hardware: "Hardware") -> "CycleGAN":
    """Build the CycleGAN objective: the networks and their losses. Initial weights depend on the config's seed alone.

    Raises:
        CommandError: the class of a network is not in the registry, so its checkpoints could not be loaded.
    """
    import torch

    from cyclestyle import networks
    from cyclestyle.networks import registry
    from cyclestyle.objectives.cyclegan import CycleGAN, Discriminators, Generators

    generators = Generators(compose.build(cfg.generator), compose.build(cfg.generator))
    discriminators = Discriminators(compose.build(cfg.discriminator), compose.build(cfg.discriminator))
    random = torch.Generator().manual_seed(cfg.seed)
    for group, network, table in (
        ("generator", generators.ab, registry.GENERATORS),
        ("discriminator", discriminators.a, registry.DISCRIMINATORS),
    ):
        if type(network) not in table.values():
            raise CommandError(
                f"{group}: {type(network).__name__} is not in the table of cyclestyle/networks/registry.py, "
                f"without which its checkpoints cannot be loaded: add it there"
            )
    enable_recompute(generators, recompute=cfg.trainer.recompute)
    for module in (generators, discriminators):
        networks.initialize(module, generator=random)
        hardware.to_device(module, training=True)
    return CycleGAN(
        generators,
        discriminators,
        adversarial=compose.build(cfg.adversarial),
        **compose.arguments_for(cfg.objective, CycleGAN),
        prepare=hardware.wrap,
    )


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
    If fewer threads are available, it uses these.

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


def enable_recompute(generators: "Generators", *, recompute: bool) -> None:
    """If `recompute` is true, let the generators recompute residual blocks in the backward pass, which saves memory.

    Raises:
        CommandError: `recompute` is true, but the generators have no residual blocks.
    """
    from cyclestyle.networks import ResNetGenerator

    for network in (generators.ab, generators.ba) if recompute else ():
        if not isinstance(network, ResNetGenerator):
            raise CommandError(f"trainer.recompute=true: {type(network).__name__} has no residual blocks: leave it out")
        network.recompute = True


def build_trainer(cfg: "DictConfig", objective: "CycleGAN", data: "UnpairedFolders", hardware: "Hardware") -> "Trainer":
    """Build the trainer at step 0.

    Raises:
        CommandError: `Trainer` rejects the settings, or `trainer.cuda_graphs` and `trainer.profile` are both true.
    """
    from cyclestyle.objectives.image_pool import ImagePool
    from cyclestyle.training.ema import make_ema
    from cyclestyle.training.optimization import Optimizers
    from cyclestyle.training.schedule import LinearDecay
    from cyclestyle.training.trainer import Pools, Trainer

    can_fuse = "fused" in inspect.signature(pkgutil.resolve_name(cfg.optimizer._target_)).parameters
    fused = {"fused": True} if can_fuse and hardware.device.type in ("cuda", "cpu") else {}
    optimizers = Optimizers(
        *(
            compose.build(cfg.optimizer, params=list(module.parameters()), **fused)
            for module in (objective.generators, objective.discriminators)
        )
    )
    pools = Pools(
        *(
            ImagePool(cfg.pool.size, batch_size=cfg.trainer.batch_size, seed=cfg.seed, purpose=f"pool {side}")
            for side in ("a", "b")
        )
    )
    settings = compose.arguments_for(cfg.trainer, Trainer)
    if cfg.trainer.profile:  # the profiler cannot attribute kernels inside one CUDA graph
        if settings["cuda_graphs"] is True:
            raise CommandError("trainer.cuda_graphs=true does not go with trainer.profile=true: leave one of them out")
        settings["cuda_graphs"] = False
    return Trainer(
        objective,
        optimizers,
        schedule=LinearDecay(**compose.arguments_for(cfg.schedule, LinearDecay)),
        samples_per_epoch=len(data.draws(cfg.seed)),
        pools=pools,
        average=make_ema(objective.generators, cfg.ema.decay),
        hardware=hardware,
        seed=cfg.seed,
        **settings,
    )


def check_crop(crop_size: int, objective: "CycleGAN") -> None:
    """Raise a CommandError if `crop_size` is too small for the discriminators to return a score."""
    smallest = int(objective.discriminators.a.minimum_size)  # type: ignore[arg-type]
    if crop_size < smallest:
        field = objective.discriminators.a.receptive_field
        raise CommandError(
            f"crop {crop_size} is too small for the {field}x{field} discriminator: "
            f"set data.crop_size to {smallest} or more"
        )


if __name__ == "__main__":
    main()
