"""Saving of checkpoints: synchronous and asynchronous, on a disk that cannot be written, and at the end of a run."""

import functools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.checkpoints.model import Model
from cyclestyle.checkpoints.writer import ATTEMPTS, CheckpointWriter, Snapshot
from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError, DiskError
from cyclestyle.training.state import snapshot_model
from tests.checkpoints.test_directory import equal
from tests.factories import random_batch, tiny_trainer


def snapshot(step: int, **training: Any) -> Snapshot:
    tensors = {"generators.ab.weight": torch.full((2, 3), float(step))}
    return Snapshot(Model(tensors, {}, {}, ("a", "b"), step, Path()), training, {"pools": {}})


def full(folder: Path) -> None:
    """Create a file where the checkpoint folder would be, so that no checkpoint can be written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")


def save_all(writer: CheckpointWriter, *steps: int) -> None:
    for step in steps:
        writer.save(functools.partial(snapshot, step))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_checkpoint_holds_state_at_the_time_of_the_save_call(tmp_path: Path, asynchronous: bool) -> None:
    trainer = tiny_trainer(pool=3, ema=0.9)
    writer = CheckpointWriter(Checkpoints(tmp_path), world=World(), asynchronous=asynchronous)

    def take() -> Snapshot:
        return Snapshot(snapshot_model(trainer, ("a", "b")), trainer.state_dict(), trainer.rank_state_dict())

    for step in range(3):
        trainer.train_step(random_batch([step]))
    expected = take().copied()
    writer.save(take)
    for step in range(3, 6):  # with `asynchronous`, while the write may still be in progress
        trainer.train_step(random_batch([step]))
    writer.finish()
    saved = Checkpoints(tmp_path).load()
    assert saved is not None
    assert saved.step == 3
    assert equal(saved.model.tensors, expected.model.tensors)
    assert equal(saved.training, expected.training)
    assert equal(saved.ranks, [expected.rank_state])
    assert not equal(saved.model.tensors, take().model.tensors)


def test_asynchronous_save_returns_immediately_and_writes_do_not_overlap(tmp_path: Path) -> None:
    checkpoints, gate, entered = Checkpoints(tmp_path), threading.Event(), threading.Event()
    most_writes, writes = 0, 0

    class Slow(World):
        """World whose `any` waits until the test opens the gate."""

        def duplicate(self) -> World:
            return self

        def any(self, flag: bool, *, no_timeout: bool = False) -> bool:
            nonlocal most_writes, writes
            writes += 1
            most_writes = max(most_writes, writes)
            entered.set()
            assert gate.wait(60)
            writes -= 1
            return flag

    writer = CheckpointWriter(checkpoints, world=Slow(), asynchronous=True)
    writer.save(lambda: snapshot(1))  # returns before a file is written
    assert entered.wait(60)
    assert checkpoints.newest() is None
    second = threading.Thread(target=writer.save, args=(lambda: snapshot(2),))
    second.start()  # waits for the first write
    assert checkpoints.newest() is None
    gate.set()
    second.join(60)
    writer.finish()
    assert most_writes == 1
    assert [path.name for path in sorted(tmp_path.glob("step_*"))] == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_two_failed_saves_give_warnings_and_third_ends_run(tmp_path: Path, asynchronous: bool) -> None:
    warnings: list[str] = []
    done: list[Path] = []
    full(tmp_path / "checkpoints")
    writer = CheckpointWriter(
        Checkpoints(tmp_path / "checkpoints"),
        world=World(),
        asynchronous=asynchronous,
        warn=warnings.append,
        saved=done.append,
    )
    with pytest.raises(DiskError, match=r"cannot write checkpoint at step 3 .*; 3 times in a row; make room"):
        save_all(writer, 1, 2, 3, 4)
    assert [line.partition(" in ")[0] for line in warnings] == [
        f"cannot write checkpoint at step {step}" for step in (1, 2)
    ]
    assert all("tries again at the next save" in line for line in warnings)
    assert done == []
    assert ATTEMPTS == 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_successful_save_resets_failure_count(tmp_path: Path, asynchronous: bool) -> None:
    warnings: list[str] = []
    folder, aside = tmp_path / "checkpoints", tmp_path / "aside"
    writer = CheckpointWriter(Checkpoints(folder), world=World(), asynchronous=asynchronous, warn=warnings.append)
    save_all(writer, 1)
    writer.finish()
    for first in (2, 5):
        folder.rename(aside)
        full(folder)
        save_all(writer, first, first + 1)
        writer.finish()
        folder.unlink()
        aside.rename(folder)
        save_all(writer, first + 2)
        writer.finish()
    writer.save(lambda: snapshot(8), last=True)
    assert len(warnings) == 4
    assert [path.name[-1] for path in sorted(folder.glob("step_*"))] == ["4", "7", "8"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_failure_of_last_save_raises_disk_error(tmp_path: Path, asynchronous: bool) -> None:
    full(tmp_path / "checkpoints")
    writer = CheckpointWriter(Checkpoints(tmp_path / "checkpoints"), world=World(), asynchronous=asynchronous)
    with pytest.raises(DiskError, match="cannot write checkpoint at step 1"):
        writer.save(lambda: snapshot(1), last=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_bug_in_saving_is_raised_unchanged(tmp_path: Path, asynchronous: bool) -> None:
    writer = CheckpointWriter(Checkpoints(tmp_path), world=World(), asynchronous=asynchronous)
    with pytest.raises(AttributeError):
        writer.save(lambda: snapshot(1, cannot_be_pickled=lambda: None), last=True)


def test_snapshot_copy_shares_rank_state_that_is_on_the_cpu(tmp_path: Path) -> None:
    rank_state = {"pools": {"a": {0: torch.zeros(3)}}}
    original = Snapshot(snapshot(1).model, {"moments": [torch.ones(2)]}, rank_state)
    copied = original.copied()
    assert copied.rank_state["pools"]["a"][0].data_ptr() == rank_state["pools"]["a"][0].data_ptr()
    assert copied.training["moments"][0].data_ptr() != original.training["moments"][0].data_ptr()
    name = "generators.ab.weight"
    assert copied.model.tensors[name].data_ptr() != original.model.tensors[name].data_ptr()
    assert torch.equal(copied.model.tensors[name], original.model.tensors[name])


def test_negative_value_of_keep_every_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"checkpoint\.keep_every=-5"):
        Checkpoints(tmp_path, keep_every=-5)
