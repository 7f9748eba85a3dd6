"""Tests of stop requests: a run finishes its step, saves and exits with 75; a second request ends it at once."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.commands import Command, Start, catches, until
from tests.faults.conftest import RUN, Starts
from tests.faults.run_comparison import assert_same_run, ended, log, newest, status

QUICK_S = 10


def stopped(process: Start | Command, run: Path, reason: str, *, since: float, within: float = QUICK_S) -> int:
    """Assert that a run stopped on request, in at most `within` s and with all steps saved; return their number."""
    assert process.wait() == 75, process.printed()
    assert time.monotonic() - since < within
    assert "Traceback" not in process.printed()
    assert ended(run) == ("stopped", 75, reason)
    fields = status(run)
    assert fields["checkpoint"] == (f"step_{fields['step']:08d}" if fields["step"] else None)
    words = f"stopped at step {fields['step']}, saved" if fields["step"] else "stopped before training"
    assert words in process.printed()
    assert not (run / "stop").exists()
    return int(fields["step"])


def test_stopped_and_resumed_run_equals_uninterrupted_run(
    start: Starts, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    run, steps = tmp_path / "runs/smoke", [0]
    for way in (signal.SIGUSR1, "file", signal.SIGTERM, signal.SIGINT):
        process = start(*RUN, "trainer.log_every=1", f"data.workers={len(steps) % 2}")
        until(lambda: log(run) and log(run)[-1]["step"] >= steps[-1] + 3, "three steps", alive=process)
        since = time.monotonic()
        if way == "file":
            (run / "stop").touch()
        else:
            os.killpg(process.pid, way)  # like a terminal or scheduler; data workers ignore it
        reason = "the file runs/smoke/stop" if way == "file" else way.name
        steps.append(stopped(process, run, reason, since=since))
        assert newest(run).step == steps[-1] == log(run)[-1]["step"]
    assert steps == sorted(set(steps))
    assert steps[-1] < 40, "too quick a machine for so few steps"

    process = start(*RUN, "trainer.log_every=1")
    assert process.wait() == 0, process.printed()
    assert_same_run(run, uninterrupted(*RUN, "trainer.log_every=1"), stops=True)


@pytest.mark.parametrize(
    ("moment", "part", "steps"),
    [  # the run also finishes the step after the pause
        ("sampling", "logger.console._target_=tests.faults.faulty_parts.PausingConsole", 1),
        ("saving", "optimizer._target_=tests.faults.faulty_parts.PausingAdam", 4),
    ],
)
def test_busy_run_stops_after_next_step(start: Starts, tmp_path: Path, moment: str, part: str, steps: int) -> None:
    process = start(*RUN, part)
    until((tmp_path / moment).exists, moment, alive=process)
    process.send(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert stopped(process, tmp_path / "runs/smoke", "SIGTERM", since=time.monotonic()) == steps


def test_stop_request_before_first_step_trains_nothing(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    process = start(*RUN)
    until(lambda: catches(process.pid, signal.SIGUSR1), "its signal handler", alive=process)
    process.send(signal.SIGUSR1)
    assert stopped(process, run, "SIGUSR1", since=time.monotonic()) == 0

    (run / "stop").touch()
    process = start(*RUN)
    assert stopped(process, run, "the file runs/smoke/stop", since=time.monotonic()) == 0
    assert not (run / "checkpoints").exists()


def test_stop_request_during_data_preparation_trains_nothing(start: Starts, tmp_path: Path) -> None:
    process = start(*RUN, f"data.root={tmp_path}/drawn", "data.train=60", "data.size=64")
    until(lambda: "drawing landscapes" in process.printed(), "a quarter of the images", alive=process)
    process.send(signal.SIGTERM)
    assert stopped(process, tmp_path / "runs/smoke", "SIGTERM", since=time.monotonic()) == 0


def test_second_interrupt_ends_run_immediately(start: Starts, tmp_path: Path) -> None:
    process = start(*RUN, "optimizer._target_=tests.faults.faulty_parts.PausingAdam")
    until((tmp_path / "saving").exists, "a save", alive=process)
    since = time.monotonic()
    while process.poll() is None:  # the pause would last a minute
        process.send(signal.SIGINT)
        assert time.monotonic() - since < QUICK_S
        time.sleep(0.02)
    assert process.poll() == 130
    state, code, reason = ended(tmp_path / "runs/smoke")
    assert (state, code) == ("stopped", 130)
    assert "second Ctrl-C" in str(reason)
    assert "Traceback" not in process.printed()


def test_stop_request_at_last_step_does_not_stop_next_run(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    arguments = (
        "trainer.steps=3",
        "trainer.save_every=3",
        "optimizer._target_=tests.faults.faulty_parts.PausingAdam",
    )
    process = start(*RUN, *arguments)
    until((tmp_path / "saving").exists, "the last save", alive=process)
    (run / "stop").touch()
    (tmp_path / "go").touch()
    assert process.wait() == 0, process.printed()
    assert ended(run)[0] == "finished"
    assert not (run / "stop").exists()


HANGS = ("data._target_=tests.faults.faulty_parts.hanging_scenes", "trainer.log_every=1", "trainer.steps=1000000")


@pytest.mark.parametrize("workers", [1, 2])
def test_run_waiting_for_stuck_worker_stops_and_saves_on_sigterm(start: Starts, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "runs/smoke"
    process = start(*RUN, *HANGS, f"data.workers={workers}")
    until((tmp_path / "reading").exists, "a hanging worker", alive=process)
    loaded = 5 * workers  # steps whose images were loaded before the hang
    until(lambda: log(run) and log(run)[-1]["step"] >= loaded, "the last step with data", alive=process)
    readers = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    since = time.monotonic()
    process.send(signal.SIGTERM)
    assert stopped(process, run, "SIGTERM", since=since) == loaded == newest(run).step
    assert len(readers) == workers
    assert not any(Path(f"/proc/{reader}").exists() for reader in readers)


def test_ranks_stop_at_same_step_if_loading_hangs_on_one(start_two: Callable[..., list[Start]], tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    both = start_two(*RUN, *HANGS, "data.workers=1")
    until(lambda: log(run) and log(run)[-1]["step"] >= 10, "the last step with data", alive=both[0])
    since = time.monotonic()
    for process in both:  # like torchrun
        process.send(signal.SIGTERM)
    assert both[1].wait() == 75, both[1].printed()
    assert stopped(both[0], run, "SIGTERM", since=since) == 10 == newest(run).step
    assert len(newest(run).ranks) == 2


@pytest.mark.parametrize("signalled", [0, 1])
def test_signal_to_one_rank_stops_both_ranks_at_same_step(
    start_two: Callable[..., list[Start]], tmp_path: Path, signalled: int
) -> None:
    run = tmp_path / "runs/smoke"
    both = start_two(*LONG)
    until(lambda: len(log(run)) >= 3, "three steps", alive=both[0])
    since = time.monotonic()
    both[signalled].send(signal.SIGUSR1)
    assert both[1].wait() == 75, both[1].printed()
    step = stopped(both[0], run, "asked in another process" if signalled else "SIGUSR1", since=since)
    assert newest(run).step == step == log(run)[-1]["step"]
    assert len(newest(run).ranks) == 2


def test_sigterm_to_torchrun_leaves_one_checkpoint_of_all_ranks(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    run = tmp_path / "runs/smoke"
    process = command(*LONG, torchrun=())
    until(lambda: len(log(run)) >= 3, "three steps", alive=process)
    since = time.monotonic()
    process.send(signal.SIGTERM)
    assert process.wait() != 0
    assert time.monotonic() - since < 30
    assert ended(run) == ("stopped", 75, "SIGTERM")
    (only,) = (run / "checkpoints").glob("step_*")
    assert only.name == status(run)["checkpoint"]
    assert len(newest(run).ranks) == 2
    assert newest(run).step == status(run)["step"] == log(run)[-1]["step"]
    until(lambda: not process.processes(), "the exit of all processes")


def test_second_interrupt_ends_all_ranks_immediately(command: Callable[..., Command], tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    process = command(*LONG, "optimizer._target_=tests.faults.faulty_parts.PausingAdam", "trainer.save_every=3")
    until((tmp_path / "saving").exists, "a save", alive=process)
    since = time.monotonic()
    while process.poll() is None:  # the pause would last a minute
        os.killpg(process.pid, signal.SIGINT)
        assert time.monotonic() - since < QUICK_S
        time.sleep(0.2)
    assert process.wait() == 130
    assert ended(run)[:2] == ("stopped", 130)
    assert "Traceback" not in process.printed()
    until(lambda: not process.processes(), "the exit of all processes")


def test_stop_request_before_ranks_start_trains_nothing(command: Callable[..., Command], tmp_path: Path) -> None:
    process = command(*LONG)
    until(lambda: catches(process.pid, signal.SIGUSR1), "its signal handler", alive=process)
    since = time.monotonic()
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.printed()
    assert time.monotonic() - since < 30
    assert "Traceback" not in process.printed()
    assert not log(tmp_path / "runs/smoke")
    until(lambda: not process.processes(), "the exit of all processes")


LONG = (*RUN, "trainer.steps=1000000", "trainer.log_every=1", "trainer.save_every=1000000", "logger.tensorboard=null")
