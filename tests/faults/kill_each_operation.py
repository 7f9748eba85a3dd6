"""Kill a save, the mark of the best checkpoint or a line of scores, at each file system operation; see test_kills.py.

`python -m tests.faults.kill_each_operation FOLDER save` prepares a run that keeps two checkpoints, at steps 2 and 4. It
then saves step 6 repeatedly, each time in a new process; the n-th process is killed at its n-th operation. For each
process it prints a line of JSON: the operation and the checkpoints that remain.

With `mark` instead of `save`, the run also has a checkpoint at step 6, and step 2 is the best one, which `keep` does
not protect. The processes then mark step 6 as the best one.

With `scores`, scores.jsonl of the run has lines of steps 2, 4 and 8. Each process resumes the run from step 6, which
removes the line of step 8, and adds a line of step 6.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.distributed.world import World
from cyclestyle.filesystem import atomic
from cyclestyle.run.scores_file import ScoresFile, read_evaluations
from cyclestyle.training.state import load_networks, restore_average, snapshot_model
from cyclestyle.training.trainer import Trainer
from tests.checkpoints.test_directory import equal
from tests.factories import random_batch, tiny_trainer

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR
KEEP = 2


def main(folder: Path, action: str) -> None:
    {"save": kill_saves, "mark": kill_marks, "scores": kill_scores}[action](folder)


def kill_saves(folder: Path) -> None:
    trainer, before = fresh(), folder / "before"
    for step in (2, 4):
        save(trained(trainer, step), before)
    shutil.copytree(before, folder / "after")
    save(trained(trainer, 6), folder / "after")
    expected = {step: contents(folder / "after" / f"step_0000000{step}") for step in (4, 6)}
    at_8 = state(trained(fresh(before), 8))

    for number in range(1, 1000):
        run = folder / f"killed {number}"
        shutil.copytree(before, run)
        operation = operation_killed(number, lambda run=run: save(trainer, run))
        if operation is None:
            print(json.dumps({"completed": number}), flush=True)
            return
        newest = Checkpoints(run, keep=KEEP).newest()
        loaded = Checkpoints(run, keep=KEEP).load()
        resumed = fresh(run)
        save(trained(resumed, 8), run)
        result = {
            "operation": operation,
            "step": loaded.step,
            "fallback": newest is None or newest.name != f"step_{loaded.step:08d}",
            "intact": contents(run / f"step_{loaded.step:08d}") == expected[loaded.step],
            "resumed exactly": equal(state(resumed), at_8),
            "files": sorted(path.name for path in run.iterdir()),
        }
        print(json.dumps(result), flush=True)
        shutil.rmtree(run)


def kill_marks(folder: Path) -> None:
    trainer, before = fresh(), folder / "before"
    for step in (2, 4, 6):
        save(trained(trainer, step), before)
        mark(2, before)
    expected = {step: contents(before / f"step_0000000{step}") for step in (2, 6)}

    for number in range(1, 1000):
        run = folder / f"killed {number}"
        shutil.copytree(before, run)
        operation = operation_killed(number, lambda run=run: mark(6, run))
        if operation is None:
            print(json.dumps({"completed": number}), flush=True)
            return
        best, resumed = Checkpoints(run, keep=KEEP).best(), fresh(run)
        result = {
            "operation": operation,
            "best": best and [best.step, best.name, best.value, best.mode, best.interval, best.evaluations],
            "intact": best is not None and contents(best.path) == expected[best.step],
            "resumed at": resumed.step,
        }
        save(trained(resumed, 8), run)
        result["files"] = sorted(path.name for path in run.iterdir())
        print(json.dumps(result), flush=True)
        shutil.rmtree(run)


def kill_scores(folder: Path) -> None:
    before, after = folder / "before", folder / "after"
    for run in (before, after):
        run.mkdir()
    add_scores(before, 2, 4, 8, start=0)
    add_scores(after, 2, 4, 6, start=0)
    for number in range(1, 1000):
        run = folder / f"killed {number}"
        shutil.copytree(before, run)
        operation = operation_killed(number, lambda run=run: add_scores(run, 6, start=6))
        if operation is None:
            print(json.dumps({"completed": number}), flush=True)
            return
        lines = (run / "scores.jsonl").read_text().splitlines(keepends=True)
        result = {
            "operation": operation,
            "steps": [json.loads(line)["step"] for line in lines],
            "whole": all(line.endswith("\n") for line in lines) and len(read_evaluations(run)) == len(lines),
        }
        atomic.remove_temporary_files(run)  # done when a run begins
        add_scores(run, 6, start=6)
        result["resumed exactly"] = contents(run) == contents(after)
        print(json.dumps(result), flush=True)


def fresh(run: Path | None = None) -> Trainer:
    """A new trainer at step 0, or at the newest checkpoint of `run`."""
    trainer = tiny_trainer(batch_size=2, pool=4, ema=0.9)
    if run is not None:
        checkpoint = Checkpoints(run).load()
        load_networks(checkpoint.model, trainer.objective)
        trainer.load_state_dict(checkpoint.training, checkpoint.ranks)
        restore_average(trainer, checkpoint.model)
    return trainer


def trained(trainer: Trainer, steps: int) -> Trainer:
    while trainer.step < steps:
        trainer.train_step(random_batch([2 * trainer.step, 2 * trainer.step + 1], size=16))
    return trainer


def state(trainer: Trainer) -> Any:
    return snapshot_model(trainer, ("a", "b")).tensors, trainer.state_dict(), trainer.rank_state_dict()["pools"]


def save(trainer: Trainer, run: Path) -> None:
    Checkpoints(run, keep=KEEP).save(
        snapshot_model(trainer, ("a", "b")), trainer.state_dict(), trainer.rank_state_dict(), world=World()
    )


def mark(step: int, run: Path) -> None:
    Checkpoints(run, keep=KEEP).mark_best(
        step, name="kid", value=1 / step, mode="min", interval=(0.0, 2 / step), evaluations=step // 2
    )


def add_scores(run: Path, *steps: int, start: int) -> None:
    file = ScoresFile(run, start=start)
    for step in steps:
        file.append(step, {"values": {"kid": 1 / step}, "filling": step * "x" * 500})


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


def operation_killed(number: int, act: Callable[[], object]) -> str | None:
    """Call `act` in a process that is killed at operation `number`; return this operation, None if there are fewer."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        with killed_at(number, writing):
            act()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        operation = stream.read()
    _, wait_status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(wait_status)
    assert code in (0, -signal.SIGKILL), code
    return operation if code else None


@contextlib.contextmanager
def killed_at(number: int, pipe: int) -> Iterator[None]:
    """Context manager: kill this process at its file system operation `number`, counted from 1.

    A description of the operation is first written to the file descriptor `pipe`.
    """
    remaining, tensors = number, 0

    def count(operation: str) -> None:
        nonlocal remaining
        remaining -= 1
        if not remaining:
            os.write(pipe, operation.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS and (event != "open" or (arguments[2] or 0) & WRITING):
            names = (Path(os.fsdecode(value)).name for value in arguments if isinstance(value, str | bytes))
            count(" ".join([event, *names]))

    def write_half(self: atomic._Stream, data: bytes) -> int:
        nonlocal tensors
        if len(data) < 512:  # torch.save's own small writes are not counted as operations
            return self._stream.write(data)
        tensors += 1
        if tensors % 6 == 1 or len(data) > 20_000:
            self._stream.write(bytes(data[: len(data) // 2]))
            self._stream.flush()
            count(f"write {Path(self._stream.name).name}")
            data = data[len(data) // 2 :]
        return self._stream.write(data)

    fsync = os.fsync

    def sync(descriptor: int) -> None:
        count(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    atomic._Stream.write = write_half  # type: ignore[method-assign]
    os.fsync = sync
    sys.addaudithook(audit)
    yield


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
