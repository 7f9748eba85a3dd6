"""Two processes that train as one: what the other does, and what is left, when one of them goes."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cyclestyle.checkpoints.directory import Checkpoint
from tests.faults.commands import Command, Start, until
from tests.faults.conftest import RUN, Starts
from tests.faults.run_comparison import assert_same_run, ended, log, newest, same_state, status

# At a usual rate, networks as small as these multiply rounding by ten with every step.
TWO = (*RUN, "trainer.save_every=17", "trainer.precision=fp32", "optimizer.lr=0.000001", "schedule.constant_epochs=10")
LONG = (*RUN, "trainer.steps=1000000", "trainer.log_every=1", "logger.tensorboard=null")
GONE_S = 30


# -------------------------------------------------------------------------------------------------- exact resume


def test_two_processes_go_on_bit_exactly_and_as_one_or_from_one_but_for_rounding(
    start_two: Callable[..., list[Start]], start: Starts, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    run, at_17 = tmp_path / "runs/smoke", tmp_path / "runs/at 17"
    killed = start_two(*TWO)
    until((run / "checkpoints/step_00000017").exists, "the checkpoint at step 17", alive=killed[0])
    for process in killed:
        process.kill()
    assert newest(run).step == 17
    shutil.copytree(run, at_17)

    for process in start_two(*TWO):
        assert process.wait() == 0, process.said()
    for process in start_two(*TWO, "name=straight"):
        assert process.wait() == 0, process.said()
    assert_same_run(run, tmp_path / "runs/straight")

    as_one = start(*TWO, "name=at 17")
    assert as_one.wait() == 0
    assert "saved by 2 process(es), going on with 1: the same draws, batch, rates and image pools" in as_one.said()
    assert_equal_but_for_rounding(at_17, run)

    straight = undisturbed(*TWO)  # in one process
    from_one = tmp_path / "runs/from one"
    shutil.copytree(straight, from_one)
    for checkpoint in (from_one / "checkpoints").glob("step_*"):
        if checkpoint.name != "step_00000017":
            shutil.rmtree(checkpoint)
    first, second = start_two(*TWO, "name=from one")
    assert (first.wait(), second.wait()) == (0, 0), first.said()
    assert "saved by 1 process(es), going on with 2" in first.said()
    assert_equal_but_for_rounding(from_one, straight)


def assert_equal_but_for_rounding(ours: Path, theirs: Path) -> None:
    one, other = newest(ours), newest(theirs)
    assert one.step == other.step == 40
    for key, value in other.model.tensors.items():
        # The gradient of a bias before an instance norm is rounding and nothing else, of which Adam makes whole steps.
        rounding = 1e-6 * 40 if key.endswith(".bias") else 1e-7
        torch.testing.assert_close(one.model.tensors[key], value, rtol=1e-4, atol=2 * rounding)
    for side in "ab":
        pool, expected = pooled(one, side), pooled(other, side)
        assert pool.keys() == expected.keys()
        for position, pictures in expected.items():
            torch.testing.assert_close(pool[position], pictures, rtol=1e-3, atol=1e-4)
    for mine, its in zip(log(ours), log(theirs), strict=True):
        assert (mine["step"], mine["lr"], mine["epoch"]) == (its["step"], its["lr"], its["epoch"])
        assert mine == pytest.approx(its, rel=1e-3, abs=1e-4), its["step"]
    assert one.training["draws"] == other.training["draws"]


def pooled(checkpoint: Checkpoint, side: str) -> dict[int, torch.Tensor]:
    return {position: stored for rank in checkpoint.ranks for position, stored in rank["pools"][side].items()}


# -------------------------------------------------------------------------------------------------- one goes


def test_one_of_two_killed_ends_the_job_and_leaves_the_newest_checkpoint(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    run = tmp_path / "runs/smoke"
    job = command(*LONG, torchrun=())
    until(lambda: len(log(run)) >= 5, "five steps", alive=job)
    since = time.monotonic()
    os.kill(job.rank(1), signal.SIGKILL)
    assert job.wait() != 0
    until(lambda: not job.processes(), "the end of all", within=GONE_S)
    assert time.monotonic() - since < GONE_S
    state, code, reason = ended(run)
    assert (state, code) == ("failed", 1)
    assert "another process of this run has ended" in str(reason)
    assert newest(run).step >= 3
    assert status(run)["checkpoint"] == f"step_{newest(run).step:08d}"


def test_the_traceback_of_one_that_fails_is_the_last_thing_said_and_said_once(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    slow = ("_target_=tests.faults.faulty_parts.ConsoleThatIsSlow", "said=said 0", "slow_at=3")
    job = command(
        *LONG,
        "adversarial._target_=tests.faults.faulty_parts.Fails",
        *(f"logger.console.{setting}" for setting in slow),
    )
    assert job.wait() == 1
    said = job.said()
    assert "step 3/" in said
    assert said.rstrip().endswith("ZeroDivisionError: a part of one's own"), said
    assert said.count("Traceback") == 1
    assert ended(tmp_path / "runs/smoke") == ("failed", 1, "ZeroDivisionError: a part of one's own")
    assert newest(tmp_path / "runs/smoke").step == 3
    until(lambda: not job.processes(), "the end of all", within=GONE_S)


@pytest.mark.parametrize("torchrun", [(), pytest.param(None, marks=pytest.mark.slow)])
def test_processes_do_not_outlive_the_command_that_started_them(
    command: Callable[..., Command], tmp_path: Path, torchrun: tuple[str, ...] | None
) -> None:
    run = tmp_path / "runs/smoke"
    job = command(*LONG, "data.workers=1", torchrun=torchrun)
    until(lambda: len(log(run)) >= 3, "three steps", alive=job)
    job.send(signal.SIGKILL)
    until(lambda: not job.processes(), "the end of all", within=GONE_S)
    assert job.poll() == -signal.SIGKILL
    assert ended(run) == ("stopped", 75, "SIGTERM")
    assert newest(run).step == status(run)["step"] == log(run)[-1]["step"]


def test_torchrun_starts_a_job_again_of_which_a_process_died_and_it_equals_an_undisturbed_one(
    command: Callable[..., Command], start_two: Callable[..., list[Start]], tmp_path: Path
) -> None:
    short = (*RUN, "trainer.steps=10")
    job = command(*short, "adversarial._target_=tests.faults.faulty_parts.DiesOnce", torchrun=("--max-restarts=1",))
    straight = start_two(*short, "name=straight")
    assert [process.wait() for process in straight] == [0, 0]
    assert job.wait() == 0, job.said()
    assert (tmp_path / "died").exists()
    assert "going on from step 3 to 10" in job.said()
    assert same_state(newest(tmp_path / "runs/smoke"), newest(tmp_path / "runs/straight"))
    assert log(tmp_path / "runs/smoke") == log(tmp_path / "runs/straight")


# -------------------------------------------------------------------------------------------------- one is stuck


def test_one_that_does_not_answer_is_named_after_the_time_that_it_had(
    start_two: Callable[..., list[Start]], tmp_path: Path
) -> None:
    run = tmp_path / "runs/smoke"
    first, second = start_two(*LONG, "trainer.timeout_s=3")
    until(lambda: len(log(run)) >= 5, "five steps", alive=first)
    since = time.monotonic()
    second.send(signal.SIGSTOP)
    assert first.wait() == 1
    assert time.monotonic() - since < 20
    assert ended(run)[:2] == ("failed", 1)
    words = "process 1 does not answer for 3 s (trainer.timeout_s)"
    assert words in str(status(run)["reason"])
    assert words in first.said().splitlines()[-1]
    assert "Traceback" not in first.said()
    assert newest(run).step >= 3


@pytest.mark.slow  # torchrun gives one that does not answer half a minute to leave
@pytest.mark.parametrize("torchrun", [(), None])
def test_a_job_of_which_one_does_not_answer_ends(
    command: Callable[..., Command], tmp_path: Path, torchrun: tuple[str, ...] | None
) -> None:
    run = tmp_path / "runs/smoke"
    job = command(*LONG, "trainer.timeout_s=5", torchrun=torchrun)
    until(lambda: len(log(run)) >= 5, "five steps", alive=job)
    since = time.monotonic()
    os.kill(job.rank(1), signal.SIGSTOP)
    assert job.wait() == 1
    assert time.monotonic() - since < 60
    assert "process 1 does not answer for 5 s" in str(status(run)["reason"])
    until(lambda: not job.processes(), "the end of all", within=GONE_S)
