"""Parts of the GPU check that measure time: CUDA graphs, and the tables of docs/benchmarks.md."""

import functools
import shutil
from collections.abc import Callable, Sequence

import gpu_tables
import torch
from gpu_numbers import loss_difference, to_numbers
from gpu_report import Report
from gpu_scale import Device, Scale
from measuring import interleaved, our_trainer, random_batch, table
from torch.utils._pytree import tree_leaves

from cyclestyle.hardware.cuda_graphs import REHEARSALS, GraphCapture, Output
from cyclestyle.hardware.device import Hardware
from cyclestyle.training.trainer import Trainer


def graphs(report: Report, scale: Scale) -> None:
    """Compare steps that replay CUDA graphs with eager steps.

    Check that with deterministic algorithms the losses agree within 1e-5, and that both halves of a step (generators,
    discriminators) are replayed from the fourth step on. At batch 1, a step with graphs must be at least 1.1 times as
    fast; a smaller gain would not justify the code.
    """
    steps = REHEARSALS + 5
    try:
        losses = []
        for hardware in (
            CountingHardware(scale.device, deterministic=True),
            Hardware(scale.device, deterministic=True),
        ):
            trainer = our_trainer(
                hardware=hardware, channels=scale.channels, cuda_graphs=isinstance(hardware, CountingHardware)
            )
            losses.append([to_numbers(trainer.train_step(random_batch(scale.size, step))) for step in range(steps)])
            if isinstance(hardware, CountingHardware):
                report.equal("halves of steps that were replayed", hardware.replayed, 2 * 5)
    finally:
        torch.use_deterministic_algorithms(False)
    report.check(f"losses of {steps} steps, largest relative difference", loss_difference(*losses), 1e-5)

    timed: dict[str, Callable[[int], object]] = {}
    for name, hardware in (
        ("plain", Hardware(scale.device, one_size=True)),
        ("graphs", CountingHardware(scale.device)),
    ):
        trainer = our_trainer(hardware=hardware, channels=scale.channels, cuda_graphs=name == "graphs")
        timed[name] = functools.partial(timed_step, trainer, scale.full_size)
    plain, graph = interleaved(timed, runs=scale.runs, warm=8)
    lines = [
        (row.name, *(f"{1000 * value:.1f}" for value in (row.median, min(row.seconds), max(row.seconds))))
        for row in (plain, graph)
    ]
    report.text(table("step at batch 1 | median ms | min ms | max ms", lines))
    if scale.device == "cuda":
        report.check("batch 1, times the speed of plain steps", plain.median / graph.median, 1.1, at_least=True)


def timed_step(trainer: Trainer, size: int, run: int) -> object:
    """Train one step, and read all its losses at once, which waits until the device has finished."""
    return torch.stack(list(trainer.train_step(random_batch(size, run)).values())).tolist()


class CountingHardware(Hardware):
    """Hardware that counts graph replays; a CPU has no graphs, so it computes the step again instead of a replay."""

    def __init__(self, device: Device, *, deterministic: bool = False) -> None:
        super().__init__(device, deterministic=deterministic, one_size=True)
        self.replayed = 0

    def graph_capture(self) -> GraphCapture:
        capture = super().graph_capture() or RepeatedCapture()
        hardware = self

        class Counted:
            def rehearse(self, run: Callable[[], Output]) -> Output:
                return capture.rehearse(run)

            def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
                replay, output = capture.record(run)

                def counted() -> None:
                    hardware.replayed += 1
                    replay()

                return counted, output

        return Counted()


class RepeatedCapture:
    """Graph capture for the dry run on a CPU: it runs the function at the capture, and at each replay but the first."""

    def rehearse(self, run: Callable[[], Output]) -> Output:
        return run()

    def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        output = run()
        is_first = True

        def replay() -> None:
            nonlocal is_first
            if not is_first:
                for former, repeated in zip(tree_leaves(output), tree_leaves(run()), strict=True):
                    former.copy_(repeated)
            is_first = False

        return replay, output


COMPILING_S = 90  # a compilation starts only if this many seconds are left


def tables(report: Report, scale: Scale) -> None:
    """Time all variants. Goals: 5 times the baseline step's speed at batch 1, 40 % of the matrix rate at batch 8."""
    measure = functools.partial(
        gpu_tables.measured, device=scale.device, size=scale.full_size, channels=scale.channels, runs=scale.runs
    )
    flops = gpu_tables.floating_point_operations(scale.full_size, device=scale.device, channels=scale.channels)
    rate = gpu_tables.matrix_rate(scale.device, scale.matrix)
    results = []
    for batch in scale.batches:
        results.append(measure([way for way in scale.ways if way != gpu_tables.COMPILED], batch))
        write_table(report, scale, results[-1], rate=rate, flops=flops)
    if scale.device == "cuda":
        for goal in gpu_tables.goals(results, rate, flops):
            report.check(goal.name, goal.value, goal.bound, at_least=goal.at_least)
    # Compiled steps come last, since compiling takes long and may fail; the baseline step is timed again with them.
    for batch in scale.batches if gpu_tables.COMPILED in scale.ways else ():
        if reason := reason_not_to_compile(report):
            report.text(f"{gpu_tables.COMPILED}, batch {batch}: not run, {reason}.")
            continue
        torch.compiler.reset()  # otherwise PyTorch compiles one program for all batch sizes
        compiled = measure([gpu_tables.TEXTBOOK, gpu_tables.COMPILED], batch)
        write_table(report, scale, compiled, rate=rate, flops=flops)


def reason_not_to_compile(report: Report) -> str:
    """Reason for leaving out the variants with `torch.compile`; empty if they are timed."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "there is no C compiler"
    return "out of time" if report.left_s < COMPILING_S else ""


def write_table(report: Report, scale: Scale, ways: Sequence[gpu_tables.Way], *, rate: float, flops: int) -> None:
    """Record the table for one batch size, and check that no variant exceeds the device's matrix rate."""
    command, size = "python scripts/gpu_check.py", scale.full_size
    report.text(gpu_tables.section([ways], rate, flops, command=command, size=size, matrix=scale.matrix))
    share = max(flops * way.batch / min(way.seconds) / rate for way in ways)
    names = "compiled" if ways[-1].name == gpu_tables.COMPILED else "all ways"
    report.check(f"batch {ways[0].batch}, {names}, largest share of the matrix rate", share, 1)
