"""Saving: in the background or not, on disks that are full, and what it takes to give up."""

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
    """Nothing can be made below a folder that is a file."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")


def save_all(saving: CheckpointWriter, *steps: int) -> None:
    for step in steps:
        saving.save(functools.partial(snapshot, step))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path, asynchronous: bool) -> None:
    trainer = tiny_trainer(pool=3, ema=0.9)
    saving = CheckpointWriter(Checkpoints(tmp_path), world=World(), asynchronous=asynchronous)

    def take() -> Snapshot:
        return Snapshot(snapshot_model(trainer, ("a", "b")), trainer.state_dict(), trainer.rank_state_dict())

    for step in range(3):
        trainer.train_step(random_batch([step]))
    wanted = take().copied()
    saving.save(take)
    for step in range(3, 6):  # with `asynchronous`, while it may still be on its way
        trainer.train_step(random_batch([step]))
    saving.finish()
    saved = Checkpoints(tmp_path).load()
    assert saved is not None
    assert saved.step == 3
    assert equal(saved.model.tensors, wanted.model.tensors)
    assert equal(saved.training, wanted.training)
    assert equal(saved.ranks, [wanted.own])
    assert not equal(saved.model.tensors, take().model.tensors)


def test_in_the_background_at_most_one_is_on_its_way_and_the_caller_does_not_wait(tmp_path: Path) -> None:
    checkpoints, gate, entered = Checkpoints(tmp_path), threading.Event(), threading.Event()
    most, now = 0, 0

    class Slow(World):
        """A world whose processes take their time to agree, as over a slow network."""

        def duplicate(self) -> World:
            return self

        def any(self, flag: bool, *, patient: bool = False) -> bool:
            nonlocal most, now
            now += 1
            most = max(most, now)
            entered.set()
            assert gate.wait(60)
            now -= 1
            return flag

    saving = CheckpointWriter(checkpoints, world=Slow(), asynchronous=True)
    saving.save(lambda: snapshot(1))  # returns although nothing is written
    assert entered.wait(60)
    assert checkpoints.newest() is None
    second = threading.Thread(target=saving.save, args=(lambda: snapshot(2),))
    second.start()  # has to wait for the first
    assert checkpoints.newest() is None
    gate.set()
    second.join(60)
    saving.finish()
    assert most == 1
    assert [path.name for path in sorted(tmp_path.glob("step_*"))] == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failed_save_is_told_and_tried_again_and_the_third_in_a_row_is_the_end(
    tmp_path: Path, asynchronous: bool
) -> None:
    told: list[str] = []
    done: list[Path] = []
    full(tmp_path / "checkpoints")
    saving = CheckpointWriter(
        Checkpoints(tmp_path / "checkpoints"),
        world=World(),
        asynchronous=asynchronous,
        tell=told.append,
        saved=done.append,
    )
    with pytest.raises(DiskError, match=r"cannot write checkpoint at step 3 .*; 3 times in a row; make room"):
        save_all(saving, 1, 2, 3, 4)
    assert [line.partition(" in ")[0] for line in told] == [
        f"cannot write checkpoint at step {step}" for step in (1, 2)
    ]
    assert all("tries again at the next save" in line for line in told)
    assert done == []
    assert ATTEMPTS == 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_that_works_forgives_those_before(tmp_path: Path, asynchronous: bool) -> None:
    told: list[str] = []
    folder, aside = tmp_path / "checkpoints", tmp_path / "aside"
    saving = CheckpointWriter(Checkpoints(folder), world=World(), asynchronous=asynchronous, tell=told.append)
    save_all(saving, 1)
    saving.finish()
    for first in (2, 5):
        folder.rename(aside)
        full(folder)
        save_all(saving, first, first + 1)
        saving.finish()
        folder.unlink()
        aside.rename(folder)
        save_all(saving, first + 2)
        saving.finish()
    saving.save(lambda: snapshot(8), last=True)
    assert len(told) == 4
    assert [path.name[-1] for path in sorted(folder.glob("step_*"))] == ["4", "7", "8"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_last_save_has_to_work(tmp_path: Path, asynchronous: bool) -> None:
    full(tmp_path / "checkpoints")
    saving = CheckpointWriter(Checkpoints(tmp_path / "checkpoints"), world=World(), asynchronous=asynchronous)
    with pytest.raises(DiskError, match="cannot write checkpoint at step 1"):
        saving.save(lambda: snapshot(1), last=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_bug_in_saving_is_not_taken_for_a_full_disk(tmp_path: Path, asynchronous: bool) -> None:
    saving = CheckpointWriter(Checkpoints(tmp_path), world=World(), asynchronous=asynchronous)
    with pytest.raises(AttributeError):
        saving.save(lambda: snapshot(1, cannot_be_pickled=lambda: None), last=True)


def test_the_state_is_copied_once_and_what_nobody_else_holds_is_not(tmp_path: Path) -> None:
    own = {"pools": {"a": {0: torch.zeros(3)}}}
    taken = Snapshot(snapshot(1).model, {"moments": [torch.ones(2)]}, own)
    copied = taken.copied()
    assert copied.own["pools"]["a"][0].data_ptr() == own["pools"]["a"][0].data_ptr()
    assert copied.training["moments"][0].data_ptr() != taken.training["moments"][0].data_ptr()
    name = "generators.ab.weight"
    assert copied.model.tensors[name].data_ptr() != taken.model.tensors[name].data_ptr()
    assert torch.equal(copied.model.tensors[name], taken.model.tensors[name])


def test_keep_every_must_be_steps(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"checkpoint\.keep_every=-5"):
        Checkpoints(tmp_path, keep_every=-5)
