"""Code shared by the benchmarks: the baseline step, the package's training step, goals, and Markdown sections."""

import math
import os
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cyclestyle.assembly.trainer import graphed  # noqa: E402
from cyclestyle.data.dataset import Batch  # noqa: E402
from cyclestyle.distributed.world import World  # noqa: E402
from cyclestyle.hardware.device import Hardware  # noqa: E402
from cyclestyle.images.tensors import to_float  # noqa: E402
from cyclestyle.networks import PatchDiscriminator, ResNetGenerator, initialize  # noqa: E402
from cyclestyle.objectives.adversarial import LeastSquares  # noqa: E402
from cyclestyle.objectives.cyclegan import CycleGAN, Pools  # noqa: E402
from cyclestyle.objectives.image_pool import ImagePool  # noqa: E402
from cyclestyle.objectives.pairs import Discriminators, Generators  # noqa: E402
from cyclestyle.training.optimization import Optimizers  # noqa: E402
from cyclestyle.training.schedule import LinearDecay  # noqa: E402
from cyclestyle.training.trainer import Trainer  # noqa: E402
from cyclestyle.training.updater import Updater  # noqa: E402
from tests.reference_networks import ReferenceResNet  # noqa: E402
from tests.textbook import Textbook  # noqa: E402

Step = Callable[[int], Any]

SLACK = 0.1  # a goal may be missed by this share without failing the command, since the machine may be busy


class Row(NamedTuple):
    """A timed variant: its name, and the duration of each run in seconds."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        return f"{min(self.seconds):.2f} to {max(self.seconds):.2f}"


class Goal(NamedTuple):
    """A measured figure and the bound that it must meet."""

    name: str
    value: float
    bound: float
    at_least: bool = False  # whether `bound` is the smallest accepted value; otherwise it is the largest
    unit: str = ""

    @property
    def is_met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def is_missed_widely(self) -> bool:
        """True if the goal is missed by more than 10 %."""
        if self.at_least:
            return self.value < self.bound * (1 - SLACK)
        return self.value > self.bound * (1 + SLACK)

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED" if self.is_missed_widely else "missed by less than 10 %"
        relation = "at least" if self.at_least else "at most"
        return f"{self.name}: {self.value:.2f}{self.unit} (goal: {relation} {self.bound:g}{self.unit}), {verdict}"


def interleaved(steps: dict[str, Step], *, runs: int, warm: int = 2) -> list[Row]:
    """Time all steps in turn, `runs` times each, so that changes of the machine's speed affect all of them.

    Args:
        warm: number of warm-up runs of each step, which are not timed.
    """
    rows = [Row(name, []) for name in steps]
    for run in track(range(runs + warm), description="timing steps"):
        for row, step in zip(rows, steps.values(), strict=True):
            since = time.perf_counter()
            step(run)
            elapsed = time.perf_counter() - since
            if run >= warm:
                row.seconds.append(elapsed)
    return rows


def textbook_step(size: int, batch: int = 1, *, device: str = "cpu", channels: int = 64) -> Step:
    """Return the baseline step (tests/textbook.py) for the paper's networks, made of PyTorch's own modules."""
    random = torch.Generator().manual_seed(0)
    textbook = Textbook(
        ReferenceResNet(channels).to(device),
        ReferenceResNet(channels).to(device),
        plain_patch(channels).to(device),
        plain_patch(channels).to(device),
    )
    for network in (textbook.g_a, textbook.g_b, textbook.d_a, textbook.d_b):
        initialize(network, generator=random)

    def step(run: int) -> Any:
        images = random_batch(size, run, batch)
        return textbook.step(to_float(images.a.to(device)), to_float(images.b.to(device)))

    return step


def plain_patch(channels: int = 64) -> nn.Module:
    """The 70x70 PatchGAN discriminator as one flat sequence of PyTorch's modules."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for width, stride in ((channels, 2), (2 * channels, 2), (4 * channels, 1)):
        layers += [nn.Conv2d(width, 2 * width, 4, stride, 1), nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * channels, 1, 4, 1, 1))


def our_step(size: int, batch: int = 1, **settings: Any) -> Step:
    """Return the package's step for the same networks; like the baseline step, it ends with reading the losses.

    Args:
        settings: arguments for `our_trainer`.
    """
    trainer = our_trainer(batch=batch, **settings)

    def step(run: int) -> Any:
        losses = trainer.train_step(random_batch(size, run, batch))
        return dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))

    return step


def our_trainer(
    precision: Any = "auto",
    *,
    device: Any = "cpu",
    batch: int = 1,
    backward: Any = "split",
    recompute: bool = False,
    compile: bool = False,  # noqa: A002
    cuda_graphs: bool = False,
    channels: int = 64,
    pool: int = 50,
    world: World | None = None,
    hardware: Hardware | None = None,
) -> Trainer:
    """A trainer of the paper's networks, at step 0.

    Args:
        batch: batch size over all ranks.
        hardware: used in place of `precision`, `device`, `compile` and `world`.
    """
    hardware = hardware or Hardware(device, precision=precision, compile=compile, one_size=True, world=world)
    generators = Generators(ResNetGenerator(channels), ResNetGenerator(channels))
    discriminators = Discriminators(PatchDiscriminator(channels), PatchDiscriminator(channels))
    random = torch.Generator().manual_seed(0)
    for module in (generators, discriminators):
        initialize(module, generator=random)
        hardware.to_device(module, training=True)
    for generator in (generators.ab, generators.ba):
        generator.recompute = recompute  # type: ignore[assignment]
    objective = CycleGAN(
        generators,
        discriminators,
        adversarial=LeastSquares(),
        pools=Pools(*(ImagePool(pool, batch_size=batch, seed=0, purpose=f"pool {side}") for side in "ab")),
        backward=backward,
        prepare=hardware.wrap,
    )
    optimizers = Optimizers(
        **{
            name: torch.optim.Adam(list(parameters), 2e-4, betas=(0.5, 0.999), fused=True)
            for name, parameters in objective.parameters.items()
        }
    )
    updater = Updater(optimizers, hardware)
    return Trainer(
        objective,
        updater,
        schedule=LinearDecay(),
        samples_per_epoch=1000,
        average=None,
        hardware=hardware,
        seed=0,
        batch_size=batch,
        update=graphed(updater, objective, batch_size=batch, cuda_graphs=cuda_graphs),
    )


def shake(trainer: Trainer, seed: int) -> Trainer:
    """Perturb the generators' weights by up to 2^-9 of their size, the rounding error of bf16; return the trainer."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.objective.modules["generators"].parameters():
            noise = 2 * torch.rand(parameter.shape, generator=random) - 1
            parameter.mul_(1 + noise.to(parameter.device) / 2**9)
    return trainer


def random_batch(size: int, run: int, batch: int = 1) -> Batch:
    """Random images of both domains, (batch, 3, size, size) uint8; `run` determines the images."""
    random = torch.Generator().manual_seed(run)
    a, b = (torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=random) for _ in "ab")
    return Batch(a, b, list(range(run * batch, (run + 1) * batch)))


def table(head: str, rows: Sequence[tuple[object, ...]]) -> str:
    """Format a Markdown table; `head` has the names of the columns, separated by bars."""
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|---" * columns + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def filled(text: str) -> str:
    """Wrap a paragraph to lines of 118 characters."""
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def circumstances(command: str) -> str:
    """Markdown list of the circumstances of a measurement: command, machine, load and versions."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return f"""* command: `{command}`
* machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}
* load of the machine at the end: {busy:.1f}
* versions: Python {platform.python_version()}, PyTorch {torch.__version__}"""


def write_section(path: Path, title: str, text: str) -> None:
    """Write a section into a Markdown file; replace the section with the same title if there is one."""
    content = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    head, *sections = content.split("\n## ")
    sections = [section.strip("\n") for section in sections if section.partition("\n")[0] != title]
    sections = sorted([*sections, f"{title}\n\n{text.strip()}"])
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n## ".join([head.strip("\n"), *sections]) + "\n", encoding="utf-8")
    print(f"written to {path}")


def processor() -> str:
    """Name of the processor, and whether it has bf16 instructions."""
    capabilities = torch.cpu.get_capabilities()
    native = " with AVX-512 BF16" if capabilities.get("avx512_bf16") else ""
    return f"{capabilities.get('cpu_name', platform.processor())}{native}"
