"""Parts of the check on a GPU that compare numbers: with a CPU's, between precisions, and after a resume."""

import functools
import itertools
import math
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from gpu_report import Report
from gpu_scale import Device, Scale
from measuring import our_trainer, pictures, shake, table
from torch import Tensor, nn

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.data.dataset import Batch
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.distributed.world import World
from cyclestyle.errors import DivergedError
from cyclestyle.hardware.device import Hardware
from cyclestyle.images import decoding, tensors
from cyclestyle.training.trainer import Trainer

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def fp32(report: Report, scale: Scale) -> None:
    """Make one step in fp32, TF32 off, from the same weights as a CPU does: losses are within 1e-4, gradients 2 %."""
    here, cpu = (
        first_step(our_trainer(hardware=exact(device), channels=scale.channels), pictures(scale.size, 0))
        for device in (scale.device, "cpu")
    )
    report.check("losses, largest relative difference", loss_difference([here.losses], [cpu.losses]), 1e-4)
    for name in cpu.gradients:
        apart = gradient_difference(here.gradients[name], cpu.gradients[name])
        report.check(f"gradients of the {name}, largest relative difference of a parameter's", apart, 0.02)


class FirstStep(NamedTuple):
    """The losses and gradients of a step."""

    losses: dict[str, float]
    gradients: dict[str, dict[str, Tensor]]  # of generators and discriminators, by parameter


def first_step(trainer: Trainer, batch: Batch) -> FirstStep:
    """Make a step and keep the gradients that its optimizers see."""
    gradients: dict[str, dict[str, Tensor]] = {}

    def keep(name: str, module: nn.Module, *_: object) -> None:
        gradients[name] = {
            key: parameter.grad.detach().cpu().clone()
            for key, parameter in module.named_parameters()
            if parameter.grad is not None
        }

    objective, optimizers = trainer.objective, trainer.optimizers
    optimizers.generators.register_step_pre_hook(functools.partial(keep, "generators", objective.generators))
    optimizers.discriminators.register_step_pre_hook(
        functools.partial(keep, "discriminators", objective.discriminators)
    )
    return FirstStep(read_out(trainer.train_step(batch)), gradients)


def exact(device: Device, *, world: World | None = None, deterministic: bool = False) -> Hardware:
    """A device that computes in fp32 and nothing less."""
    hardware = Hardware(device, precision="fp32", deterministic=deterministic, world=world)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return hardware


def read_out(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Losses as numbers, without the scores, which may be as near to zero as they like."""
    return {name: value.item() for name, value in losses.items() if name.startswith("loss/")}


def loss_difference(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> float:
    """The largest relative difference of a loss in any step; NaN where one is not finite."""
    apart = [abs(one[name] / other[name] - 1) for one, other in zip(ours, theirs, strict=True) for name in other]
    return max(apart) if all(map(math.isfinite, apart)) else math.nan


def gradient_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest distance of a parameter's gradients, relative to their norm.

    Norms below a thousandth of the network's largest count as that much: the gradient of a bias before an instance norm
    is nothing but rounding.
    """
    norms = {name: gradient.norm().item() for name, gradient in theirs.items()}
    least = max(norms.values()) / 1000
    apart = [(ours[name] - theirs[name]).norm().item() / max(norm, least) for name, norm in norms.items()]
    return max(apart) if all(map(math.isfinite, apart)) else math.nan


def precisions(report: Report, scale: Scale) -> None:
    """Train in bf16, and in fp16 with its scaler: losses stay finite and their means near those of fp32.

    Near is 5 % for cycles and identities and 10 % for what discriminators take part in, in fp16 twice that, since its
    scaler leaves out updates at first; or, if that is more, as far as runs in fp32 from weights that were off by as
    little as bf16 rounds.
    """
    batches = list(scene_batches(scale.size, scale.steps))
    plain = course(our_trainer(hardware=exact(scale.device), channels=scale.channels), batches)
    shaken = [
        course(shake(our_trainer(hardware=exact(scale.device), channels=scale.channels), seed), batches)
        for seed in (1, 2, 3)
    ]
    for name, trainer in low_precisions(scale).items():
        low = course(trainer, batches)
        report.equal(f"{name}, steps with losses that are finite", low.finite_steps, scale.steps)
        lines: list[tuple[object, ...]] = []
        for loss, mean in plain.means.items():
            others = [abs(run.means[loss] / mean - 1) for run in shaken]
            near = 0.05 if loss.startswith(("loss/cycle", "loss/identity")) else 0.1
            bound = max(near * (2 if trainer.scaler.is_enabled() else 1), *others)
            apart = abs(low.means[loss] / mean - 1)
            report.check(f"{name}, mean of {loss} over {scale.steps} steps, apart from fp32", apart, bound)
            lines.append((loss, f"{mean:.3f}", f"{apart:.2%}", f"{min(others):.2%} to {max(others):.2%}"))
        report.text(table(f"loss | fp32 | {name} | fp32, from weights that were off", lines))
        if trainer.scaler.is_enabled():
            report.check(f"{name}, the scale at the end", low.scales[-1], 1, at_least=True)
            report.text(f"The scale in {name}: {changes(low.scales)}.")


def low_precisions(scale: Scale) -> dict[str, Trainer]:
    """A trainer of each; on a CPU fp32 with the scaler is the rehearsal of fp16, which a CPU has not."""
    if scale.device == "cuda":
        return {name: our_trainer(name, device="cuda", channels=scale.channels) for name in ("bf16", "fp16")}
    scaled = our_trainer("fp32", channels=scale.channels)
    scaled.scaler = torch.amp.GradScaler("cpu")
    return {"bf16": our_trainer("bf16", channels=scale.channels), "fp32, scaled": scaled}


class Course(NamedTuple):
    """Figures of a short training."""

    means: dict[str, float]  # of each loss over all steps
    finite_steps: int
    scales: list[float]  # of the scaler, after each step


def course(trainer: Trainer, batches: Sequence[Batch]) -> Course:
    """Train on these batches; gradients that are not finite count against the last step."""
    losses: list[dict[str, float]] = []
    scales: list[float] = []
    for batch in batches:
        losses.append(read_out(trainer.train_step(batch)))
        scales.append(trainer.scaler.get_scale())
    finite = sum(all(map(math.isfinite, step.values())) for step in losses)
    try:
        trainer.check_finite()
    except DivergedError as error:
        print(error, flush=True)
        finite -= 1
    return Course({name: statistics.fmean(step[name] for step in losses) for name in losses[0]}, finite, scales)


def changes(scales: Sequence[float]) -> str:
    """A course in words: where it began, and each step that changed it."""
    changed = [
        f"{now:g} after step {step}"
        for step, (before, now) in enumerate(itertools.pairwise(scales), 2)
        if now != before
    ]
    return ", ".join([f"{scales[0]:g} after step 1", *changed, f"{len(scales)} steps in all"])


def scene_batches(size: int, count: int) -> Iterator[Batch]:
    """Pairs of drawn landscapes, one at a time."""
    with tempfile.TemporaryDirectory(prefix="scenes-") as name:
        root = Path(name) / "scenes"
        draw(root, train=count, test=0, size=size)
        for index in range(count):
            a, b = (
                tensors.pil_to_uint8(decoding.read(root / folder / f"{index:04}.png"))[None]
                for folder in ("trainA", "trainB")
            )
            yield Batch(a, b, [index])


def resume(report: Report, scale: Scale) -> None:
    """Save halfway and resume, under `trainer.deterministic`: weights, moments and pools equal, bit for bit, those of a
    run that was not interrupted; in fp32 and in the precision that is used by default.
    """
    half = scale.steps // 2
    try:
        for precision in ("fp32", "auto"):
            fresh = functools.partial(deterministic_trainer, scale, precision)
            through, before, after = fresh(), fresh(), shake(fresh(), 1)
            for step in range(2 * half):
                through.train_step(pictures(scale.size, step))
            for step in range(half):
                before.train_step(pictures(scale.size, step))
            save_and_load(before, after, report.folder / f"checkpoints-{precision}")
            for step in range(half, 2 * half):
                after.train_step(pictures(scale.size, step))
            differing, compared = unequal(state(after), state(through))
            name = f"{precision} ({through.hardware.precision})"
            report.check(f"{name}, values compared", compared, 100, at_least=True)
            report.equal(f"{name}, values that differ after {half} + {half} steps", differing, 0)
    finally:
        torch.use_deterministic_algorithms(False)


def deterministic_trainer(scale: Scale, precision: Precision) -> Trainer:
    """A trainer with image pools so small that they give back earlier translations."""
    hardware = Hardware(scale.device, precision=precision, deterministic=True)
    return our_trainer(hardware=hardware, channels=scale.channels, pool=2)


def save_and_load(before: Trainer, after: Trainer, folder: Path) -> None:
    """Do what the command does when a run is stopped and started again."""
    from cyclestyle.run.folder import ResumePoint
    from cyclestyle.training.state import restore_or_init, snapshot_model

    shutil.rmtree(folder, ignore_errors=True)
    checkpoints, domains = Checkpoints(folder), ("a", "b")
    checkpoints.save(snapshot_model(before, domains), before.state_dict(), before.rank_state_dict(), world=World())
    found = checkpoints.load()
    assert found is not None
    restore_or_init(after, domains, ResumePoint(found, []), init=None)
    shutil.rmtree(folder)


def state(trainer: Trainer) -> dict[str, Any]:
    """All of it, the networks included."""
    networks = trainer.objective.generators, trainer.objective.discriminators
    return {
        "networks": [module.state_dict() for module in networks],
        "shared": trainer.state_dict(),
        "pools": trainer.rank_state_dict()["pools"],
    }


def unequal(ours: Any, theirs: Any) -> tuple[int, int]:
    """Tensors and other values in two nested states that differ, and how many were compared."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        if ours.keys() != theirs.keys():
            return 1, 1
        found = [unequal(ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list | tuple):
        found = [unequal(one, other) for one, other in zip(ours, theirs, strict=True)]
    elif isinstance(ours, Tensor):
        return int(not torch.equal(ours.cpu(), theirs.cpu())), 1
    else:
        return int(ours != theirs), 1
    return sum(differing for differing, _ in found), sum(compared for _, compared in found)
