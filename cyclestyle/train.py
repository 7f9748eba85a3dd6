"""`python -m cyclestyle.train`: train a CycleGAN from a config, and go on with it when called again."""

import contextlib
import functools
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclestyle.cli import compose, dispatch
from cyclestyle.distributed.launch import close_streams, relaunch, will_be_restarted, write_exit_code, write_pid
from cyclestyle.errors import CheckpointError, CommandError, DivergedError, warn
from cyclestyle.hardware.threads import (
    Choice,
    Look,
    Watch,
    check,
    choose,
    here,
    look,
    resume,
    spin_briefly,
    threads_of_each,
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
    from cyclestyle.data import Batch, UnpairedFolders
    from cyclestyle.distributed.world import World
    from cyclestyle.hardware.device import Hardware
    from cyclestyle.monitor.logger import Logger
    from cyclestyle.objectives.cyclegan import CycleGAN, Generators
    from cyclestyle.run.failure import FailureReport
    from cyclestyle.run.folder import ResumePoint, RunFolder
    from cyclestyle.training.trainer import Trainer

PROBES = 4  # pictures of each domain in the grids


def main() -> None:
    """The command."""
    try:
        # From here on a request to stop is remembered, whatever the program is doing. Under torchrun one Ctrl-C comes
        # twice, from the terminal and from torchrun.
        torchrun = "LOCAL_RANK" in os.environ
        with StopRequest(echo_s=3.0 if torchrun else 0.0) as stop:
            if torchrun:
                terminate_with_parent()
            write_pid()
            spin_briefly()
            dispatch.launch("train", functools.partial(run, stop=stop, since=look()))
    except SystemExit as leaving:
        code = int(leaving.code or 0)
        write_exit_code(code)
        if code == STOPPED and will_be_restarted():
            sys.exit(0)
        raise
    finally:
        close_streams()


def run(cfg: "DictConfig", *, stop: StopRequest, since: Look) -> int:
    """Relaunch over several devices if asked to; else train in this process.

    Args:
        since: the moment from which on the use that other processes make of the processor counts.

    Returns:
        The exit code: 0 finished, 75 stopped on request.
    """
    from cyclestyle.distributed.world import launched, session
    from cyclestyle.hardware.device import device_type, process_count
    from cyclestyle.run.failure import FailureReport
    from cyclestyle.run.folder import RunFolder
    from cyclestyle.training.optimization import check_batch

    check(cfg.trainer.threads, key="trainer.threads")
    if not launched():
        processes = process_count(cfg.trainer.devices, cfg.trainer.device)
        if processes > 1:
            check_batch(cfg.trainer.batch_size, ranks=processes, accumulate=cfg.trainer.accumulate)
            folder = RunFolder(Path(cfg.run_dir))
            threads = threads_of_each(processes)
            abandoned = functools.partial(record_all_abandoned, folder)
            return relaunch(processes, threads=threads, stop=stop, abandoned=abandoned)
    device = device_type(cfg.trainer.device)
    with session(device, timeout_s=cfg.trainer.timeout_s) as world, FailureReport(world) as ending:
        return train(cfg, world, stop, ending, since=since)


def train(cfg: "DictConfig", world: "World", stop: StopRequest, ending: "FailureReport", *, since: Look) -> int:
    """Build everything that the config names, then train until the end or until asked to stop.

    Args:
        since: see `run`.
    """
    from cyclestyle.checkpoints.writer import CheckpointWriter
    from cyclestyle.hardware.device import Hardware
    from cyclestyle.training.optimization import check_batch

    # What can be wrong is found first: the folder, the data, the networks. Then what the folder holds.
    say: PrintLine = print_line if world.is_main else no_output
    check_batch(cfg.trainer.batch_size, ranks=world.size, accumulate=cfg.trainer.accumulate)
    folder = lock_run_folder(cfg, world, stop, ending)
    data = find_images(cfg, folder, world, stop, say)
    if data is None:
        return report_stopped(folder, world, stop, say, saved=None)
    hardware = Hardware(**compose.arguments_for(cfg.trainer, Hardware), one_size=True, world=world)
    objective = build_objective(cfg, hardware)
    check_crop(cfg.data.crop_size, objective)

    recipe = compose.to_plain(cfg)
    with world.main_first():
        resumed = folder.resume_point(recipe, data.files, bad=data.bad, mend=world.is_main)
    chosen = choose_threads(resumed, hardware, since=since, **compose.arguments_for(cfg.trainer, choose_threads))
    use(chosen.threads)
    trainer = build_trainer(cfg, objective, data, hardware)
    restore_or_init(trainer, data.domains, resumed, init=cfg.init)
    if not world.all_equal(trainer.step):
        raise CheckpointError(
            f"{folder.path}: process {world.rank} found step {trainer.step}, another one another: do all see it?"
        )
    folder.read_step_from(lambda: trainer.step)
    told = world.any(world.is_main and folder.has_finished(), patient=True)
    if resumed is not None and trainer.step >= trainer.total and told:  # else its last log or pictures may be missing
        say(f"{folder.path} finished at step {trainer.step}; set trainer.epochs or trainer.steps higher to continue")
        return 0

    if world.is_main:
        auto = {
            "trainer.device": hardware.device.type,
            "trainer.precision": hardware.precision,
            "trainer.threads": chosen.threads,
        }
        folder.write_config(compose.yaml(cfg, auto=auto))
        folder.write_status("running")
    announce(say, folder, data, trainer, resumed, chosen)
    saving = CheckpointWriter(
        folder.checkpoints,
        world=world,
        saved=lambda path: folder.write_status("running") if world.is_main else None,
        **compose.arguments_for(cfg.checkpoint, CheckpointWriter),
    )
    shared = {"recipe": recipe, "files": data.files, "threads": chosen.threads}
    finished = fit(cfg, trainer, data, saving, folder, stop, shared=shared)
    return report_finished(folder, data.domains, trainer, stop, say, finished=finished)


def lock_run_folder(cfg: "DictConfig", world: "World", stop: StopRequest, ending: "FailureReport") -> "RunFolder":
    """The run's folder, which this job alone has from now on; rank 0 answers for it.

    Raises:
        CommandError: another job has it, or it holds a run and resume.mode is never.
        DiskError: it cannot be written.
    """
    from cyclestyle.run.folder import RunFolder

    folder = RunFolder(
        Path(cfg.run_dir),
        **compose.arguments_for(cfg.checkpoint, RunFolder),
        **compose.arguments_for(cfg.resume, RunFolder),
    )
    with world.all_or_none(patient=True):
        if world.is_main:
            folder.acquire()
    if world.is_main:
        ending.folder = folder
        stop.watch(folder.path / "stop")
        stop.on_second_interrupt(functools.partial(record_abandoned, folder))
    return folder


def find_images(
    cfg: "DictConfig", folder: "RunFolder", world: "World", stop: StopRequest, say: PrintLine
) -> "UnpairedFolders | None":
    """The training pictures, all of them looked at once; processes on one host share what the first one found.

    Returns:
        None if any process was asked to stop.

    Raises:
        DataError: pictures that are missing, or too many that cannot be used.
    """
    from cyclestyle.run.folder import write_bad_files

    with world.main_first():
        data: UnpairedFolders = compose.build(cfg.data)
        if world.is_main:
            try:
                inspect_with_progress(data, stop)
            finally:
                write_bad_files(folder, data.bad)
    if world.any(stop(), patient=True):
        return None
    if not world.is_main:
        inspect_with_progress(data, stop)
    for note in data.notes:
        say(note)
    return data


def inspect_with_progress(data: "UnpairedFolders", stop: StopRequest) -> None:
    """Inspect the pictures, with progress where that takes a while."""
    from cyclestyle.progress import Counter

    with contextlib.ExitStack() as opened:
        counters: list[Counter] = []

        def tell(done: int, total: int) -> None:
            if not counters:
                counters.append(opened.enter_context(Counter(total, what="looking at pictures")))
            counters[0].advance()

        data.inspect(tell=tell, stopping=stop)


def told_once(batches: Iterable["Batch"]) -> Iterator["Batch"]:
    """The batches; files that went bad since they were inspected are told as they are met, once each."""
    seen: set[str] = set()
    for batch in batches:
        for line in batch.replaced:
            if line not in seen:
                warn(f"{line}; another picture takes its place")
        seen.update(batch.replaced)
        yield batch


@contextlib.contextmanager
def opened_loggers(
    cfg: "DictConfig", folder: "RunFolder", trainer: "Trainer", domains: tuple[str, str], *, watch: Callable[[], object]
) -> Iterator[Sequence["Logger"]]:
    """The loggers that the config names, for rank 0; closed at the end.

    Args:
        watch: looks for other processes that use the processor.
    """
    from cyclestyle.monitor import FaultTolerantLogger, Waiting

    loggers: list[Logger] = []
    if trainer.world.is_main:
        about = {"folder": folder.path, "domains": domains, "start": trainer.step, "total": trainer.total}
        loggers = [
            FaultTolerantLogger(functools.partial(compose.build, node, **about), name=f"logger.{name}")
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
    """Who looks at where the time goes, if somebody is to."""
    from cyclestyle.monitor import FaultTolerantLogger, Profile
    from cyclestyle.monitor.logger import Phase

    look = functools.partial(Profile, folder.path, parts=list(Phase), device=trainer.hardware.device.type)
    return [FaultTolerantLogger(look, name="trainer.profile")] if profile else []


def fit(
    cfg: "DictConfig",
    trainer: "Trainer",
    data: "UnpairedFolders",
    saving: "CheckpointWriter",
    folder: "RunFolder",
    stop: StopRequest,
    *,
    shared: Mapping[str, Any],
) -> bool:
    """Train; returns whether the end was reached.

    Args:
        shared: what checkpoints hold besides the trainer's own state.
    """
    from cyclestyle.checkpoints.writer import Snapshot
    from cyclestyle.data import batches

    def snapshot() -> Snapshot:
        return Snapshot(
            snapshot_model(trainer, data.domains), {**trainer.state_dict(), **shared}, trainer.rank_state_dict()
        )

    draws = data.draws(cfg.seed)
    share = batches(
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
    with contextlib.closing(share), opened_loggers(cfg, folder, trainer, data.domains, watch=watch) as loggers:
        try:
            return trainer.fit(
                told_once(share),
                save=functools.partial(saving.save, snapshot),
                loggers=loggers,
                probes=data.probes(PROBES) if loggers else None,
                stop_requested=stop,
            )
        except DivergedError as error:
            raise name_images_in_error(error, draws, trainer.batch_size) from None
        finally:
            saving.finish()


def build_objective(cfg: "DictConfig", hardware: "Hardware") -> "CycleGAN":
    """Networks, freshly initialised from the seed alone, and their losses.

    Raises:
        CommandError: a network outside the table, with which nobody could translate later.
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
                f"so that nothing could read its checkpoints: add it there"
            )
    save_memory(generators, recompute=cfg.trainer.recompute)
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
    """How many threads a run computes with: those that it began with, since another number rounds differently."""
    if resumed is None:
        return choose(threads, key="trainer.threads", since=since if hardware.device.type == "cpu" else None)
    # Checkpoints did not always hold it: those that do not are of runs with as many as PyTorch takes.
    return resume(threads, saved=resumed.checkpoint.training.get("threads", usual_threads()), most=here())


def save_memory(generators: "Generators", *, recompute: bool) -> None:
    """Have the generators compute their residual blocks again in the backward pass, if asked to.

    Raises:
        CommandError: they have none.
    """
    from cyclestyle.networks import ResNetGenerator

    for network in (generators.ab, generators.ba) if recompute else ():
        if not isinstance(network, ResNetGenerator):
            raise CommandError(f"trainer.recompute=true: {type(network).__name__} has no residual blocks: leave it out")
        network.recompute = True


def build_trainer(cfg: "DictConfig", objective: "CycleGAN", data: "UnpairedFolders", hardware: "Hardware") -> "Trainer":
    """The trainer, at step 0."""
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
    if cfg.trainer.profile:  # which cannot tell the parts of a step apart whose kernels are launched together
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
    """Raise a CommandError unless the discriminators can judge a crop."""
    smallest = int(objective.discriminators.a.minimum_size)  # type: ignore[arg-type]
    if crop_size < smallest:
        field = objective.discriminators.a.receptive_field
        raise CommandError(
            f"crop {crop_size} is too small for the {field}x{field} discriminator: "
            f"set data.crop_size to {smallest} or more"
        )


if __name__ == "__main__":
    main()
