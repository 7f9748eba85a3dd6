"""Parts of the GPU check that compare values: GPU and CPU, low precisions and fp32, resumed and uninterrupted runs."""

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
from measuring import our_trainer, random_batch, shake, table
from torch import Tensor, nn

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.data.dataset import Batch
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.distributed.world import World
from cyclestyle.errors import DivergedError
from cyclestyle.hardware.device import Hardware
from cyclestyle.images import reading, tensors
from cyclestyle.training.trainer import Trainer

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def fp32(report: Report, scale: Scale) -> None:
    """Compare one step in fp32 without TF32 with the same step on a CPU: losses within 1e-4, gradients within 2 %."""
    device, cpu = (
        first_step(our_trainer(hardware=exact(name), channels=scale.channels), random_batch(scale.size, 0))
        for name in (scale.device, "cpu")
    )
    report.check("losses, largest relative difference", loss_difference([device.losses], [cpu.losses]), 1e-4)
    for name in cpu.gradients:
        difference = gradient_difference(device.gradients[name], cpu.gradients[name])
        report.check(f"gradients of the {name}, largest relative difference of a parameter", difference, 0.02)


class FirstStep(NamedTuple):
    """Losses and gradients of the first training step."""

    losses: dict[str, float]
    gradients: dict[str, dict[str, Tensor]]  # generators or discriminators -> parameter -> gradient


def first_step(trainer: Trainer, batch: Batch) -> FirstStep:
    """Train one step; return its losses, and the gradients that the optimizers receive."""
    gradients: dict[str, dict[str, Tensor]] = {}

    def store(name: str, module: nn.Module, *_: object) -> None:
        gradients[name] = {
            key: parameter.grad.detach().cpu().clone()
            for key, parameter in module.named_parameters()
            if parameter.grad is not None
        }

    for name, module in trainer.objective.modules.items():
        trainer.updater.optimizers[name].register_step_pre_hook(functools.partial(store, name, module))
    return FirstStep(to_numbers(trainer.train_step(batch)), gradients)


def exact(device: Device, *, world: World | None = None, deterministic: bool = False) -> Hardware:
    """Return a `Hardware` that computes in fp32, and switch TF32 off."""
    hardware = Hardware(device, precision="fp32", deterministic=deterministic, world=world)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return hardware


def to_numbers(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Convert losses to numbers; omit scores, which may be so close to zero that relative differences mean nothing."""
    return {name: value.item() for name, value in losses.items() if name.startswith("loss/")}


def loss_difference(actual: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, float]]) -> float:
    """The largest relative difference between equally named losses in any step; NaN if a loss is not finite."""
    differences = [
        abs(one[name] / other[name] - 1) for one, other in zip(actual, expected, strict=True) for name in other
    ]
    return max(differences) if all(map(math.isfinite, differences)) else math.nan


def gradient_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest distance between `actual` and `expected` gradient of a parameter; NaN if one is not finite.

    Each distance is divided by the norm of the expected gradient. A thousandth of the network's largest norm replaces
    smaller norms, since the gradient of a bias before an instance norm is only rounding error.
    """
    norms = {name: gradient.norm().item() for name, gradient in expected.items()}
    floor = max(norms.values()) / 1000
    distances = [(actual[name] - expected[name]).norm().item() / max(norm, floor) for name, norm in norms.items()]
    return max(distances) if all(map(math.isfinite, distances)) else math.nan


def precisions(report: Report, scale: Scale) -> None:
    """Check that losses in bf16, and in fp16 with a gradient scaler, are finite, with means close to those in fp32.

    The bound is 5 % for cycle and identity losses and 10 % for losses that depend on a discriminator. In fp16 the
    bound is doubled, since the scaler skips the first updates. For comparison, fp32 runs
    start from weights perturbed by up to the rounding error of bf16; if their mean losses differ from those of the
    unperturbed run by more than the bound, this difference is the bound.
    """
    batches = list(scene_batches(scale.size, scale.steps))
    exact_run = course(our_trainer(hardware=exact(scale.device), channels=scale.channels), batches)
    shaken = [
        course(shake(our_trainer(hardware=exact(scale.device), channels=scale.channels), seed), batches)
        for seed in (1, 2, 3)
    ]
    for name, trainer in low_precisions(scale).items():
        low = course(trainer, batches)
        report.equal(f"{name}, steps with finite losses", low.finite_steps, scale.steps)
        lines: list[tuple[object, ...]] = []
        for loss, mean in exact_run.means.items():
            others = [abs(run.means[loss] / mean - 1) for run in shaken]
            share = 0.05 if loss.startswith(("loss/cycle", "loss/identity")) else 0.1
            bound = max(share * (2 if trainer.updater.scaler.is_enabled() else 1), *others)
            difference = abs(low.means[loss] / mean - 1)
            report.check(f"{name}, mean of {loss} over {scale.steps} steps, apart from fp32", difference, bound)
            lines.append((loss, f"{mean:.3f}", f"{difference:.2%}", f"{min(others):.2%} to {max(others):.2%}"))
        report.text(table(f"loss | fp32 | {name} | fp32, from weights that were off", lines))
        if trainer.updater.scaler.is_enabled():
            report.check(f"{name}, the scale at the end", low.scales[-1], 1, at_least=True)
            report.text(f"The scale in {name}: {changes(low.scales)}.")


def low_precisions(scale: Scale) -> dict[str, Trainer]:
    """Name -> trainer for bf16 and fp16; on a CPU, which lacks fp16, fp32 with a gradient scaler replaces fp16."""
    if scale.device == "cuda":
        return {name: our_trainer(name, device="cuda", channels=scale.channels) for name in ("bf16", "fp16")}
    scaled = our_trainer("fp32", channels=scale.channels)
    scaled.updater.scaler = torch.amp.GradScaler("cpu")
    return {"bf16": our_trainer("bf16", channels=scale.channels), "fp32, scaled": scaled}


class Course(NamedTuple):
    """Losses and loss scales of a short training."""

    means: dict[str, float]  # mean of each loss over all steps
    finite_steps: int
    scales: list[float]  # loss scale after each step


def course(trainer: Trainer, batches: Sequence[Batch]) -> Course:
    """Train on these batches; a non-finite gradient makes the last step count as not finite."""
    losses: list[dict[str, float]] = []
    scales: list[float] = []
    for batch in batches:
        losses.append(to_numbers(trainer.train_step(batch)))
        scales.append(trainer.updater.scaler.get_scale())
    finite = sum(all(map(math.isfinite, step.values())) for step in losses)
    try:
        trainer.updater.check_finite(trainer.step)
    except DivergedError as error:
        print(error, flush=True)
        finite -= 1
    return Course({name: statistics.fmean(step[name] for step in losses) for name in losses[0]}, finite, scales)


def changes(scales: Sequence[float]) -> str:
    """Describe the gradient scaler's loss scale: its value after the first step, and each later value with its step."""
    changed = [
        f"{now:g} after step {step}"
        for step, (before, now) in enumerate(itertools.pairwise(scales), 2)
        if now != before
    ]
    return ", ".join([f"{scales[0]:g} after step 1", *changed, f"{len(scales)} steps in all"])


def scene_batches(size: int, count: int) -> Iterator[Batch]:
    """Yield `count` batches, each with one pair of synthetic landscapes of `size` px."""
    with tempfile.TemporaryDirectory(prefix="scenes-") as name:
        root = Path(name) / "scenes"
        draw(root, train=count, test=0, size=size)
        for index in range(count):
            a, b = (
                tensors.pil_to_uint8(reading.read_8_bit(root / folder / f"{index:04}.png"))[None]
                for folder in ("trainA", "trainB")
            )
            yield Batch(a, b, [index])


def resume(report: Report, scale: Scale) -> None:
    """Check that a run saved halfway and resumed equals an uninterrupted run, in fp32 and in the default precision.

    Both runs are deterministic; their weights, Adam moments and image pools are compared bit for bit.
    """
    half = scale.steps // 2
    try:
        for precision in ("fp32", "auto"):
            fresh = functools.partial(deterministic_trainer, scale, precision)
            uninterrupted, before, after = fresh(), fresh(), shake(fresh(), 1)
            for step in range(2 * half):
                uninterrupted.train_step(random_batch(scale.size, step))
            for step in range(half):
                before.train_step(random_batch(scale.size, step))
            save_and_load(before, after, report.folder / f"checkpoints-{precision}")
            for step in range(half, 2 * half):
                after.train_step(random_batch(scale.size, step))
            differing, compared = unequal(state(after), state(uninterrupted))
            name = f"{precision} ({uninterrupted.hardware.precision})"
            report.check(f"{name}, values compared", compared, 100, at_least=True)
            report.equal(f"{name}, values that differ after {half} + {half} steps", differing, 0)
    finally:
        torch.use_deterministic_algorithms(False)


def deterministic_trainer(scale: Scale, precision: Precision) -> Trainer:
    """A deterministic trainer with image pools of 2, small enough to return earlier translations."""
    hardware = Hardware(scale.device, precision=precision, deterministic=True)
    return our_trainer(hardware=hardware, channels=scale.channels, pool=2)


def save_and_load(before: Trainer, after: Trainer, folder: Path) -> None:
    """Save the state of trainer `before` and load it into trainer `after`, as a stop and a resume would."""
    from cyclestyle.run.folder import ResumePoint
    from cyclestyle.training.state import restore_or_init, snapshot_model

    shutil.rmtree(folder, ignore_errors=True)
    checkpoints, domains = Checkpoints(folder), ("a", "b")
    checkpoints.save(snapshot_model(before, domains), before.state_dict(), before.rank_state_dict(), world=World())
    checkpoint = checkpoints.load()
    assert checkpoint is not None
    restore_or_init(after, domains, ResumePoint(checkpoint, []), init=None)
    shutil.rmtree(folder)


def state(trainer: Trainer) -> dict[str, Any]:
    """The whole state of a trainer as nested dicts and lists, including its networks' weights."""
    networks = trainer.objective.modules.values()
    return {
        "networks": [module.state_dict() for module in networks],
        "shared": trainer.state_dict(),
        "pools": trainer.rank_state_dict()["pools"],
    }


def unequal(actual: Any, expected: Any) -> tuple[int, int]:
    """Return how many values differ between two nested states, and how many were compared."""
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        if actual.keys() != expected.keys():
            return 1, 1
        counts = [unequal(actual[key], expected[key]) for key in actual]
    elif isinstance(actual, list | tuple):
        counts = [unequal(one, other) for one, other in zip(actual, expected, strict=True)]
    elif isinstance(actual, Tensor):
        return int(not torch.equal(actual.cpu(), expected.cpu())), 1
    else:
        return int(actual != expected), 1
    return sum(differing for differing, _ in counts), sum(compared for _, compared in counts)
