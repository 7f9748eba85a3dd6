"""Asked to stop, a run finishes its step, saves, says so and leaves; asked twice, it leaves."""

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
    """Whether a process has left as it was asked to, with all it had done saved; the steps it had done."""
    assert process.wait() == 75, process.said()
    assert time.monotonic() - since < within
    assert "Traceback" not in process.said()
    assert ended(run) == ("stopped", 75, reason)
    told = status(run)
    assert told["checkpoint"] == (f"step_{told['step']:08d}" if told["step"] else None)
    words = f"stopped at step {told['step']}, saved" if told["step"] else "stopped before training"
    assert words in process.said()
    assert not (run / "stop").exists()
    return int(told["step"])


def test_a_run_stopped_in_every_way_there_is_equals_one_that_never_stopped(
    start: Starts, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    run, steps = tmp_path / "runs/smoke", [0]
    for way in (signal.SIGUSR1, "file", signal.SIGTERM, signal.SIGINT):
        process = start(*RUN, "trainer.log_every=1", f"data.workers={len(steps) % 2}")
        until(lambda: log(run) and log(run)[-1]["step"] >= steps[-1] + 3, "three steps", alive=process)
        since = time.monotonic()
        if way == "file":
            (run / "stop").touch()
        else:
            os.killpg(process.pid, way)  # as a terminal and a scheduler do; its data workers go on
        reason = "the file runs/smoke/stop" if way == "file" else way.name
        steps.append(stopped(process, run, reason, since=since))
        assert newest(run).step == steps[-1] == log(run)[-1]["step"]
    assert steps == sorted(set(steps))
    assert steps[-1] < 40, "too quick a machine for so few steps"

    process = start(*RUN, "trainer.log_every=1")
    assert process.wait() == 0, process.said()
    assert_same_run(run, undisturbed(*RUN, "trainer.log_every=1"), stops=True)


@pytest.mark.parametrize(
    ("moment", "part", "steps"),
    [  # the one that follows is done as well
        ("sampling", "logger.console._target_=tests.faults.faulty_parts.ConsoleThatPauses", 1),
        ("saving", "optimizer._target_=tests.faults.faulty_parts.AdamThatPauses", 4),
    ],
)
def test_a_run_that_is_busy_stops_after_the_next_step(
    start: Starts, tmp_path: Path, moment: str, part: str, steps: int
) -> None:
    process = start(*RUN, part)
    until((tmp_path / moment).exists, moment, alive=process)
    process.send(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert stopped(process, tmp_path / "runs/smoke", "SIGTERM", since=time.monotonic()) == steps


def test_a_run_asked_before_its_first_step_does_none(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    process = start(*RUN)
    until(lambda: catches(process.pid, signal.SIGUSR1), "its handler", alive=process)
    process.send(signal.SIGUSR1)
    assert stopped(process, run, "SIGUSR1", since=time.monotonic()) == 0

    (run / "stop").touch()
    process = start(*RUN)
    assert stopped(process, run, "the file runs/smoke/stop", since=time.monotonic()) == 0
    assert not (run / "checkpoints").exists()


def test_a_run_asked_while_it_prepares_its_pictures_does_no_step(start: Starts, tmp_path: Path) -> None:
    process = start(*RUN, f"data.root={tmp_path}/drawn", "data.train=60", "data.size=64")
    until(lambda: "drawing landscapes" in process.said(), "a quarter of the pictures", alive=process)
    process.send(signal.SIGTERM)
    assert stopped(process, tmp_path / "runs/smoke", "SIGTERM", since=time.monotonic()) == 0


def test_a_second_interrupt_ends_a_run_at_once(start: Starts, tmp_path: Path) -> None:
    process = start(*RUN, "optimizer._target_=tests.faults.faulty_parts.AdamThatPauses")
    until((tmp_path / "saving").exists, "a save", alive=process)
    since = time.monotonic()
    while process.poll() is None:  # it would wait for a minute
        process.send(signal.SIGINT)
        assert time.monotonic() - since < QUICK_S
        time.sleep(0.02)
    assert process.poll() == 130
    state, code, reason = ended(tmp_path / "runs/smoke")
    assert (state, code) == ("stopped", 130)
    assert "second Ctrl-C" in str(reason)
    assert "Traceback" not in process.said()


def test_a_wish_to_stop_that_came_with_the_end_does_not_stop_the_next_start(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    arguments = (
        "trainer.steps=3",
        "trainer.save_every=3",
        "optimizer._target_=tests.faults.faulty_parts.AdamThatPauses",
    )
    process = start(*RUN, *arguments)
    until((tmp_path / "saving").exists, "the last save", alive=process)
    (run / "stop").touch()
    (tmp_path / "go").touch()
    assert process.wait() == 0, process.said()
    assert ended(run)[0] == "finished"
    assert not (run / "stop").exists()


HANGS = ("data._target_=tests.faults.faulty_parts.scenes_that_hang", "trainer.log_every=1", "trainer.steps=1000000")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_waits_for_data_in_vain_stops_and_saves(start: Starts, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "runs/smoke"
    process = start(*RUN, *HANGS, f"data.workers={workers}")
    until((tmp_path / "reading").exists, "a worker that hangs", alive=process)
    whole = 5 * workers  # steps whose pictures were read before
    until(lambda: log(run) and log(run)[-1]["step"] >= whole, "the last step with data", alive=process)
    readers = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    since = time.monotonic()
    process.send(signal.SIGTERM)
    assert stopped(process, run, "SIGTERM", since=since) == whole == newest(run).step
    assert len(readers) == workers
    assert not any(Path(f"/proc/{reader}").exists() for reader in readers)


def test_two_processes_of_which_one_waits_for_data_in_vain_stop_after_the_same_step(
    start_two: Callable[..., list[Start]], tmp_path: Path
) -> None:
    run = tmp_path / "runs/smoke"
    both = start_two(*RUN, *HANGS, "data.workers=1")
    until(lambda: log(run) and log(run)[-1]["step"] >= 10, "the last step with data", alive=both[0])
    since = time.monotonic()
    for process in both:  # as torchrun does
        process.send(signal.SIGTERM)
    assert both[1].wait() == 75, both[1].said()
    assert stopped(both[0], run, "SIGTERM", since=since) == 10 == newest(run).step
    assert len(newest(run).ranks) == 2


@pytest.mark.parametrize("asked", [0, 1])
def test_two_processes_stop_after_the_same_step_though_one_is_asked(
    start_two: Callable[..., list[Start]], tmp_path: Path, asked: int
) -> None:
    run = tmp_path / "runs/smoke"
    both = start_two(*LONG)
    until(lambda: len(log(run)) >= 3, "three steps", alive=both[0])
    since = time.monotonic()
    both[asked].send(signal.SIGUSR1)
    assert both[1].wait() == 75, both[1].said()
    step = stopped(both[0], run, "asked in another process" if asked else "SIGUSR1", since=since)
    assert newest(run).step == step == log(run)[-1]["step"]
    assert len(newest(run).ranks) == 2


def test_torchrun_told_to_end_leaves_one_checkpoint_of_all_its_processes(
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
    until(lambda: not process.processes(), "the end of all")


def test_a_second_interrupt_ends_all_processes_of_a_command(command: Callable[..., Command], tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    process = command(*LONG, "optimizer._target_=tests.faults.faulty_parts.AdamThatPauses", "trainer.save_every=3")
    until((tmp_path / "saving").exists, "a save", alive=process)
    since = time.monotonic()
    while process.poll() is None:  # it would wait for a minute
        os.killpg(process.pid, signal.SIGINT)
        assert time.monotonic() - since < QUICK_S
        time.sleep(0.2)
    assert process.wait() == 130
    assert ended(run)[:2] == ("stopped", 130)
    assert "Traceback" not in process.said()
    until(lambda: not process.processes(), "the end of all")


def test_a_command_of_two_processes_asked_before_it_has_begun_does_not_begin(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    process = command(*LONG)
    until(lambda: catches(process.pid, signal.SIGUSR1), "its handler", alive=process)
    since = time.monotonic()
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.said()
    assert time.monotonic() - since < 30
    assert "Traceback" not in process.said()
    assert not log(tmp_path / "runs/smoke")
    until(lambda: not process.processes(), "the end of all")


LONG = (*RUN, "trainer.steps=1000000", "trainer.log_every=1", "trainer.save_every=1000000", "logger.tensorboard=null")
