"""Measure start-up time, and a training step's time and memory relative to a baseline step; compare these with goals.

    python scripts/benchmark.py                                      # print the goals (part of `make bench`)
    python scripts/benchmark.py --full --write docs/benchmarks.md    # every table (part of `make bench-full`)

Exits with 1 when a goal is missed by more than 10 %. The baseline step ("textbook" in the tables) is tests/textbook.py:
six separate generator calls, float32, plain Adam, PyTorch's own modules. All variants are timed in turn in one process;
memory is measured in a separate process for each variant.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gpu_tables
import torch
from gpu_tables import floating_point_operations
from measuring import (
    ROOT,
    Goal,
    Row,
    Step,
    circumstances,
    filled,
    interleaved,
    our_step,
    our_trainer,
    shake,
    table,
    textbook_step,
    write_section,
)
from rich.progress import track
from torch.nn.functional import conv2d

from cyclestyle.data import batches
from cyclestyle.data.unpaired import drawn_scenes
from cyclestyle.hardware.memory import resident_peak

TEXTBOOK, FP32, OURS, COMPILED = "textbook, fp32", "cyclestyle, fp32", "cyclestyle", "cyclestyle, compile=true"
WAYS: dict[str, Callable[[int, int], Step]] = {
    TEXTBOOK: textbook_step,
    FP32: lambda size, batch: our_step(size, batch, precision="fp32"),
    OURS: our_step,
    COMPILED: lambda size, batch: our_step(size, batch, compile=True),
}
MEMORY_WAYS: dict[str, Callable[[int], Step]] = {
    "textbook, fp32": textbook_step,
    "fp32, trainer.backward=joint": lambda size: our_step(size, precision="fp32", backward="joint"),
    "fp32": lambda size: our_step(size, precision="fp32"),
    "trainer.backward=joint": lambda size: our_step(size, backward="joint"),
    "defaults": our_step,
    "trainer.recompute=true": lambda size: our_step(size, recompute=True),
}


class Setting(NamedTuple):
    """Image size, batch size, and number of timed runs for one table of step times."""

    size: int  # px
    batch: int
    runs: int
    warm: int = 1  # number of warm-up runs, which are not timed


def main() -> int:
    """Measure and print the tables, write them if --write is given; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all sizes, batches and variants: over an hour on 2 cores")
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--write", type=Path, help="a Markdown file to write the tables into")
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "PX"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_here(arguments.peak[0], int(arguments.peak[1])))
        return 0

    goals: list[Goal] = []
    for title, section in SECTIONS.items():
        is_omitted = section in (loading, losses) and not (
            arguments.full or arguments.only
        )  # these sections take minutes
        if arguments.only not in (None, title) or is_omitted:
            continue
        text, section_goals = section(full=arguments.full)
        goals += section_goals
        print(f"\n{text}\n")
        if arguments.write:
            write_section(arguments.write, title, text)
    print("\n".join(map(str, goals)))
    return 1 if any(goal.is_missed_widely for goal in goals) else 0


def speed(*, full: bool) -> tuple[str, list[Goal]]:
    """Return the section on the time of a step and its share of the machine's multiplication rate, and the goals."""
    settings = [Setting(128, 1, runs=9, warm=2)]
    if full:
        settings += [Setting(256, 1, runs=7), Setting(128, 4, runs=7), Setting(256, 4, runs=3)]
    rates = {"fp32": 0.0, "auto": 0.0}
    lines: list[tuple[object, ...]] = []
    goals: list[Goal] = []
    timed: list[tuple[Setting, list[Row]]] = []
    for setting in settings:
        measure_rates(rates)  # repeated, since the machine's speed changes
        names = [TEXTBOOK, FP32, OURS, *([COMPILED] if full and setting == settings[0] else [])]
        rows = interleaved(
            {name: WAYS[name](setting.size, setting.batch) for name in names}, runs=setting.runs, warm=setting.warm
        )
        timed.append((setting, rows))
    measure_rates(rates)
    for setting, rows in timed:
        flops = floating_point_operations(setting.size) * setting.batch
        for row in rows:
            rate = rates["fp32" if "fp32" in row.name else "auto"]
            times = rows[0].median / row.median
            lines.append(
                (
                    *(f"{setting.size} px", setting.batch, row.name, setting.runs, f"{row.median:.2f}", row.spread),
                    *(f"{times:.2f}", f"{flops / row.median / 1e9:.0f}", f"{flops / row.median / rate:.0%}"),
                )
            )
        if setting == settings[0]:
            goals = [
                Goal(
                    f"{setting.size} px, {row.name}, times the textbook's speed",
                    rows[0].median / row.median,
                    1.0 if row.name == FP32 else 2.0,
                    at_least=True,
                    unit="x",
                )
                for row in rows[1:]
            ]
    about = filled(
        """ResNet-9 generators with 64 channels, 70x70 discriminators, least squares, cycle and identity losses, image
        pools of 50; `trainer.backward=split` and mixed precision unless otherwise noted. All ways take turns in one
        process."""
    )
    sizes = dict.fromkeys(setting.size for setting in settings)
    counted = ", ".join(f"{floating_point_operations(size) / 1e12:.2f} TFLOP at {size} px" for size in sizes)
    limit = filled(
        f"""* a 3x3 convolution of 256 channels at 64x64, forward, multiplies at {rates["fp32"] / 1e9:.0f} GFLOP/s in
        fp32 and {rates["auto"] / 1e9:.0f} in bf16; a step on one pair is {counted}, counted by PyTorch on the
        textbook's step. The last column is the share of that rate."""
    ).replace("\n", "\n  ")
    head = "pictures | batch | step | runs | median s | min to max s | times the textbook's speed | GFLOP/s | share"
    text = f"""{about}

{circumstances(command_line(full))}
{limit}

{table(head, lines)}

{listed(goals)}"""
    return text, goals


def speed_on_gpu(*, full: bool) -> tuple[str, list[Goal]]:
    """Return the section on a step's time on a GPU and the hours of the paper's horse2zebra schedule, and the goals."""
    if not torch.cuda.is_available():
        return f"Not measured: PyTorch finds no GPU here. Where it does, `{command_line(full)}` writes this table.", []
    ways = [gpu_tables.measured(gpu_tables.WAYS, batch) for batch in ((1, 8) if full else (1,))]
    rate, flops = gpu_tables.matrix_rate("cuda"), floating_point_operations(gpu_tables.SIZE, device="cuda")
    goals = gpu_tables.goals(ways, rate, flops)
    text = gpu_tables.section(ways, rate, flops, command=command_line(full))
    return f"{text}\n\n{listed(goals)}", goals


def measure_rates(rates: dict[str, float]) -> None:
    """Measure the machine's rates in operations/s; replace each rate in `rates` (name -> rate) that is exceeded."""
    for name, dtype in (("fp32", torch.float32), ("auto", torch.bfloat16)):
        rates[name] = max(rates[name], conv_rate(dtype))


def conv_rate(dtype: torch.dtype) -> float:
    """Floating point operations/s of the convolution used in residual blocks, from the fastest of twenty runs."""
    x = torch.randn(1, 256, 66, 66, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, dtype=dtype)
    seconds = []
    with torch.no_grad():
        for _ in range(20):
            since = time.perf_counter()
            conv2d(x, weight)
            seconds.append(time.perf_counter() - since)
    return 2 * 64 * 64 * 256 * 256 * 9 / min(seconds)


def memory(*, full: bool) -> tuple[str, list[Goal]]:
    """Return the section on peak memory in three steps (without the memory that imports use), and the goals."""
    sizes = [128, 256, 512, 1024] if full else [256]
    names = list(MEMORY_WAYS) if full else ["textbook, fp32", "defaults", "trainer.recompute=true"]
    peaks: dict[tuple[str, int], int | None] = {}
    for name in names:
        for size in sizes:
            peaks[name, size] = peak(name, size, peaks)
    rows = interleaved(
        {name: MEMORY_WAYS[name](256) for name in ("trainer.backward=joint", "defaults", "trainer.recompute=true")},
        runs=7 if full else 5,
        warm=1,
    )
    times = [(row.name, f"{row.median:.2f}", row.spread, f"{row.median / rows[0].median:.2f}") for row in rows]
    base = peaks["textbook, fp32", 256]
    default, recompute = peaks["defaults", 256], peaks["trainer.recompute=true", 256]
    assert base
    assert default
    assert recompute
    goals = [
        Goal("256 px, memory of the textbook's step, defaults", default / base, 0.5),
        Goal("256 px, memory of the textbook's step, trainer.recompute=true", recompute / base, 0.4),
        Goal("256 px, time of trainer.backward=joint, defaults", rows[1].median / rows[0].median, 1.1),
    ]
    about = filled(
        f"""Resident memory at its peak over three steps (two at 1024 px) at batch 1, each in a process of its own,
        above what the process held after its imports; in brackets the share of the textbook's.
        {forecast(peaks, names) if full else ""}"""
    )
    text = f"""{about}

{circumstances(command_line(full))}

{memory_table(peaks, names, sizes)}

Time of the same steps at 256 px, taking turns in one process:

{table("step | median s | min to max s | of joint", times)}

{listed(goals)}

On a GPU: not measured."""
    return text, goals


def memory_table(peaks: dict[tuple[str, int], int | None], names: list[str], sizes: list[int]) -> str:
    """Markdown table of peak memory; if there are several sizes, the last column extrapolates a line through two."""
    lines: list[tuple[object, ...]] = []
    for name in names:
        cells = []
        for size in sizes:
            held, base = peaks[name, size], peaks[names[0], size]
            share = f" ({held / base:.0%})" if held and base else ""
            cells.append(f"{held / 1e9:.2f} GB{share}" if held else "not measured")
        small, large = peaks[name, sizes[0]], peaks.get((name, 512))
        if small and large:
            growth = (large - small) / (512**2 - sizes[0] ** 2)
            cells.append(f"{(small - growth * sizes[0] ** 2) / 1e6:.0f} MB + {growth / 1e3:.1f} kB/px")
        lines.append((name, *cells))
    columns = ["step", *(f"{size} px" for size in sizes), *(["forecast"] if len(sizes) > 1 else [])]
    return table(" | ".join(columns), lines)


def forecast(peaks: dict[tuple[str, int], int | None], names: list[str]) -> str:
    """Text that explains the forecast column of the memory table, with the forecast's accuracy at 1024 px."""
    shares = []
    for name in names:
        small, large, held = (peaks[name, size] for size in (128, 512, 1024))
        if small and large and held:
            shares.append(held / (large + (large - small) / (512**2 - 128**2) * (1024**2 - 512**2)))
    seen = f" At 1024 px {min(shares):.0%} to {max(shares):.0%} of the forecast was measured." if shares else ""
    return f"""What would need more than nine tenths of this machine's memory was not measured. The forecast is the line
        through 128 and 512 px: bytes that are always there (weights, gradients, moments, the library's own) and bytes
        for each pixel of a crop.{seen}"""


def peak(name: str, size: int, before: dict[tuple[str, int], int | None]) -> int | None:
    """Peak memory of the variant `name` in bytes, measured in a new process; None if the machine has too little.

    Whether the memory suffices is estimated from the peak at half the size, if `before` contains it.
    """
    smaller = before.get((name, size // 2))
    if (name, size // 2) in before and (smaller is None or 4 * smaller > 0.9 * memory_of_machine()):
        return None
    print(f"memory: {name}, {size} px", flush=True)
    command = [sys.executable, __file__, "--peak", name, str(size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_here(name: str, size: int) -> int:
    """Peak memory in bytes of three steps (two from 1024 px on), minus this process's memory before the steps."""
    before = resident_peak()
    step = MEMORY_WAYS[name](size)
    for run in range(3 if size < 1024 else 2):
        step(run)
    return resident_peak() - before


def memory_of_machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def start_up(*, full: bool) -> tuple[str, list[Goal]]:
    """Return the section on the duration of imports, of --help and of the shortest training, and the goals."""
    python, turns = sys.executable, 7 if full else 3
    commands: dict[str, list[str]] = {
        "import torch": [python, "-c", "import torch"],
        "import torch, cyclestyle": [python, "-c", "import torch, cyclestyle"],
        **{
            f"{name} --help": [python, "-m", f"cyclestyle.{name}", "--help"]
            for name in ("train", "translate", "evaluate", "export")
        },
    }
    with tempfile.TemporaryDirectory(prefix="start-up-") as name:
        run = [f"run_dir={name}/run", f"data.root={name}/scenes", "trainer.steps=1", "trainer.device=cpu"]
        train = "train +experiment=smoke trainer.steps=1, from nothing to its end"
        commands[train] = [python, "-m", "cyclestyle.train", "+experiment=smoke", *run]
        rows = [Row(name, []) for name in commands]
        for turn in track(range(turns + 1), description="start-up"):
            for row, command in zip(rows, commands.values(), strict=True):
                command = [part.replace(f"{name}/", f"{name}/{turn}/") for part in command]
                since = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
                if turn:
                    row.seconds.append(time.perf_counter() - since)
    over = statistics.median(
        ours - alone for alone, ours in zip(rows[0].seconds, rows[1].seconds, strict=True)
    )  # difference within each pair of runs, since the machine's speed changes
    slowest = max(rows[2:-1], key=lambda row: row.median)
    goals = [
        Goal("import cyclestyle over import torch", max(over, 0.0), 0.3, unit=" s"),
        Goal(f"{slowest.name}, the slowest", slowest.median, 3.0, unit=" s"),
    ]
    lines: list[tuple[object, ...]] = [(f"`{row.name}`", f"{row.median:.2f}", row.spread) for row in rows]
    text = f"""{turns} processes each, in turn, after one that warms the disk's cache.

{circumstances(command_line(full))}

{table("command | median s | min to max s", lines)}

{listed(goals)}"""
    return text, goals


def loading(*, full: bool) -> tuple[str, list[Goal]]:
    """Section on the rate of loading images; without a goal, since a training step on a CPU takes far longer."""
    count = 400 if full else 100
    with tempfile.TemporaryDirectory(prefix="loading-") as name:
        data = drawn_scenes(
            f"{name}/scenes", train=40, test=2, size=286, resize="stretch", load_size=286, crop_size=256
        )
        draws = data.draws(0)
        lines: list[tuple[object, ...]] = []
        for workers in (0, 1, 2):
            steps = batches(draws, batch_size=1, start=0, stop=count, rank=0, ranks=1, workers=workers, pin=False)
            next(steps)
            since = time.perf_counter()
            for _ in steps:
                pass
            lines.append((workers, f"{(count - 1) / (time.perf_counter() - since):.0f}"))
    about = filled(
        f"""Pairs a second of {count}: two PNG files of 286 px each, read, cropped to 256 px and mirrored, with no
        training beside it."""
    )
    text = f"""{about}

{circumstances(command_line(full))}

{table("data.workers | pairs/s", lines)}"""
    return text, []


def losses(*, full: bool) -> tuple[str, list[Goal]]:
    """Section on the effect of bf16 on the losses, compared with the effect of rounding the initial weights to bf16."""
    count, size = 50, 128
    exact, rough = our_trainer("fp32"), our_trainer("bf16")
    shaken = [shake(our_trainer("fp32"), seed) for seed in range(1, 4)]
    histories: list[list[dict[str, float]]] = [[] for _ in (exact, rough, *shaken)]
    with tempfile.TemporaryDirectory(prefix="losses-") as name:
        data = drawn_scenes(
            f"{name}/scenes", train=count, test=2, size=size, resize="stretch", load_size=size, crop_size=size
        )
        pairs = batches(data.draws(0), batch_size=1, start=0, stop=count, rank=0, ranks=1, workers=0, pin=False)
        for batch in track(pairs, total=count, description="losses"):
            for trainer, steps in zip((exact, rough, *shaken), histories, strict=True):
                steps.append({key: value.item() for key, value in trainer.train_step(batch).items()})
    lines: list[tuple[object, ...]] = []
    goals: list[Goal] = []
    for loss in (key for key in histories[0][0] if key.startswith("loss/")):
        mean, *others = (statistics.mean(step[loss] for step in steps) for steps in histories)
        bf16, *perturbed = (abs(other / mean - 1) for other in others)
        spread = f"{min(perturbed):.2%} to {max(perturbed):.2%}"
        lines.append((loss.removeprefix("loss/"), f"{mean:.3f}", f"{bf16:.2%}", spread))
        bound = 0.05 if loss.startswith(("loss/cycle", "loss/identity")) else 0.1
        goals.append(Goal(f"{loss} over {count} steps in bf16, apart from fp32", bf16, bound))
    about = filled(
        f"""The mean of each loss over the first {count} steps on drawn landscapes of {size} px (ResNet-9, 64 channels,
        batch 1, seed 0) in float32, and how far the same run in bf16 is apart from that. Training amplifies the least
        difference: for comparison {len(shaken)} runs in float32 whose generators began with weights that were off by up
        to 2^-9 of their size, as far as bf16 rounds. Bounds: 5 % for cycles and identities, 10 % for what
        discriminators take part in."""
    )
    text = f"""{about}

{circumstances(command_line(full))}

{table("loss | fp32 | bf16 | fp32, from weights that were off", lines)}

{listed(goals)}"""
    return text, goals


def command_line(full: bool) -> str:
    return f"python scripts/benchmark.py{' --full' if full else ''}"


def listed(goals: list[Goal]) -> str:
    return "\n".join(f"* {goal}" for goal in goals)


SECTIONS = {
    "A training step": speed,
    "A training step on a GPU": speed_on_gpu,
    "Memory of a step": memory,
    "Start-up": start_up,
    "Loading": loading,
    "Losses in mixed precision": losses,
}


if __name__ == "__main__":
    sys.exit(main())
