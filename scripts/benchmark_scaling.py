"""Measure the overhead of training with two processes, and estimate the scaling to 8 and 64 GPUs from it.

    python scripts/benchmark_scaling.py                          # print
    python scripts/benchmark_scaling.py --write docs/scaling.md  # also write the tables

torchrun starts two processes with one thread each; while one process is timed alone, the other sleeps.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from measuring import circumstances, our_trainer, write_section
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cyclestyle.data.dataset import Batch
from cyclestyle.distributed.world import World, launched, session
from cyclestyle.networks import PatchDiscriminator, ResNetGenerator, initialize
from cyclestyle.objectives.pairs import Discriminators, Generators

GIGABIT = 1e9 / 8  # bytes


class Network(NamedTuple):
    """Connection between GPUs; the bandwidth of the slowest link in a ring of these GPUs is assumed, not measured."""

    name: str
    gpus: int
    bytes_per_s: float


NETWORKS = (
    Network("8 GPUs, NVLink, 200 GB/s", 8, 200e9),
    Network("8 GPUs, PCIe, 10 GB/s", 8, 10e9),
    Network("8 x 8, 200 Gbit/s", 64, 200 * GIGABIT),
    Network("8 x 8, 100 Gbit/s", 64, 100 * GIGABIT),
    Network("8 x 8, 10 Gbit/s", 64, 10 * GIGABIT),
)
STEPS_MS = (20, 50, 100, 200)  # assumed times of one GPU for its share of a step


class Bucket(NamedTuple):
    """Gradients that are sent together; `lead` is the time from their completion to the end of the backward pass."""

    bytes: int
    lead: float  # processor time in s, or a share of a step


class LocalWorld(World):
    """A world whose processes accumulate their own gradients and never average them."""

    @contextmanager
    def accumulating(self, *, more_to_come: bool) -> Iterator[None]:
        with super().accumulating(more_to_come=True):
            yield


class CopyingWorld(World):
    """A world whose averaged gradients are copied from the buckets instead of being views of them."""

    def synchronize(self, module: nn.Module, device: torch.device) -> nn.Module:
        with warnings.catch_warnings():  # World.synchronize suppresses the same warning
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(module, broadcast_buffers=False)
        self._wrapped.append(wrapped)
        return wrapped


class SilentWorld(World):
    """A world that fills buckets with gradients and records when they are ready, but sends nothing.

    It records processor times, which other work on the machine affects less than wall-clock times. No process waits
    here, so processor times include everything.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.passes: list[list[Bucket]] = []  # buckets of each averaged backward pass
        self._ready: list[tuple[int, float]] = []

    def synchronize(self, module: nn.Module, device: torch.device) -> nn.Module:
        wrapped = super().synchronize(module, device)
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped.register_comm_hook(self, SilentWorld._record)
        return wrapped

    @contextmanager
    def accumulating(self, *, more_to_come: bool) -> Iterator[None]:
        with super().accumulating(more_to_come=more_to_come):
            yield
        if not more_to_come:
            end = time.process_time()
            self.passes.append([Bucket(size, end - ready) for size, ready in self._ready])
            self._ready.clear()

    def _record(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
        gradients = bucket.buffer()
        self._ready.append((gradients.nbytes, time.process_time()))
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(gradients)
        return done


class Measured(NamedTuple):
    """Results of all rounds: times in seconds are those of the slower process; lists have one entry per round."""

    rows: dict[str, list[float]]
    cpu: dict[str, list[float]]  # processor time of one process for the same rows, including the time of sending
    gradients: dict[str, int]  # bytes by pair of networks, counted from the parameters
    buckets: dict[str, list[list[Bucket]]]  # trainer.backward -> a step's two averaged passes, with median leads
    heartbeat_s: float
    agreement_s: float
    load: float  # runnable processes of the machine before the measurement, mean of one minute


ALONE, ALONE_2 = "one process, batch 1", "one process, batch 2"
LOCAL, SILENT, SILENT_JOINT = "nothing averaged", "buckets filled, nothing sent", "the same, trainer.backward=joint"
AVERAGED, SENT = "two processes, batch 2", "the all-reduces alone"
IN_VIEWS, COPIED = "gradients of nothing, averaged", "the same without bucket views"


def main() -> int:
    """Start the two processes, or measure as one of them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--size", type=int, default=64, help="height and width of images in px (default 64)")
    parser.add_argument(
        "--channels", type=int, default=64, help="channels of generators and discriminators (default 64)"
    )
    parser.add_argument("--write", type=Path, help="a Markdown file to write the tables into")
    arguments = parser.parse_args()
    if not launched():
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        return subprocess.run([*command, __file__, *sys.argv[1:]], check=False).returncode

    torch.set_num_threads(1)
    with session("cpu") as world:
        measured = measure(world, arguments.runs, size=arguments.size, channels=arguments.channels)
        if world.is_main:
            sections = {
                "Measured on two cores": measured_section(measured, arguments),
                "On paper: 8 GPUs and 8 x 8": paper_section(measured),
            }
            for title, text in sections.items():
                print(f"\n## {title}\n\n{text}")
                if arguments.write:
                    write_section(arguments.write, title, text)
    return 0


def measure(world: World, runs: int, *, size: int, channels: int) -> Measured:
    """Time all kinds of step in turn for `runs` rounds, so that changes of the machine's speed affect all kinds."""

    def stepping(ranks: World, batch_size: int, backward: Any = "split") -> Callable[[int], Any]:
        trainer = our_trainer(batch=batch_size, backward=backward, channels=channels, world=ranks)
        return lambda run: trainer.train_step(share(ranks, batch_size, size, run))

    load = os.getloadavg()[0]
    silent, silent_joint = SilentWorld(world.rank, world.size), SilentWorld(world.rank, world.size)
    together = {
        AVERAGED: stepping(world, 2),
        LOCAL: stepping(LocalWorld(world.rank, world.size), 2),
        SILENT: stepping(silent, 2),
        SILENT_JOINT: stepping(silent_joint, 2, "joint"),
        SENT: sending(silent),
        IN_VIEWS: averaging(World(world.rank, world.size), channels),
        COPIED: averaging(CopyingWorld(world.rank, world.size), channels),
    }
    alone: dict[str, Callable[[int], Any]] = {}
    if world.is_main:
        alone = {ALONE: stepping(World(), 1), ALONE_2: stepping(World(), 2)}
    rows: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    for run in range(runs + 2):  # DDP has its final buckets from the second round on
        for name in (ALONE, ALONE_2, *together):
            elapsed_s, cpu_s = timed(together.get(name) or alone.get(name), run)
            if run >= 2:
                rows.setdefault(name, []).append(elapsed_s)
                cpu.setdefault(name, []).append(cpu_s)
        if world.is_main:
            print(f"round {run + 1} of {runs + 2}", file=sys.stderr, flush=True)
    return Measured(
        rows,
        cpu,
        gradients={name: gradient_bytes(module) for name, module in zip(PAIRS, networks(channels), strict=True)},
        buckets={"split": median_step(silent.passes[4:]), "joint": median_step(silent_joint.passes[4:])},
        heartbeat_s=repeated(lambda: heartbeat(world), 200),
        agreement_s=repeated(lambda: world.any(False), 200),
        load=load,
    )


PAIRS = ("generators", "discriminators")


def timed(step: Callable[[int], Any] | None, run: int) -> tuple[float, float]:
    """Time a step until all processes have finished it.

    Return wall-clock seconds, and the largest processor time of any process. A process whose `step` is None only waits
    for the others.
    """
    dist.barrier()
    since, cpu_since = time.perf_counter(), time.process_time()
    if step is not None:
        step(run)
    spent = torch.tensor([time.perf_counter() - since, time.process_time() - cpu_since])
    spent *= step is not None
    dist.all_reduce(spent, op=dist.ReduceOp.MAX)
    elapsed_s, cpu_s = spent.tolist()
    return elapsed_s, cpu_s


def networks(channels: int) -> tuple[Generators, Discriminators]:
    """The paper's networks for 256 px, with `channels` channels in the first layer and newly initialized weights."""
    generators = Generators(ResNetGenerator(channels), ResNetGenerator(channels))
    discriminators = Discriminators(PatchDiscriminator(channels), PatchDiscriminator(channels))
    random = torch.Generator().manual_seed(0)
    initialize(generators, generator=random)
    initialize(discriminators, generator=random)
    return generators, discriminators


def share(world: World, batch_size: int, size: int, run: int) -> Batch:
    """A rank's share of a batch of random images; `run` determines the images."""
    draws = list(range(run * batch_size + world.rank, (run + 1) * batch_size, world.size))
    random = torch.Generator().manual_seed(draws[0])
    shape = (len(draws), 3, size, size)
    a, b = (torch.randint(0, 256, shape, dtype=torch.uint8, generator=random) for _ in "ab")
    return Batch(a, b, draws)


def sending(world: SilentWorld) -> Callable[[int], None]:
    """Return a function that all-reduces the buckets of a step one after the other, without computing gradients."""
    buffers: list[torch.Tensor] = []

    def send(run: int) -> None:
        if run < 2:  # DDP divides the buckets again after the first step
            buffers[:] = [torch.zeros(bucket.bytes // 4) for step in world.passes[-2:] for bucket in step]
        for work in [dist.all_reduce(buffer, async_op=True) for buffer in buffers]:
            work.wait()

    return send


class Sums(nn.Module):
    """Module that returns the sum of another module's parameters: a loss whose gradients take almost no time."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self) -> torch.Tensor:
        return torch.stack([parameter.sum() for parameter in self.parameters()]).sum()


def averaging(world: World, channels: int) -> Callable[[int], None]:
    """Return a function that averages gradients as large as the gradients of a step, and discards them."""
    modules = [Sums(module) for module in networks(channels)]
    calls = [world.synchronize(module, torch.device("cpu")) for module in modules]

    def average(run: int) -> None:
        for module, call in zip(modules, calls, strict=True):
            call().backward()
            module.zero_grad(set_to_none=True)

    return average


def heartbeat(world: World) -> None:
    """Write a heartbeat to the store once, as each rank does before every collective call."""
    with world.accumulating(more_to_come=True):
        pass


def repeated(action: Callable[[], object], times: int) -> float:
    """Mean duration of `times` calls of `action`, in seconds."""
    since = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - since) / times


def gradient_bytes(module: nn.Module) -> int:
    """Bytes of a module's gradients in float32."""
    return 4 * sum(parameter.numel() for parameter in module.parameters())


def median_step(passes: list[list[Bucket]]) -> list[list[Bucket]]:
    """Return the buckets of a step's averaged passes; the lead of each is its median over all steps in `passes`."""
    return [
        [
            Bucket(group[0].bytes, statistics.median(bucket.lead for bucket in group))
            for group in zip(*passes[pair::2], strict=True)
        ]
        for pair in range(2)
    ]


def measured_section(measured: Measured, arguments: argparse.Namespace) -> str:
    """Section of docs/scaling.md with the measurements on this machine."""
    rows, counted = measured.rows, [sum(b.bytes for b in step) for step in measured.buckets["split"]]
    assert counted == list(measured.gradients.values()), "the bytes sent differ from the bytes of the parameters"
    computed = ", ".join(f"{size / 1e6:.1f} MB of the {name}" for name, size in measured.gradients.items())
    cost, cpu_cost = (difference(times[AVERAGED], times[LOCAL]) for times in (rows, measured.cpu))
    copying, cpu_copying = (difference(times[COPIED], times[IN_VIEWS]) for times in (rows, measured.cpu))
    cpu_weak, cpu_strong = (ratio(measured.cpu[alone], measured.cpu[AVERAGED]) for alone in (ALONE, ALONE_2))
    filling = difference(measured.cpu[SILENT], measured.cpu[LOCAL])
    sending_s = statistics.median(rows[SENT])
    rate = sum(counted) / 1e9 / sending_s
    sizes = "; ".join(" + ".join(f"{b.bytes / 1e6:.1f}" for b in step) for step in measured.buckets["split"])
    command = f"python scripts/benchmark_scaling.py --runs {arguments.runs} --size {arguments.size}"
    return f"""ResNet-9 generators and 70x70 discriminators with {arguments.channels} channels, {arguments.size} px,
`trainer.precision=auto`, `trainer.backward=split` unless otherwise noted. Two processes of one thread each make all
rows in turn, {arguments.runs} rounds after two that warm up; where one works alone the other sleeps. The slower one
counts. "Processor" is the time that the threads of one process worked, which other work on the machine changes less.

{circumstances(f"{command} --channels {arguments.channels}")} in each process
* load of the machine when it began: {measured.load:.1f}; other work is more in the way of two processes than of one

{table(measured)}

* **Sent by each process in a step**: {computed}, by their parameters and
  as counted in DDP's buckets ({sizes} MB).
* **Weak scaling** (as much work for each process): {ratios(rows, ALONE, AVERAGED)} of one process's speed, and
  {ratios(rows, ALONE, LOCAL)} for two processes that send nothing, which have cores, caches and memory in
  common with each other and with all else.
* **Strong scaling** (the same batch of 2): {ratios(rows, ALONE_2, AVERAGED)} times the speed of one process.
  By the processor's time alone, as if nobody had to wait for a core or for the other: {cpu_weak:.2f} weak,
  {cpu_strong:.2f} strong.
* **What averaging costs**: {milliseconds(cost)} of a step (median of the differences within a round, and their range),
  {milliseconds(cpu_cost)} of the processor. Filling the buckets without sending them costs
  {milliseconds(filling)} of the processor. The all-reduces alone take
  {1000 * sending_s:.0f} ms, {rate:.2f} GB/s; {hidden(cost, sending_s)}
* **Without bucket views** averaging takes {milliseconds(copying)} longer, {milliseconds(cpu_copying)}
  of the processor.
* **Leaving word in the store** takes {1e6 * measured.heartbeat_s:.0f} µs, three times a step;
  **agreeing whether to stop** {1e6 * measured.agreement_s:.0f} µs, once.
* **When buckets are ready**, in % of a step before the end of their backward pass (of the processor's time),
  generators / discriminators:
  {leads(measured, "split")} with `trainer.backward=split`, {leads(measured, "joint")} with `joint`.
"""


def table(measured: Measured) -> str:
    """A Markdown table with all measured rows."""
    lines = ["| what | median ms | min ms | max ms | processor ms |", "|---|---|---|---|---|"]
    for name, seconds in measured.rows.items():
        values = statistics.median(seconds), min(seconds), max(seconds), statistics.median(measured.cpu[name])
        cells = " | ".join(f"{1000 * value:.0f}" for value in values)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def difference(longer: list[float], shorter: list[float]) -> list[float]:
    """Differences `longer` - `shorter`, one per round."""
    return [one - other for one, other in zip(longer, shorter, strict=True)]


def ratios(rows: dict[str, list[float]], one: str, other: str) -> str:
    """Text with the ratio of row `one` to row `other`: of medians, and of minima, which other work affects least."""
    return f"{ratio(rows[one], rows[other]):.2f} ({min(rows[one]) / min(rows[other]):.2f} of the least times)"


def ratio(one: list[float], other: list[float]) -> float:
    """Median of `one` divided by the median of `other`."""
    return statistics.median(one) / statistics.median(other)


def hidden(cost: list[float], sending_s: float) -> str:
    """Text on the share of the sending time that the backward pass hides, or on why this share is unknown."""
    if min(cost) <= 0:
        return "other work on the machine leaves open how much of\n  that the backward pass hides."
    share = max(0.0, 1 - statistics.median(cost) / sending_s)
    return f"{100 * share:.0f} % of that is hidden\n  behind the backward pass."


def milliseconds(seconds: list[float]) -> str:
    """Median and range as text, in ms."""
    return f"{1000 * statistics.median(seconds):.0f} ms ({1000 * min(seconds):.0f} to {1000 * max(seconds):.0f})"


def leads(measured: Measured, backward: str) -> str:
    """Text with the lead of each bucket, in % of a step's time."""
    return " / ".join(
        ", ".join(f"{100 * bucket.lead:.0f}" for bucket in step) for step in shares_of_a_step(measured, backward)
    )


def shares_of_a_step(measured: Measured, backward: str) -> list[list[Bucket]]:
    """Buckets of a step; their leads are converted from seconds to shares of the step's time."""
    step_s = statistics.median(measured.cpu[{"split": SILENT, "joint": SILENT_JOINT}[backward]])
    return [[Bucket(b.bytes, b.lead / step_s) for b in step] for step in measured.buckets[backward]]


def exposed_s(buckets: list[Bucket], step_s: float, network: Network) -> float:
    """Seconds that a ring of GPUs still sends after the end of the backward pass.

    Buckets are sent one after the other, each when it is ready and the previous one is sent. Each of the W GPUs
    sends 2 (W - 1) / W times the bytes of every bucket.

    Args:
        buckets: buckets of one backward pass, in the order of sending; leads are shares of `step_s`.
        step_s: time of a step without sending.
    """
    forwarded = 2 * (network.gpus - 1) / network.gpus
    done_s = -math.inf  # relative to the end of the backward pass
    for bucket in buckets:
        done_s = max(done_s, -bucket.lead * step_s) + forwarded * bucket.bytes / network.bytes_per_s
    return max(0.0, done_s)


def paper_section(measured: Measured) -> str:
    """Section of docs/scaling.md on machines with more GPUs; its numbers are computed, not measured."""
    steps = shares_of_a_step(measured, "split")
    sizes = sum(bucket.bytes for step in steps for bucket in step)
    header = "".join(f" {network.name} |" for network in NETWORKS)
    lines = [f"| step of one GPU |{header}", "|---" * (len(NETWORKS) + 1) + "|"]
    whole = " | ".join(f"{1000 * ring_s(sizes, network):.1f} ms" for network in NETWORKS)
    lines.append(f"| all-reduces alone | {whole} |")
    for step_ms in STEPS_MS:
        cells = []
        for network in NETWORKS:
            exposed_ms = 1000 * sum(exposed_s(buckets, step_ms / 1000, network) for buckets in steps)
            efficiency = step_ms / (step_ms + exposed_ms)
            cells.append(f"{100 * efficiency:.0f} %, {network.gpus * efficiency:.1f}x")
        lines.append(f"| {step_ms} ms | {' | '.join(cells)} |")
    return f"""Nothing here was run: it is `T(W) = compute + max(0, all-reduce - backward that is left to hide it)`, for
both averaged passes of a step, generators and discriminators. A ring of W GPUs sends `2 (W - 1) / W x bytes` over each
link. The bytes, their buckets and when each is ready, as a share of a step, are those measured above; **bandwidths and
step times are assumptions**. Each GPU has as much to do as it would have alone (weak scaling). In each cell: the share
of its time that a GPU computes, and how many times the pictures of one GPU are trained on.

{chr(10).join(lines)}

Left out, all to the disadvantage of many hosts: latencies (a ring of 64 has 126 hops for each bucket), hosts that are
slower than others, data that is not there in time, and that sending takes some of a GPU's processors and memory
bandwidth. Each host is assumed to have one network card, which a ring passes once in and once out.
"""


def ring_s(size: int, network: Network) -> float:
    """Seconds that a ring all-reduce of `size` bytes takes, without any overlap with computing."""
    return 2 * (network.gpus - 1) / network.gpus * size / network.bytes_per_s


if __name__ == "__main__":
    sys.exit(main())
