"""`python -m cyclestyle.train`: train a CycleGAN from a config, and go on with it when called again."""

import contextlib
import functools
import inspect
import os
import pkgutil
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclestyle import config
from cyclestyle.errors import CheckpointError, CommandError, CyclestyleError, DivergedError, warn
from cyclestyle.files import write_text
from cyclestyle.listing import shown
from cyclestyle.relaunch import (
    close_streams,
    process_count,
    relaunch,
    tell_exit_code,
    tell_process,
    would_be_started_again,
)
from cyclestyle.signals import STOPPED, StopRequest, leave_with_parent
from cyclestyle.threads import Choice, Look, Watch, check, choose, here, look, resume, spin_briefly, use, usual_threads

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from cyclestyle.checkpoint import Model
    from cyclestyle.cyclegan import CycleGAN, Generators
    from cyclestyle.data import Batch, Draws, Unpaired
    from cyclestyle.distributed import World
    from cyclestyle.ending import Ending
    from cyclestyle.hardware import Hardware
    from cyclestyle.run import Resumed, RunFolder
    from cyclestyle.saving import Saving
    from cyclestyle.trainer import Logger, Trainer

PROBES = 4  # pictures of each domain in the grids
Say = Callable[[str], object]


def main() -> None:
    """The command."""
    try:
        # From here on a request to stop is remembered, whatever the program is doing. Under torchrun one Ctrl-C comes
        # twice, from the terminal and from torchrun.
        torchrun = "LOCAL_RANK" in os.environ
        with StopRequest(echo_s=3.0 if torchrun else 0.0) as stop:
            if torchrun:
                leave_with_parent()
            tell_process()
            spin_briefly()
            config.launch("train", functools.partial(run, stop=stop, since=look()))
    except SystemExit as leaving:
        code = int(leaving.code or 0)
        tell_exit_code(code)
        if code == STOPPED and would_be_started_again():
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
    check(cfg.trainer.threads, key="trainer.threads")
    from cyclestyle import distributed, hardware
    from cyclestyle.ending import Ending
    from cyclestyle.run import RunFolder
    from cyclestyle.trainer import check_batch

    if not distributed.launched():
        processes = process_count(cfg.trainer.devices, cfg.trainer.device)
        if processes > 1:
            check_batch(cfg.trainer.batch_size, ranks=processes, accumulate=cfg.trainer.accumulate)
            folder = RunFolder(Path(cfg.run_dir))
            return relaunch(processes, stop=stop, abandoned=functools.partial(tell_all_abandoned, folder))
    device = hardware.device_type(cfg.trainer.device)
    with distributed.session(device, timeout_s=cfg.trainer.timeout_s) as world, Ending(world) as ending:
        return train(cfg, world, stop, ending, since=since)


def train(cfg: "DictConfig", world: "World", stop: StopRequest, ending: "Ending", *, since: Look) -> int:
    """Build everything that the config names, then train until the end or until asked to stop.

    Args:
        since: see `run`.
    """
    from cyclestyle.hardware import Hardware
    from cyclestyle.saving import Saving
    from cyclestyle.trainer import check_batch

    # What can be wrong is found first: the folder, the data, the networks. Then what the folder holds.
    say: Say = _say if world.is_main else _silent
    check_batch(cfg.trainer.batch_size, ranks=world.size, accumulate=cfg.trainer.accumulate)
    folder = take_folder(cfg, world, stop, ending)
    data = find_pictures(cfg, folder, world, stop, say)
    if data is None:
        return tell_stopped(folder, world, stop, say, saved=None)
    hardware = Hardware(**config.pick(cfg.trainer, Hardware), one_size=True, world=world)
    objective = build_objective(cfg, hardware)
    check_crop(cfg.data.crop_size, objective)

    recipe = config.plain(cfg)
    with world.main_first():
        resumed = folder.resumable(recipe, data.files, bad=data.bad, mend=world.is_main)
    chosen = choose_threads(resumed, hardware, since=since, **config.pick(cfg.trainer, choose_threads))
    use(chosen.threads)
    trainer = build_trainer(cfg, objective, data, hardware)
    start(trainer, data.domains, resumed, init=cfg.init)
    if not world.same(trainer.step):
        raise CheckpointError(
            f"{folder.path}: process {world.rank} found step {trainer.step}, another one another: do all see it?"
        )
    folder.follow(lambda: trainer.step)
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
        folder.write_config(config.yaml(cfg, auto=auto))
        folder.write_status("running")
    announce(say, folder, data, trainer, resumed, chosen)
    saving = Saving(
        folder.checkpoints,
        world=world,
        saved=lambda path: folder.write_status("running") if world.is_main else None,
        **config.pick(cfg.checkpoint, Saving),
    )
    shared = {"recipe": recipe, "files": data.files, "threads": chosen.threads}
    finished = fit(cfg, trainer, data, saving, folder, stop, shared=shared)
    return leave(folder, data.domains, trainer, stop, say, finished=finished)


def take_folder(cfg: "DictConfig", world: "World", stop: StopRequest, ending: "Ending") -> "RunFolder":
    """The run's folder, which this job alone has from now on; rank 0 answers for it.

    Raises:
        CommandError: another job has it, or it holds a run and resume.mode is never.
        DiskError: it cannot be written.
    """
    from cyclestyle.run import RunFolder

    folder = RunFolder(
        Path(cfg.run_dir), **config.pick(cfg.checkpoint, RunFolder), **config.pick(cfg.resume, RunFolder)
    )
    with world.agreed(patient=True):
        if world.is_main:
            folder.take()
    if world.is_main:
        ending.folder = folder
        stop.watch(folder.path / "stop")
        stop.before_abandoning(functools.partial(tell_abandoned, folder))
    return folder


def tell_abandoned(folder: "RunFolder") -> None:
    """The last word of a run that a second Ctrl-C ends."""
    folder.write_status("stopped", code=130, reason="second Ctrl-C: steps since the newest checkpoint are lost")


def tell_all_abandoned(folder: "RunFolder") -> None:
    """The same from the command that ended all its processes, unless they were refused the folder."""
    until = time.monotonic() + 5  # seconds, in which the system takes the folder from processes that were killed
    while True:
        try:
            folder.take()
        except CyclestyleError:
            if time.monotonic() > until:
                return
            time.sleep(0.05)
        else:
            tell_abandoned(folder)
            return


def find_pictures(
    cfg: "DictConfig", folder: "RunFolder", world: "World", stop: StopRequest, say: Say
) -> "Unpaired | None":
    """The training pictures, all of them looked at once; processes on one host share what the first one found.

    Returns:
        None if any process was asked to stop.

    Raises:
        DataError: pictures that are missing, or too many that cannot be used.
    """
    with world.main_first():
        data: Unpaired = config.build(cfg.data)
        if world.is_main:
            try:
                look_at(data, stop)
            finally:
                write_bad_files(folder, data.bad)
    if world.any(stop(), patient=True):
        return None
    if not world.is_main:
        look_at(data, stop)
    for note in data.notes:
        say(note)
    return data


def look_at(data: "Unpaired", stop: StopRequest) -> None:
    """Inspect the pictures, with progress where that takes a while."""
    from cyclestyle.translation.progress import Counter

    with contextlib.ExitStack() as opened:
        counters: list[Counter] = []

        def tell(done: int, total: int) -> None:
            if not counters:
                counters.append(opened.enter_context(Counter(total, what="looking at pictures")))
            counters[0].advance()

        data.inspect(tell=tell, stopping=stop)


def write_bad_files(folder: "RunFolder", bad: Mapping[str, Mapping[str, str]]) -> None:
    """All that cannot be used, for whoever wants to mend it: the screen shows a few."""
    lines = [f"{side} {shown(Path(name))}: {reason}" for side, files in bad.items() for name, reason in files.items()]
    if lines:
        write_text(folder.path / "bad_files.txt", "".join(f"{line}\n" for line in lines))


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
    from cyclestyle.monitor import Careful, Waiting

    loggers: list[Logger] = []
    if trainer.world.is_main:
        about = {"folder": folder.path, "domains": domains, "start": trainer.step, "total": trainer.total}
        loggers = [
            Careful(functools.partial(config.build, node, **about), name=f"logger.{name}")
            for name, node in cfg.logger.items()
            if node is not None
        ]
        loggers += profilers(folder, trainer, **config.pick(cfg.trainer, profilers))
        if trainer.hardware.device.type == "cpu":
            loggers.append(Waiting(watch))
    try:
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


def profilers(folder: "RunFolder", trainer: "Trainer", /, *, profile: bool) -> "list[Logger]":
    """Who looks at where the time goes, if somebody is to."""
    from cyclestyle.monitor import Careful, Profile
    from cyclestyle.trainer import Part

    look = functools.partial(Profile, folder.path, parts=list(Part), device=trainer.hardware.device.type)
    return [Careful(look, name="trainer.profile")] if profile else []


def fit(
    cfg: "DictConfig",
    trainer: "Trainer",
    data: "Unpaired",
    saving: "Saving",
    folder: "RunFolder",
    stop: StopRequest,
    *,
    shared: Mapping[str, Any],
) -> bool:
    """Train; returns whether the end was reached.

    Args:
        shared: what checkpoints hold besides the trainer's own state.
    """
    from cyclestyle.data import batches
    from cyclestyle.saving import Snapshot

    def snapshot() -> Snapshot:
        return Snapshot(model_of(trainer, data.domains), {**trainer.state_dict(), **shared}, trainer.own_state_dict())

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
            raise with_files(error, draws, trainer.batch_size) from None
        finally:
            saving.finish()


def with_files(error: DivergedError, draws: "Draws", batch_size: int) -> DivergedError:
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


def leave(
    folder: "RunFolder", domains: tuple[str, str], trainer: "Trainer", stop: StopRequest, say: Say, *, finished: bool
) -> int:
    """Say how training ended; returns the exit code."""
    if not finished:
        return tell_stopped(folder, trainer.world, stop, say, saved=trainer.step)
    if trainer.world.is_main:
        folder.write_status("finished", code=0, reason="reached the last step")
        stop.obeyed()  # whoever asked for it meanwhile
    say(f"finished at step {trainer.step}: {folder.path}\n{_next_commands(folder.path, domains)}")
    return 0


def tell_stopped(folder: "RunFolder", world: "World", stop: StopRequest, say: Say, *, saved: int | None) -> int:
    """Say that the run was asked to stop; returns the exit code.

    Args:
        saved: the step that it was saved at; None or 0 if there was nothing to save.
    """
    if world.is_main:
        folder.write_status("stopped", code=STOPPED, reason=stop.reason or "asked in another process")
        stop.obeyed()
    what = f"stopped at step {saved}, saved" if saved else "stopped before training"
    say(f"{what}: the same command goes on from here")
    return STOPPED


def build_objective(cfg: "DictConfig", hardware: "Hardware") -> "CycleGAN":
    """Networks, freshly initialised from the seed alone, and their losses.

    Raises:
        CommandError: a network outside the table, with which nobody could translate later.
    """
    import torch

    from cyclestyle import networks
    from cyclestyle.cyclegan import CycleGAN, Discriminators, Generators

    generators = Generators(config.build(cfg.generator), config.build(cfg.generator))
    discriminators = Discriminators(config.build(cfg.discriminator), config.build(cfg.discriminator))
    random = torch.Generator().manual_seed(cfg.seed)
    for group, network, table in (
        ("generator", generators.ab, networks.GENERATORS),
        ("discriminator", discriminators.a, networks.DISCRIMINATORS),
    ):
        if type(network) not in table.values():
            raise CommandError(
                f"{group}: {type(network).__name__} is not in the table of cyclestyle/networks/__init__.py, "
                f"so that nothing could read its checkpoints: add it there"
            )
    save_memory(generators, recompute=cfg.trainer.recompute)
    for module in (generators, discriminators):
        networks.initialize(module, generator=random)
        hardware.place(module)
    return CycleGAN(
        generators,
        discriminators,
        adversarial=config.build(cfg.adversarial),
        **config.pick(cfg.objective, CycleGAN),
        prepare=hardware.prepare,
    )


def choose_threads(
    resumed: "Resumed | None",
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


def build_trainer(cfg: "DictConfig", objective: "CycleGAN", data: "Unpaired", hardware: "Hardware") -> "Trainer":
    """The trainer, at step 0."""
    from cyclestyle.pool import ImagePool
    from cyclestyle.schedule import LinearDecay
    from cyclestyle.trainer import Optimizers, Pools, Trainer, averaged

    can_fuse = "fused" in inspect.signature(pkgutil.resolve_name(cfg.optimizer._target_)).parameters
    fused = {"fused": True} if can_fuse and hardware.device.type in ("cuda", "cpu") else {}
    optimizers = Optimizers(
        *(
            config.build(cfg.optimizer, params=list(module.parameters()), **fused)
            for module in (objective.generators, objective.discriminators)
        )
    )
    pools = Pools(
        *(
            ImagePool(cfg.pool.size, batch_size=cfg.trainer.batch_size, seed=cfg.seed, purpose=f"pool {side}")
            for side in ("a", "b")
        )
    )
    settings = config.pick(cfg.trainer, Trainer)
    if cfg.trainer.profile:  # which cannot tell the parts of a step apart whose kernels are launched together
        if settings["cuda_graphs"] is True:
            raise CommandError("trainer.cuda_graphs=true does not go with trainer.profile=true: leave one of them out")
        settings["cuda_graphs"] = False
    return Trainer(
        objective,
        optimizers,
        schedule=LinearDecay(**config.pick(cfg.schedule, LinearDecay)),
        epoch_draws=len(data.draws(cfg.seed)),
        pools=pools,
        average=averaged(objective.generators, cfg.ema.decay),
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


def start(trainer: "Trainer", domains: tuple[str, str], resumed: "Resumed | None", *, init: str | None) -> None:
    """Bring a trainer to where the run stood; else give it the weights of `init`; else leave it fresh.

    Raises:
        CheckpointError: the weights belong to other networks, or to the opposite directions.
    """
    from cyclestyle import networks
    from cyclestyle.checkpoint import read_model

    objective = trainer.objective
    if resumed is not None:
        checkpoint = resumed.checkpoint
        load_networks(checkpoint.model, objective)
        trainer.load_state_dict(checkpoint.training, checkpoint.ranks)
        restore_average(trainer, checkpoint.model)
    elif init is not None:
        model = read_model(Path(init))
        for group, theirs, ours in (
            ("generator", model.generator, objective.generators.ab.architecture),
            ("discriminator", model.discriminator, objective.discriminators.a.architecture),
        ):
            if (theirs := networks.complete(theirs)) != ours:
                raise CheckpointError(f"init={init}: its {group} is {_differences(theirs, ours)}")  # type: ignore[arg-type]
        if model.domains == domains[::-1] and domains != domains[::-1]:
            raise CheckpointError(
                f"init={init}: it was trained on {model.domains[0]} and {model.domains[1]}, here they are the other "
                f"way round: swap data.domain_a and data.domain_b, and their folders"
            )
        load_networks(model, objective)
        if trainer.average is not None:
            trainer.average.module.load_state_dict(model.part("generators."))


def load_networks(model: "Model", objective: "CycleGAN") -> None:
    """Put a model's weights into the networks.

    Raises:
        CheckpointError: they do not fit, with what is missing, left over or of another shape.
    """
    from cyclestyle.checkpoint import misfits

    modules: dict[str, nn.Module] = {"generators.": objective.generators, "discriminators.": objective.discriminators}
    for prefix, module in modules.items():
        if wrong := misfits(module.state_dict(), model.part(prefix)):
            fault = f"{model.path}: its weights {prefix}* do not fit the architecture that it names"
            raise CheckpointError("\n  ".join([fault, *wrong]))
    for prefix, module in modules.items():
        module.load_state_dict(model.part(prefix))


def restore_average(trainer: "Trainer", model: "Model") -> None:
    """Go on with the moving average where there was one; a newly wanted one starts from the weights of now."""
    if trainer.average is None:
        return
    trainer.average.module.load_state_dict(model.part("ema.") or model.part("generators."))


def model_of(trainer: "Trainer", domains: tuple[str, str]) -> "Model":
    """The networks as they are now."""
    from cyclestyle.checkpoint import Model

    objective = trainer.objective
    modules: dict[str, nn.Module] = {"generators": objective.generators, "discriminators": objective.discriminators}
    if trainer.average is not None:
        modules["ema"] = trainer.average.module
    return Model(
        tensors={
            f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
        },
        generator=dict(objective.generators.ab.architecture),  # type: ignore[arg-type]
        discriminator=dict(objective.discriminators.a.architecture),  # type: ignore[arg-type]
        domains=domains,
        step=trainer.step,
        path=Path(),
    )


def announce(
    say: Say, folder: "RunFolder", data: "Unpaired", trainer: "Trainer", resumed: "Resumed | None", chosen: Choice
) -> None:
    """One look at what starts: data, sizes, batch, hardware, length; and what has changed since the last start."""
    from cyclestyle.hardware import device_count

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


def _differences(theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    keys = [key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)]
    return ", ".join(f"{key}={theirs.get(key)} where the config says {ours.get(key)}" for key in keys)


def _next_commands(path: Path, domains: tuple[str, str]) -> str:
    direction = f"{domains[0]}2{domains[1]}"
    look = f"tensorboard --logdir {shlex.quote(str(path.parent))}   (or open the pictures in {path / 'samples'})"
    translate = f"checkpoint={shlex.quote(str(path))} input=FOLDER output=OUT direction={direction}"
    return f"  look:       {look}\n  translate:  python -m cyclestyle.translate {translate}"


def _say(line: str) -> None:
    """On standard output, if that can be written: whoever reads it may have gone before."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _silent(*_: object) -> None:
    """Only rank 0 speaks."""


if __name__ == "__main__":
    main()
