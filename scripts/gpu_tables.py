"""Time and memory of a training step on a GPU, for benchmark.py and gpu_check.py."""

import functools
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from measuring import Goal, Step, circumstances, filled, interleaved, our_step, table, textbook_step
from torch.utils.flop_counter import FlopCounterMode

HORSE2ZEBRA = 1334  # pairs of an epoch: the number of zebras, the larger domain
SIZE = 256  # px
MATRIX = 8192  # rows and columns of the multiplied matrices

TEXTBOOK, EXACT_TEXTBOOK = "textbook, PyTorch's defaults (TF32 in convolutions)", "textbook, TF32 off"
OURS, GRAPHS, COMPILED = "cyclestyle", "cyclestyle, cuda_graphs=true", "cyclestyle, compile=true"
WAYS = (TEXTBOOK, EXACT_TEXTBOOK, OURS, GRAPHS, COMPILED)


class Memory(NamedTuple):
    """GPU memory in bytes: allocated and reserved."""

    allocated: int  # memory of tensors
    reserved: int  # memory that the process reserves on the GPU for tensors


class Way(NamedTuple):
    """A variant of the training step, with its times and its peak of GPU memory."""

    name: str
    batch: int
    seconds: list[float]
    peak: Memory  # without the memory of other variants

    @property
    def is_ours(self) -> bool:
        return self.name not in (TEXTBOOK, EXACT_TEXTBOOK)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measured(
    names: Sequence[str],
    batch: int,
    *,
    device: str = "cuda",
    size: int = SIZE,
    channels: int = 64,
    runs: int = 30,
    warm: int = 8,
) -> list[Way]:
    """Time the variants `names` in turn; measure the peak memory of each variant beforehand, during its warm-up."""
    steps: dict[str, Step] = {}
    peaks: dict[str, Memory] = {}
    for name in names:
        before = memory_now(device)
        steps[name] = make(name, size, batch, device=device, channels=channels)
        for run in range(warm):
            steps[name](run)
        peaks[name] = peak_since(before, device)
    rows = interleaved(steps, runs=runs, warm=1)
    return [Way(row.name, batch, row.seconds, peaks[row.name]) for row in rows]


def make(name: str, size: int, batch: int, *, device: str, channels: int) -> Step:
    """Create the step of the variant `name`; each call of the step first sets PyTorch's switches for this variant."""

    def switched(step: Step, *, tf32: bool, search: bool) -> Step:
        def switched_step(run: int) -> object:
            torch.backends.cuda.matmul.allow_tf32 = tf32 and search
            with torch.backends.cudnn.flags(enabled=True, benchmark=search, deterministic=False, allow_tf32=tf32):
                return step(run)

        return switched_step

    if name in (TEXTBOOK, EXACT_TEXTBOOK):
        step = textbook_step(size, batch, device=device, channels=channels)
        return switched(step, tf32=name == TEXTBOOK, search=False)
    settings: dict[str, dict[str, bool]] = {OURS: {}, GRAPHS: {"cuda_graphs": True}, COMPILED: {"compile": True}}
    step = our_step(size, batch, device=device, channels=channels, **settings[name])
    return switched(step, tf32=True, search=True)


def memory_now(device: str) -> Memory:
    """Return the present GPU memory, and reset its peak; zero on a CPU, where PyTorch does not count memory."""
    if device != "cuda":
        return Memory(0, 0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return Memory(torch.cuda.memory_allocated(), torch.cuda.memory_reserved())


def peak_since(before: Memory, device: str) -> Memory:
    """Peak of GPU memory since the call of `memory_now` that returned `before`, minus `before`."""
    if device != "cuda":
        return Memory(0, 0)
    return Memory(
        torch.cuda.max_memory_allocated() - before.allocated, torch.cuda.max_memory_reserved() - before.reserved
    )


def matrix_rate(device: str, size: int = MATRIX) -> float:
    """Floating point operations/s of a bf16 product of `size` x `size` matrices, from the fastest of twenty."""
    one, other = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = []
    for _ in range(20):
        since = time.perf_counter()
        (one @ other)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - since)
    return 2 * size**3 / min(seconds)


@functools.cache
def floating_point_operations(size: int, *, device: str = "cpu", channels: int = 64) -> int:
    """Number of floating point operations of the baseline step on one pair of images."""
    with FlopCounterMode(display=False) as counter:
        textbook_step(size, device=device, channels=channels)(0)
    return int(counter.get_total_flops())


def goals(results: Sequence[Sequence[Way]], rate: float, flops: int) -> list[Goal]:
    """Return goals: a multiple of the baseline step's speed at batch 1, a share of the matrix rate at larger batches.

    Args:
        results: timed variants of each batch size, the baseline step first.
        rate: result of `matrix_rate`.
        flops: floating point operations for one pair.
    """
    batch_goals = []
    for ways in results:
        textbook, best, batch = ways[0], min(way.median for way in ways if way.is_ours), ways[0].batch
        assert textbook.name == TEXTBOOK
        if batch == 1:
            batch_goals.append(Goal("GPU, batch 1, times the textbook's speed", textbook.median / best, 5.0, True, "x"))
        else:
            share = flops * batch / best / rate
            batch_goals.append(Goal(f"GPU, batch {batch}, share of the bf16 matrix rate", share, 0.4, at_least=True))
    return batch_goals


def section(
    results: Sequence[Sequence[Way]], rate: float, flops: int, *, command: str, size: int = SIZE, matrix: int = MATRIX
) -> str:
    """Section `A training step on a GPU` of docs/benchmarks.md without its goals; arguments as in `goals`."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, a rehearsal"
    about = filled(
        f"""The step of the table above at {size} px on {name}, which multiplies two matrices of {matrix}x{matrix}
        in bf16 at {rate / 1e12:.3g} TFLOP/s. All read their losses out at every step. Memory is the peak of a way
        alone: that of its tensors, and what the process takes from the GPU for them. Pictures are those of both
        domains. The last column is 200 epochs of {HORSE2ZEBRA:,} draws, horse2zebra's full schedule, as far as steps
        alone go."""
    )
    lines = [line(way, ways[0], rate, flops) for ways in results for way in ways]
    head = (
        "batch | step | median ms | min to max ms | times the textbook's speed | pictures/s | share | memory, MB | "
        "hours of the schedule"
    )
    return f"{about}\n\n{circumstances(command)}\n\n{table(head, lines)}"


def line(way: Way, textbook: Way, rate: float, flops: int) -> tuple[object, ...]:
    """Row of the table for one variant; `textbook` is the baseline step."""
    return (
        *(way.batch, way.name, f"{1000 * way.median:.1f}"),
        f"{1000 * min(way.seconds):.1f} to {1000 * max(way.seconds):.1f}",
        *(f"{textbook.median / way.median:.2f}", f"{2 * way.batch / way.median:.0f}"),
        *(
            f"{flops * way.batch / way.median / rate:.0%}",
            f"{way.peak.allocated / 1e6:.0f}, {way.peak.reserved / 1e6:.0f}",
        ),
        f"{200 * HORSE2ZEBRA / way.batch * way.median / 3600:.1f}",
    )
