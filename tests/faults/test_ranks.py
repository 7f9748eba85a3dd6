"""Tests of runs with two ranks: exact resume, and the end of a run when one rank dies, fails or hangs."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cyclestyle.checkpoints.directory import Checkpoint
from tests.evaluation.random_weights import write_random_weights
from tests.faults.commands import Command, Start, until
from tests.faults.conftest import RUN, SCORES, Starts
from tests.faults.run_comparison import assert_same_run, ended, log, newest, same_state, status

# At the default learning rate, networks of this size multiply rounding errors by ten at each step; so it is lower here.
TWO = (*RUN, "trainer.save_every=17", "trainer.precision=fp32", "optimizer.lr=0.000001", "schedule.constant_epochs=10")
LONG = (*RUN, "trainer.steps=1000000", "trainer.log_every=1", "logger.tensorboard=null")
GONE_S = 30


# -------------------------------------------------------------------------------------------------- exact resume


def test_resume_with_same_or_other_rank_count_is_exact(
    start_two: Callable[..., list[Start]], start: Starts, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    run, at_17 = tmp_path / "runs/smoke", tmp_path / "runs/at 17"
    killed = start_two(*TWO)
    until((run / "checkpoints/step_00000017").exists, "the checkpoint at step 17", alive=killed[0])
    for process in killed:
        process.kill()
    assert newest(run).step == 17
    shutil.copytree(run, at_17)

    for process in start_two(*TWO):
        assert process.wait() == 0, process.printed()
    for process in start_two(*TWO, "name=straight"):
        assert process.wait() == 0, process.printed()
    assert_same_run(run, tmp_path / "runs/straight")

    single = start(*TWO, "name=at 17")
    assert single.wait() == 0
    assert "saved by 2 process(es), continuing with 1: the same draws, batch, rates and image pools" in single.printed()
    assert_equal_but_for_rounding(at_17, run)

    straight = uninterrupted(*TWO)  # run in one process
    from_one = tmp_path / "runs/from one"
    shutil.copytree(straight, from_one)
    for checkpoint in (from_one / "checkpoints").glob("step_*"):
        if checkpoint.name != "step_00000017":
            shutil.rmtree(checkpoint)
    first, second = start_two(*TWO, "name=from one")
    assert (first.wait(), second.wait()) == (0, 0), first.printed()
    assert "saved by 1 process(es), continuing with 2" in first.printed()
    assert_equal_but_for_rounding(from_one, straight)


def assert_equal_but_for_rounding(actual: Path, expected: Path) -> None:
    one, other = newest(actual), newest(expected)
    assert one.step == other.step == 40
    for key, value in other.model.tensors.items():
        # The gradient of a bias before an instance norm is pure rounding, and Adam makes full steps from it.
        tolerance = 1e-6 * 40 if key.endswith(".bias") else 1e-7
        torch.testing.assert_close(one.model.tensors[key], value, rtol=1e-4, atol=2 * tolerance)
    for side in "ab":
        pool, other_pool = pooled(one, side), pooled(other, side)
        assert pool.keys() == other_pool.keys()
        for position, images in other_pool.items():
            torch.testing.assert_close(pool[position], images, rtol=1e-3, atol=1e-4)
    for line, other_line in zip(log(actual), log(expected), strict=True):
        assert all(line[key] == other_line[key] for key in ("step", "lr", "epoch"))
        assert line == pytest.approx(other_line, rel=1e-3, abs=1e-4), other_line["step"]
    assert one.training["draws"] == other.training["draws"]


def pooled(checkpoint: Checkpoint, side: str) -> dict[int, torch.Tensor]:
    """Images in the image pools of all ranks, for one domain: slot -> image."""
    return {position: stored for rank in checkpoint.ranks for position, stored in rank["pools"][side].items()}


def test_two_ranks_have_the_scores_of_one_process(
    start_two: Callable[..., list[Start]], start: Starts, tmp_path: Path
) -> None:
    weights = write_random_weights(tmp_path / "weights", "lpips_alex")
    scoring = (
        "scores.every=3", "scores.names=[kid,style,structure,colours,content_ssim]", "scores.rulers=[lpips_alex]",
        f"scores.path={weights}", "scores.size=32", "checkpoint.best=kid", "trainer.batch_size=2",
        "trainer.precision=fp32", "trainer.steps=3",
    )  # fmt: skip
    straight = start(*scoring)
    assert straight.wait() == 0, straight.printed()
    one = tmp_path / "runs/smoke"
    expected = (one / "scores.jsonl").read_bytes(), (one / "checkpoints/best").read_bytes()
    two = tmp_path / "runs/two"
    shutil.copytree(one, two)
    (two / "checkpoints/best").unlink()
    (two / "status.json").write_text('{"state": "running", "step": 3}')  # killed after its last save

    for process in start_two(*scoring, "name=two"):  # both ranks score the networks of the single process
        assert process.wait() == 0, process.printed()
    assert ((two / "scores.jsonl").read_bytes(), (two / "checkpoints/best").read_bytes()) == expected


def test_two_ranks_with_scores_that_are_killed_equal_an_uninterrupted_run(
    start_two: Callable[..., list[Start]], tmp_path: Path
) -> None:
    settings = (*TWO, *SCORES, "trainer.save_every=5", "trainer.steps=9")
    killed = start_two(*settings)
    until((tmp_path / "runs/smoke/checkpoints/step_00000005").exists, "the checkpoint at step 5", alive=killed[0])
    for process in killed:
        process.kill()
    for process in start_two(*settings):
        assert process.wait() == 0, process.printed()
    for process in start_two(*settings, "name=straight"):
        assert process.wait() == 0, process.printed()
    assert_same_run(tmp_path / "runs/smoke", tmp_path / "runs/straight")


# -------------------------------------------------------------------------------------------------- a rank dies


def test_run_with_killed_rank_ends_and_keeps_checkpoint(command: Callable[..., Command], tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    job = command(*LONG, torchrun=())
    until(lambda: len(log(run)) >= 5, "five steps", alive=job)
    since = time.monotonic()
    os.kill(job.rank(1), signal.SIGKILL)
    assert job.wait() != 0
    until(lambda: not job.processes(), "the exit of all processes", within=GONE_S)
    assert time.monotonic() - since < GONE_S
    state, code, reason = ended(run)
    assert (state, code) == ("failed", 1)
    assert "another process of this run has ended" in str(reason)
    assert newest(run).step >= 3
    assert status(run)["checkpoint"] == f"step_{newest(run).step:08d}"


@pytest.mark.slow  # the launching command imports PyTorch, then torchrun does, then each rank
def test_launching_command_records_failure_if_rank_0_is_killed(command: Callable[..., Command], tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    job = command(*LONG)
    until(lambda: len(log(run)) >= 5, "five steps", alive=job)
    os.kill(job.rank(0), signal.SIGKILL)
    assert job.wait(within=GONE_S) == 1
    assert ended(run) == ("failed", 1, "process 0 was ended by SIGKILL, the others with it")
    assert status(run)["checkpoint"] == f"step_{newest(run).step:08d}"
    until(lambda: not job.processes(), "the exit of all processes", within=GONE_S)


def test_traceback_of_failed_rank_is_printed_once_at_the_end(command: Callable[..., Command], tmp_path: Path) -> None:
    slow = ("_target_=tests.faults.faulty_parts.SlowConsole", "output=output 0", "slow_at=3")
    job = command(
        *LONG,
        "adversarial._target_=tests.faults.faulty_parts.RaisesError",
        *(f"logger.console.{setting}" for setting in slow),
    )
    assert job.wait() == 1
    output = job.printed()
    assert "step 3/" in output
    assert output.rstrip().endswith("ZeroDivisionError: a custom component"), output
    assert output.count("Traceback") == 1
    assert ended(tmp_path / "runs/smoke") == ("failed", 1, "ZeroDivisionError: a custom component")
    assert newest(tmp_path / "runs/smoke").step == 3
    until(lambda: not job.processes(), "the exit of all processes", within=GONE_S)


@pytest.mark.parametrize("torchrun", [(), pytest.param(None, marks=pytest.mark.slow)])
def test_ranks_do_not_outlive_launching_command(
    command: Callable[..., Command], tmp_path: Path, torchrun: tuple[str, ...] | None
) -> None:
    run = tmp_path / "runs/smoke"
    job = command(*LONG, "data.workers=1", torchrun=torchrun)
    until(lambda: len(log(run)) >= 3, "three steps", alive=job)
    job.send(signal.SIGKILL)
    until(lambda: not job.processes(), "the exit of all processes", within=GONE_S)
    assert job.poll() == -signal.SIGKILL
    assert ended(run) == ("stopped", 75, "SIGTERM")
    assert newest(run).step == status(run)["step"] == log(run)[-1]["step"]


def test_torchrun_restart_equals_uninterrupted_run(
    command: Callable[..., Command], start_two: Callable[..., list[Start]], tmp_path: Path
) -> None:
    short = (*RUN, "trainer.steps=10")
    job = command(*short, "adversarial._target_=tests.faults.faulty_parts.KillsOnce", torchrun=("--max-restarts=1",))
    straight = start_two(*short, "name=straight")
    assert [process.wait() for process in straight] == [0, 0]
    assert job.wait() == 0, job.printed()
    assert (tmp_path / "died").exists()
    assert "resuming from step 3 to 10" in job.printed()
    assert same_state(newest(tmp_path / "runs/smoke"), newest(tmp_path / "runs/straight"))
    assert log(tmp_path / "runs/smoke") == log(tmp_path / "runs/straight")


# -------------------------------------------------------------------------------------------------- a rank hangs


def test_timeout_error_names_unresponsive_rank(start_two: Callable[..., list[Start]], tmp_path: Path) -> None:
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
    assert words in first.printed().splitlines()[-1]
    assert "Traceback" not in first.printed()
    assert newest(run).step >= 3


@pytest.mark.slow  # torchrun waits half a minute for an unresponsive rank
@pytest.mark.parametrize("torchrun", [(), None])
def test_run_with_unresponsive_rank_ends(
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
    until(lambda: not job.processes(), "the exit of all processes", within=GONE_S)
