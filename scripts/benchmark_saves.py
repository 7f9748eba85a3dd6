"""Time how long saving holds training up, at once and in the background, and write down what was measured.

    python scripts/benchmark_saves.py                               # print
    python scripts/benchmark_saves.py --write docs/benchmarks.md    # and keep (`make bench`)

Full-size networks (ResNet-9, 64 channels), batch 1, 256 px, image pools of 50 that are full. Everything runs in turn in
one process: a fresh clone of the state, a step, a save in the background and the step beside it, a save at once. Exits
with 1 when a goal is missed.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import circumstances, our_trainer, pictures, write_section
from rich.progress import track
from torch import Tensor

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.checkpoints.writer import CheckpointWriter, Snapshot
from cyclestyle.distributed.world import World
from cyclestyle.training.state import snapshot_model

GOAL = 1.5  # times a fresh clone of the state may a save in the background hold training up
SIZE = 256  # px


def main() -> int:
    """Measure, print, perhaps write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="counted rounds, 7 or more (default 7)")
    parser.add_argument("--folder", type=Path, help="where to save (default: a temporary folder)")
    parser.add_argument("--write", type=Path, help="a Markdown file to write the table into")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error("--runs: a median of fewer than 7 says little")

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
    """Seconds of everything, round by round, and the bytes of the state."""
    trainer = our_trainer("auto")
    for pool in trainer.pools:
        pool.stored = {0: [torch.rand(3, SIZE, SIZE) * 2 - 1 for _ in range(pool.slots)]}
    asynchronous, at_once = (
        CheckpointWriter(Checkpoints(folder / name, keep=2), world=World(), asynchronous=name == "background")
        for name in ("background", "at-once")
    )

    def take() -> Snapshot:
        return Snapshot(snapshot_model(trainer, ("a", "b")), trainer.state_dict(), trainer.rank_state_dict())

    def step() -> None:
        losses = trainer.train_step(pictures(SIZE, trainer.step))
        torch.stack(list(losses.values())).tolist()

    def state() -> list[Tensor]:
        model, training, _ = take()
        return [*tensors(model.tensors), *tensors(training), *(t for p in trainer.pools for t in p.stored[0])]

    times: dict[str, list[float]] = {}
    for run in track(range(runs + 1), description="saving"):
        held = state() if run else []
        for name, work in (
            ("a fresh clone of the state", lambda held=held: [tensor.clone() for tensor in held]),
            ("a step", step),
            ("training held up by a save in the background", lambda: asynchronous.save(take)),
            ("a step while a checkpoint is written", step),
            ("(waiting)", asynchronous.finish),
            ("training held up by a save at once", lambda: at_once.save(take)),
        ):
            elapsed_s = timed(work)
            if run and name != "(waiting)":
                times.setdefault(name, []).append(elapsed_s)
        del held
    return times, sum(tensor.nbytes for tensor in state())


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes; what it makes is kept until the clock has been read."""
    since = time.perf_counter()
    made = work()
    elapsed_s = time.perf_counter() - since
    del made
    return elapsed_s


def tensors(nested: Any) -> Iterator[Tensor]:
    """All tensors in a nested state."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        for value in nested.values():
            yield from tensors(value)


if __name__ == "__main__":
    sys.exit(main())
