"""Kills itself at every operation of one save on the file system, one after the other; see test_kills.py.

`python -m tests.faults.kill_each_operation FOLDER` prepares a run with checkpoints at steps 2 and 4, of which it
keeps two, and saves step 6 again and again in processes of its own, the n-th of which dies at its n-th operation. It
prints a line of JSON for each: where it died and what was left.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.distributed.world import World
from cyclestyle.filesystem import atomic
from cyclestyle.training.state import load_networks, restore_average, snapshot_model
from cyclestyle.training.trainer import Trainer
from tests.checkpoints.test_directory import equal
from tests.factories import random_batch, tiny_trainer

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR
KEEP = 2


def main(folder: Path) -> None:
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
        where = dying(number, trainer, run)
        if where is None:
            print(json.dumps({"completed": number}), flush=True)
            return
        newest = Checkpoints(run, keep=KEEP).newest()
        found = Checkpoints(run, keep=KEEP).load()
        again = fresh(run)
        save(trained(again, 8), run)
        told = {
            "where": where,
            "step": found.step,
            "warned": newest is None or newest.name != f"step_{found.step:08d}",
            "whole": contents(run / f"step_{found.step:08d}") == expected[found.step],
            "goes on": equal(state(again), at_8),
            "left": sorted(path.name for path in run.iterdir()),
        }
        print(json.dumps(told), flush=True)
        shutil.rmtree(run)


def fresh(run: Path | None = None) -> Trainer:
    """A trainer at step 0 or where a run stands."""
    trainer = tiny_trainer(batch_size=2, pool=4, ema=0.9)
    if run is not None:
        found = Checkpoints(run).load()
        load_networks(found.model, trainer.objective)
        trainer.load_state_dict(found.training, found.ranks)
        restore_average(trainer, found.model)
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


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


def dying(number: int, trainer: Trainer, run: Path) -> str | None:
    """Save in a process that dies at its operation `number`; says at which, None if it got through before."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        with deadly(number, writing):
            save(trainer, run)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        where = stream.read()
    _, ended = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(ended)
    assert code in (0, -signal.SIGKILL), code
    return where if code else None


@contextlib.contextmanager
def deadly(number: int, pipe: int) -> Iterator[None]:
    """From here on the operation `number` on the file system is the process's last."""
    left, tensors = number, 0

    def happens(what: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.write(pipe, what.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS and (event != "open" or (arguments[2] or 0) & WRITING):
            happens(
                " ".join([event, *(Path(os.fsdecode(one)).name for one in arguments if isinstance(one, str | bytes))])
            )

    def write_half(self: atomic._Stream, data: bytes) -> int:
        nonlocal tensors
        if len(data) < 512:  # torch's bookkeeping
            return self._stream.write(data)
        tensors += 1
        if tensors % 6 == 1 or len(data) > 20_000:
            self._stream.write(bytes(data[: len(data) // 2]))
            self._stream.flush()
            happens(f"write {Path(self._stream.name).name}")
            data = data[len(data) // 2 :]
        return self._stream.write(data)

    fsync = os.fsync

    def sync(descriptor: int) -> None:
        happens(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    atomic._Stream.write = write_half  # type: ignore[method-assign]
    os.fsync = sync
    sys.addaudithook(audit)
    yield


if __name__ == "__main__":
    main(Path(sys.argv[1]))
