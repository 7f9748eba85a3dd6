"""Parts of the check on a GPU that look at time: CUDA graphs, and the tables of docs/benchmarks.md."""

import functools
import shutil
from collections.abc import Callable, Sequence

import gpu_tables
import torch
from gpu_numbers import loss_difference, read_out
from gpu_report import Report
from gpu_scale import Device, Scale
from measuring import interleaved, our_trainer, pictures, table

from cyclestyle.hardware.cuda_graphs import REHEARSALS, GraphCapture, Output
from cyclestyle.hardware.device import Hardware
from cyclestyle.training.trainer import Trainer


def graphs(report: Report, scale: Scale) -> None:
    """Replay CUDA graphs: under deterministic algorithms losses are within 1e-5 of plain steps', and both halves of a
    step are replayed from the fourth on; at batch 1 a step is 1.1 times as fast, or it is not worth its code.
    """
    steps = REHEARSALS + 5
    try:
        losses = []
        for hardware in (Counting(scale.device, deterministic=True), Hardware(scale.device, deterministic=True)):
            trainer = our_trainer(
                hardware=hardware, channels=scale.channels, cuda_graphs=isinstance(hardware, Counting)
            )
            losses.append([read_out(trainer.train_step(pictures(scale.size, step))) for step in range(steps)])
            if isinstance(hardware, Counting):
                report.equal("halves of steps that were replayed", hardware.replayed, 2 * 5)
    finally:
        torch.use_deterministic_algorithms(False)
    report.check(f"losses of {steps} steps, largest relative difference", loss_difference(*losses), 1e-5)

    timed: dict[str, Callable[[int], object]] = {}
    for name, hardware in (("plain", Hardware(scale.device, one_size=True)), ("graphs", Counting(scale.device))):
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
    """A step and one wait, for all its losses."""
    return torch.stack(list(trainer.train_step(pictures(size, run)).values())).tolist()


class Counting(Hardware):
    """Counts replays; on a CPU, where nothing records, what was recorded is computed again."""

    def __init__(self, device: Device, *, deterministic: bool = False) -> None:
        super().__init__(device, deterministic=deterministic, one_size=True)
        self.replayed = 0

    def graph_capture(self) -> GraphCapture:
        recorder = super().graph_capture() or Repeating()
        counting = self

        class Counted:
            def rehearse(self, run: Callable[[], Output]) -> Output:
                return recorder.rehearse(run)

            def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
                replay, made = recorder.record(run)

                def counted() -> None:
                    counting.replayed += 1
                    replay()

                return counted, made

        return Counted()


class Repeating:
    """The recorder of the rehearsal: it computes while it records, and again at each replay but the first."""

    def rehearse(self, run: Callable[[], Output]) -> Output:
        return run()

    def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        made = run()
        fresh = True

        def replay() -> None:
            nonlocal fresh
            if not fresh:
                again = run()
                assert isinstance(made, dict)
                assert isinstance(again, dict)
                for name, value in again.items():
                    made[name].copy_(value)
            fresh = False

        return replay, made


COMPILING_S = 90  # left at least, for another way to be compiled


def tables(report: Report, scale: Scale) -> None:
    """Time steps: ours has 5 times the textbook's speed at batch 1, and 40 % of the GPU's matrix rate at batch 8."""
    measure = functools.partial(
        gpu_tables.measured, device=scale.device, size=scale.full_size, channels=scale.channels, runs=scale.runs
    )
    flops = gpu_tables.floating_point_operations(scale.full_size, device=scale.device, channels=scale.channels)
    rate = gpu_tables.matrix_rate(scale.device, scale.matrix)
    found = []
    for batch in scale.batches:
        found.append(measure([way for way in scale.ways if way != gpu_tables.COMPILED], batch))
        write_table(report, scale, found[-1], rate=rate, flops=flops)
    if scale.device == "cuda":
        for goal in gpu_tables.goals(found, rate, flops):
            report.check(goal.name, goal.found, goal.wanted, at_least=goal.at_least)
    # Last, since compiling takes long and may fail; in turn with the textbook again.
    for batch in scale.batches if gpu_tables.COMPILED in scale.ways else ():
        if hindrance := cannot_compile(report):
            report.text(f"{gpu_tables.COMPILED}, batch {batch}: not run, {hindrance}.")
            continue
        torch.compiler.reset()  # which would otherwise look for one program for all sizes
        compiled = measure([gpu_tables.TEXTBOOK, gpu_tables.COMPILED], batch)
        write_table(report, scale, compiled, rate=rate, flops=flops)


def cannot_compile(report: Report) -> str:
    """The reason why `torch.compile` is not tried; empty where it is."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "there is no C compiler"
    return "out of time" if report.left_s < COMPILING_S else ""


def write_table(report: Report, scale: Scale, ways: Sequence[gpu_tables.Way], *, rate: float, flops: int) -> None:
    """Write the table of a batch down, and check that no step was faster than the device can multiply."""
    command, size = "python scripts/gpu_check.py", scale.full_size
    report.text(gpu_tables.section([ways], rate, flops, command=command, size=size, matrix=scale.matrix))
    share = max(flops * way.batch / min(way.seconds) / rate for way in ways)
    names = "compiled" if ways[-1].name == gpu_tables.COMPILED else "all ways"
    report.check(f"batch {ways[0].batch}, {names}, largest share of the matrix rate", share, 1)
