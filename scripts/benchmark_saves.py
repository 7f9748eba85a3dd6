"""Measure how long synchronous saves, and saves in the background, delay training.

    python scripts/benchmark_saves.py                               # print
    python scripts/benchmark_saves.py --write docs/benchmarks.md    # also write the table (part of `make bench-full`)

Full-size networks (ResNet-9, 64 channels), batch 1, 256 px, full image pools of 50. One process times in turn: a clone
of the state, a step, a save in the background together with the step that runs meanwhile, and a synchronous save.
Exits with 1 when the goal is missed.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from measuring import circumstances, our_trainer, random_batch, write_section
from rich.progress import track
from torch import Tensor

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.checkpoints.writer import CheckpointWriter, Snapshot
from cyclestyle.distributed.world import World
from cyclestyle.objectives.cyclegan import CycleGAN
from cyclestyle.training.state import snapshot_model

GOAL = 1.5  # longest delay by a save in the background, as a multiple of the time to clone the state
SIZE = 256  # px


def main() -> int:
    """Measure and print the table, write it if --write is given; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="counted rounds, 7 or more (default 7)")
    parser.add_argument("--folder", type=Path, help="folder to save in (default: a temporary folder)")
    parser.add_argument("--write", type=Path, help="a Markdown file to write the table into")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error(f"--runs {arguments.runs}: give 7 or more, the median of fewer runs is not reliable")

    folder = Path(tempfile.mkdtemp(prefix="saves-", dir=arguments.folder))
    try:
        times, size = measured(folder, arguments.runs)
    finally:
        shutil.rmtree(folder)
    clone = statistics.median(times["a fresh clone of the state"])
    lines = ["| what | median s | min s | max s | of a clone |", "|---|---|---|---|---|"]
    for name, seconds in times.items():
        median = statistics.median(seconds)
        lines.append(f"| {name} | {median:.3f} | {min(seconds):.3f} | {max(seconds):.3f} | {median / clone:.2f} |")
    ratio = statistics.median(times["training held up by a save in the background"]) / clone
    slower = statistics.median(times["a step while a checkpoint is written"]) / statistics.median(times["a step"]) - 1
    verdict = (
        f"A save in the background holds training up for {ratio:.2f} clones of the state (goal: at most {GOAL}); the "
        f"step beside it takes {slower:+.0%}"
    )
    table = "\n".join(lines)
    print(f"\n{table}\n\n{verdict}")
    if arguments.write:
        text = f"""ResNet-9 generators with 64 channels, 70x70 discriminators, batch 1, {SIZE} px, bf16 where the
processor has it, image pools full: {size / 1e6:.0f} MB of state. All rows in turn, {arguments.runs} rounds after
one that warms up. "Held up" is the time between two steps; `checkpoint.asynchronous=true` costs the memory of the copy.

{circumstances("python scripts/benchmark_saves.py --write docs/benchmarks.md")}

{table}

{verdict}.
"""
        write_section(arguments.write, "Saving", text)
    return 0 if ratio <= GOAL else 1


def measured(folder: Path, runs: int) -> tuple[dict[str, list[float]], int]:
    """Return seconds for each table row in every round, and the size of the saved state in bytes."""
    trainer = our_trainer("auto")
    pools = cast(CycleGAN, trainer.objective).pools
    for pool in pools:
        pool.stored = {0: [torch.rand(3, SIZE, SIZE) * 2 - 1 for _ in range(pool.slots)]}
    asynchronous, synchronous = (
        CheckpointWriter(Checkpoints(folder / name, keep=2), world=World(), asynchronous=name == "background")
        for name in ("background", "at-once")
    )

    def snapshot() -> Snapshot:
        return Snapshot(snapshot_model(trainer, ("a", "b")), trainer.state_dict(), trainer.rank_state_dict())

    def step() -> None:
        losses = trainer.train_step(random_batch(SIZE, trainer.step))
        torch.stack(list(losses.values())).tolist()

    def state() -> list[Tensor]:
        model, training, _ = snapshot()
        return [*tensors(model.tensors), *tensors(training), *(t for p in pools for t in p.stored[0])]

    times: dict[str, list[float]] = {}
    for run in track(range(runs + 1), description="saving"):
        present = state() if run else []
        for name, work in (
            ("a fresh clone of the state", lambda present=present: [tensor.clone() for tensor in present]),
            ("a step", step),
            ("training held up by a save in the background", lambda: asynchronous.save(snapshot)),
            ("a step while a checkpoint is written", step),
            ("(waiting)", asynchronous.finish),
            ("training held up by a save at once", lambda: synchronous.save(snapshot)),
        ):
            elapsed_s = timed(work)
            if run and name != "(waiting)":
                times.setdefault(name, []).append(elapsed_s)
        del present
    return times, sum(tensor.nbytes for tensor in state())


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a call of `work` takes, without the time to free its result."""
    since = time.perf_counter()
    result = work()
    elapsed_s = time.perf_counter() - since
    del result
    return elapsed_s


def tensors(nested: Any) -> Iterator[Tensor]:
    """Yield all tensors among the values of nested dicts; values of other types are ignored."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        for value in nested.values():
            yield from tensors(value)


if __name__ == "__main__":
    sys.exit(main())
