"""`python -m cyclestyle.train`: train a CycleGAN from a config, and go on with it when called again."""

import inspect
import os
import pkgutil
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclestyle import config
from cyclestyle.errors import CheckpointError, CommandError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from cyclestyle.checkpoint import Checkpoint, Model
    from cyclestyle.cyclegan import CycleGAN
    from cyclestyle.data import Unpaired
    from cyclestyle.distributed import World
    from cyclestyle.hardware import Hardware
    from cyclestyle.trainer import Trainer

PROBES = 4  # pictures of each domain in the grids
EXIT_CODES = "CYCLESTYLE_EXIT_CODES"  # the environment's name for the folder where processes leave their exit codes


def main() -> None:
    """The command."""
    try:
        config.launch("train", run)
    except SystemExit as leaving:
        tell_exit_code(int(leaving.code or 0))
        raise


def run(cfg: "DictConfig") -> int:
    """Relaunch over several devices if asked to; else train in this process.

    Returns:
        The exit code: 0 finished, 75 stopped on request.
    """
    from cyclestyle import distributed, hardware
    from cyclestyle.trainer import check_batch

    if not distributed.launched():
        processes = process_count(cfg.trainer.devices, cfg.trainer.device)
        if processes > 1:
            check_batch(cfg.trainer.batch_size, ranks=processes, accumulate=cfg.trainer.accumulate)
            return relaunch(processes)
    with distributed.session(hardware.device_type(cfg.trainer.device)) as world:
        return train(cfg, world)


def train(cfg: "DictConfig", world: "World") -> int:
    """Build everything that the config names, then train until the end or until asked to stop."""
    from cyclestyle import distributed
    from cyclestyle.data import batches
    from cyclestyle.hardware import Hardware
    from cyclestyle.run import RunFolder
    from cyclestyle.signals import STOPPED, StopRequest
    from cyclestyle.trainer import check_batch

    say = print if world.is_main else _silent
    check_batch(cfg.trainer.batch_size, ranks=world.size, accumulate=cfg.trainer.accumulate)

    # What can be wrong is found first: the folder, the data, the networks. Then what the folder holds.
    folder = RunFolder(Path(cfg.run_dir), keep=cfg.checkpoint.keep, **config.pick(cfg.resume, RunFolder))
    with world.main_first():
        data: Unpaired = config.build(cfg.data)
    hardware = Hardware(**config.pick(cfg.trainer, Hardware), one_size=True, world=world)
    objective = build_objective(cfg, hardware)
    check_crop(cfg.data.crop_size, objective)

    recipe = config.plain(cfg)
    checkpoint = folder.resumable(recipe, data.files)
    start_from(cfg.init, checkpoint, objective)
    trainer = build_trainer(cfg, objective, data, hardware)
    if checkpoint is not None:
        trainer.load_state_dict(checkpoint.training, checkpoint.ranks)
        restore_average(trainer, checkpoint)
        if trainer.step >= trainer.total:
            say(
                f"{folder.path} finished at step {trainer.step}; set trainer.steps or trainer.epochs higher to continue"
            )
            return 0

    loggers: list[Any] = []
    if world.is_main:
        folder.prepare()
        folder.write_config(
            config.yaml(cfg, auto={"trainer.device": hardware.device.type, "trainer.precision": hardware.precision})
        )
        folder.write_status("running", step=trainer.step)
        about = {"folder": folder.path, "domains": data.domains, "start": trainer.step, "total": trainer.total}
        loggers = [config.build(node, **about) for node in cfg.logger.values() if node is not None]
    announce(say, folder.path, data, trainer, resumed=checkpoint is not None)

    def save() -> None:
        folder.checkpoints.save(
            model_of(trainer, data.domains),
            {**trainer.state_dict(), "recipe": recipe, "files": data.files},
            trainer.own_state_dict(),
            world=world,
        )

    with StopRequest(echo_s=3.0 if distributed.launched() else 0.0) as stop:
        try:
            finished = trainer.fit(
                batches(
                    data.draws(cfg.seed),
                    batch_size=trainer.batch_size,
                    start=trainer.step,
                    stop=trainer.total,
                    rank=world.rank,
                    ranks=world.size,
                    workers=data.workers,
                    pin=hardware.device.type == "cuda",
                ),
                save=save,
                loggers=loggers,
                probes=data.probes(PROBES) if world.is_main else None,
                stop_requested=stop,
            )
        except Exception as error:
            if world.is_main:
                reason = str(error).partition("\n")[0] or type(error).__name__
                folder.write_status("failed", code=getattr(error, "code", 1), reason=reason, step=trainer.step)
            raise
        finally:
            for logger in loggers:
                logger.close()

    if finished:
        if world.is_main:
            folder.write_status("finished", code=0, step=trainer.step)
        say(f"finished at step {trainer.step}: {folder.path}\n{_next_commands(folder.path, data.domains)}")
        return 0
    if world.is_main:
        folder.write_status("stopped", code=STOPPED, reason=stop.reason, step=trainer.step)
    say(f"stopped at step {trainer.step}, saved: the same command goes on from here")
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
    return Trainer(
        objective,
        optimizers,
        schedule=LinearDecay(**config.pick(cfg.schedule, LinearDecay)),
        epoch_draws=len(data.draws(cfg.seed)),
        pools=pools,
        average=averaged(objective.generators, cfg.ema.decay),
        hardware=hardware,
        seed=cfg.seed,
        **config.pick(cfg.trainer, Trainer),
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


def start_from(init: str | None, checkpoint: "Checkpoint | None", objective: "CycleGAN") -> None:
    """Give the networks the weights of the checkpoint to resume, else those of `init`, else leave them fresh.

    Raises:
        CheckpointError: the weights of `init` belong to other networks.
    """
    from cyclestyle.checkpoint import read_model

    if checkpoint is not None:
        load_networks(checkpoint.model, objective)
    elif init is not None:
        model = read_model(Path(init))
        for group, theirs, ours in (
            ("generator", model.generator, objective.generators.ab.architecture),
            ("discriminator", model.discriminator, objective.discriminators.a.architecture),
        ):
            if theirs != ours:
                raise CheckpointError(f"init={init}: its {group} is {_differences(theirs, ours)}")  # type: ignore[arg-type]
        load_networks(model, objective)


def load_networks(model: "Model", objective: "CycleGAN") -> None:
    """Put a model's weights into the networks."""
    try:
        objective.generators.load_state_dict(model.part("generators."))
        objective.discriminators.load_state_dict(model.part("discriminators."))
    except RuntimeError:
        raise CheckpointError(f"{model.path}: its weights do not fit the architecture that it names") from None


def restore_average(trainer: "Trainer", checkpoint: "Checkpoint") -> None:
    """Go on with the moving average where there was one; a newly wanted one starts from the weights of now."""
    if trainer.average is None:
        return
    saved = checkpoint.model.part("ema.")
    trainer.average.module.load_state_dict(saved or checkpoint.model.part("generators."))


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


def announce(say: Any, path: Path, data: "Unpaired", trainer: "Trainer", *, resumed: bool) -> None:
    """One look at what starts: data, sizes, batch, hardware, length."""
    from cyclestyle.hardware import device_count

    objective, world = trainer.objective, trainer.world
    sizes = [
        sum(p.numel() for p in module.parameters()) / 2e6 for module in (objective.generators, objective.discriminators)
    ]
    share = (
        f" = {world.size} processes x {trainer.accumulate} x {trainer.batch_size // world.size // trainer.accumulate}"
    )
    divided = world.size * trainer.accumulate > 1
    say(f"{path}: {'going on from' if resumed else 'from'} step {trainer.step} to {trainer.total}, {data}")
    say(
        f"global batch {trainer.batch_size}{share if divided else ''}, {trainer.hardware}, "
        f"2 generators of {sizes[0]:.1f} M parameters, 2 discriminators of {sizes[1]:.1f} M"
    )
    visible = device_count(trainer.hardware.device.type)
    if world.size == 1 and visible > 1:
        say(f"this machine has {visible} GPUs: trainer.devices=auto trainer.batch_size={visible} uses them all")


def process_count(devices: int | Literal["auto"], device: Literal["auto", "cpu", "cuda", "mps"]) -> int:
    """How many processes `trainer.devices` asks for.

    Raises:
        CommandError: more than there are devices.
    """
    from cyclestyle.hardware import device_count, device_type

    available = device_count(device)
    if devices == "auto":
        return available
    if devices < 1 or (device_type(device) != "cpu" and devices > available):
        raise CommandError(f"trainer.devices={devices}: this machine has {available} {device_type(device)} device(s)")
    return devices


def relaunch(processes: int) -> int:
    """Run this very command in several processes through torchrun; the exit code is the run's own."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    with tempfile.TemporaryDirectory(prefix="cyclestyle-") as folder:
        environment[EXIT_CODES] = folder
        arguments = ["--standalone", f"--nproc_per_node={processes}", "-m", "cyclestyle.train", *sys.argv[1:]]
        # In a session of its own: Ctrl-C on a terminal would reach the processes directly and through torchrun, twice.
        command = [sys.executable, "-m", "cyclestyle.launcher", *arguments]
        child = subprocess.Popen(command, env=environment, start_new_session=True)
        asked: list[int] = []

        def forward(number: int, _: object) -> None:
            asked.append(number)
            child.terminate()

        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return _own_code(Path(folder), code, asked=bool(asked))


def tell_exit_code(code: int) -> None:
    """Leave a word for the command that relaunched itself as this process; torchrun turns every failure into 1."""
    if folder := os.environ.get(EXIT_CODES):
        (Path(folder) / os.environ["RANK"]).write_text(str(code))


def _own_code(folder: Path, torchrun: int, *, asked: bool) -> int:
    """What the first process that failed said of it, where torchrun knows only that one did.

    Processes that were asked to stop before they had begun say nothing.
    """
    from cyclestyle.signals import STOPPED

    codes = [int(file.read_text()) for file in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)]
    failures = [code for code in codes if code]
    if failures or not torchrun:
        return failures[0] if failures else 0
    return STOPPED if asked else 1


def _differences(theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    keys = [key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)]
    return ", ".join(f"{key}={theirs.get(key)} where the config says {ours.get(key)}" for key in keys)


def _next_commands(path: Path, domains: tuple[str, str]) -> str:
    direction = f"{domains[0]}2{domains[1]}"
    look = f"tensorboard --logdir {shlex.quote(str(path.parent))}   (or open the pictures in {path / 'samples'})"
    translate = f"checkpoint={shlex.quote(str(path))} input=FOLDER output=OUT direction={direction}"
    return f"  look:       {look}\n  translate:  python -m cyclestyle.translate {translate}"


def _silent(*_: object) -> None:
    """Only rank 0 speaks."""


if __name__ == "__main__":
    main()
