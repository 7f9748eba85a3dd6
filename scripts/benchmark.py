"""Time one training step against the textbook's, interleaved in one run, and write down what was measured.

    python scripts/benchmark.py                               # print
    python scripts/benchmark.py --write docs/benchmarks.md    # and keep (`make bench`)

Exits with 1 when a goal is missed. The textbook step is tests/textbook.py: six separate generator calls, float32, plain
Adam.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cyclestyle.cyclegan import CycleGAN, Discriminators, Generators  # noqa: E402
from cyclestyle.data.draws import Batch  # noqa: E402
from cyclestyle.hardware import Hardware  # noqa: E402
from cyclestyle.images import to_float  # noqa: E402
from cyclestyle.losses import LeastSquares  # noqa: E402
from cyclestyle.networks import PatchDiscriminator, ResNetGenerator, initialize  # noqa: E402
from cyclestyle.pool import ImagePool  # noqa: E402
from cyclestyle.schedule import LinearDecay  # noqa: E402
from cyclestyle.trainer import Optimizers, Pools, Trainer  # noqa: E402
from tests.textbook import Textbook  # noqa: E402

GOAL = 0.6  # of the textbook step's time, at 128 px, 64 channels, 9 blocks, batch 1


class Row(NamedTuple):
    """One way of making a step, and the seconds that it took, run by run."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def main() -> int:
    """Measure, print, perhaps write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="counted steps of each kind, 7 or more (default 9)")
    parser.add_argument("--size", type=int, default=128, help="px, height and width (default 128)")
    parser.add_argument("--write", type=Path, help="a Markdown file to write the table into")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error("--runs: a median of fewer than 7 says little")

    rows = interleaved(
        {
            "textbook, fp32": textbook_step(arguments.size),
            "cyclestyle, fp32": our_step(arguments.size, "fp32"),
            "cyclestyle, trainer.precision=auto": our_step(arguments.size, "auto"),
        },
        runs=arguments.runs,
    )
    table = as_table(rows)
    ratio = rows[-1].median / rows[0].median
    verdict = f"trainer.precision=auto takes {ratio:.2f} of the textbook step (goal: at most {GOAL})"
    print(f"\n{table}\n\n{verdict}")
    if arguments.write:
        write_section(arguments.write, "A training step", page(table, verdict, arguments.size, arguments.runs))
    return 0 if ratio <= GOAL else 1


def interleaved(steps: dict[str, Callable[[int], Any]], *, runs: int) -> list[Row]:
    """Time every step in turn, so that a machine that changes its speed changes it for all; two runs warm up."""
    rows = [Row(name, []) for name in steps]
    for run in track(range(runs + 2), description="timing steps"):
        for row, step in zip(rows, steps.values(), strict=True):
            since = time.perf_counter()
            step(run)
            elapsed = time.perf_counter() - since
            if run >= 2:
                row.seconds.append(elapsed)
    return rows


def textbook_step(size: int) -> Callable[[int], Any]:
    """A step of the paper's networks as a textbook writes it."""
    generators, discriminators = networks()
    textbook = Textbook(generators.ab, generators.ba, discriminators.b, discriminators.a)

    def step(run: int) -> Any:
        batch = pictures(size, run)
        return textbook.step(to_float(batch.a), to_float(batch.b))

    return step


def our_step(size: int, precision: Any) -> Callable[[int], Any]:
    """The trainer's step with the same networks; reading out the losses is part of it, as in the textbook's."""
    trainer = our_trainer(precision)

    def step(run: int) -> Any:
        return {name: value.item() for name, value in trainer.train_step(pictures(size, run)).items()}

    return step


def our_trainer(precision: Any) -> Trainer:
    """A trainer of the paper's networks at batch 1."""
    hardware = Hardware("cpu", precision=precision)
    generators, discriminators = networks()
    hardware.place(generators)
    hardware.place(discriminators)
    optimizers = Optimizers(
        *(
            torch.optim.Adam(list(module.parameters()), 2e-4, betas=(0.5, 0.999), fused=True)
            for module in (generators, discriminators)
        )
    )
    return Trainer(
        CycleGAN(generators, discriminators, adversarial=LeastSquares(), prepare=hardware.prepare),
        optimizers,
        schedule=LinearDecay(),
        epoch_draws=1000,
        pools=Pools(*(ImagePool(50, batch_size=1, seed=0, purpose=f"pool {side}") for side in "ab")),
        average=None,
        hardware=hardware,
        seed=0,
    )


def networks() -> tuple[Generators, Discriminators]:
    """The paper's networks at 256 px and their initial weights."""
    generators = Generators(ResNetGenerator(), ResNetGenerator())
    discriminators = Discriminators(PatchDiscriminator(), PatchDiscriminator())
    random = torch.Generator().manual_seed(0)
    initialize(generators, generator=random)
    initialize(discriminators, generator=random)
    return generators, discriminators


def pictures(size: int, run: int) -> Batch:
    """Two random pictures, others in every run."""
    random = torch.Generator().manual_seed(run)
    a, b = (torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=random) for _ in "ab")
    return Batch(a, b, [run])


def as_table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| step | median s | min s | max s | of the textbook |", "|---|---|---|---|---|"]
    for row in rows:
        share = row.median / rows[0].median
        lines.append(
            f"| {row.name} | {row.median:.2f} | {min(row.seconds):.2f} | {max(row.seconds):.2f} | {share:.2f} |"
        )
    return "\n".join(lines)


def page(table: str, verdict: str, size: int, runs: int) -> str:
    """What docs/benchmarks.md says of it."""
    return f"""ResNet-9 generators with 64 channels, 70x70 discriminators, batch 1, {size} px, least squares, cycle and
identity losses, image pools of 50. All kinds of step run in turn in one process; {runs} counted runs of each after two
that warm up.

{circumstances(f"make bench` (`python scripts/benchmark.py --runs {runs} --size {size}")}

{table}

{verdict}.

The textbook step is `tests/textbook.py`: every picture in a generator call of its own, float32, unfused Adam. Ours
calls each generator twice a step instead of three times, with larger batches, fuses Adam and, where the hardware
multiplies it natively, computes the networks in bf16 (weights, losses and optimizer stay float32). Channels last was
tried on the CPU and did not help (CONTRIBUTING.md, Decisions). On a GPU: not measured.
"""


def circumstances(command: str) -> str:
    """Under which a table was made."""
    return f"""* command: `{command}`
* machine: {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}
* versions: Python {platform.python_version()}, PyTorch {torch.__version__}"""


def write_section(path: Path, title: str, text: str) -> None:
    """Put a section into a Markdown file, in the place of the one of that title."""
    found = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    head, *sections = found.split("\n## ")
    sections = [section.strip("\n") for section in sections if section.partition("\n")[0] != title]
    sections = sorted([*sections, f"{title}\n\n{text.strip()}"])
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n## ".join([head.strip("\n"), *sections]) + "\n", encoding="utf-8")
    print(f"written to {path}")


def processor() -> str:
    """The processor's name, with what matters for bf16."""
    capabilities = torch.cpu.get_capabilities()
    native = " with AVX-512 BF16" if capabilities.get("avx512_bf16") else ""
    return f"{capabilities.get('cpu_name', platform.processor())}{native}"


if __name__ == "__main__":
    sys.exit(main())
