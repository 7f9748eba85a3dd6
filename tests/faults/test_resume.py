"""Tests that a run killed at step 17 and resumed to step 40 equals an uninterrupted run, with any number of workers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.commands import until
from tests.faults.conftest import RUN, Starts
from tests.faults.run_comparison import assert_same_run, curves, log, newest, status

AT_17 = (*RUN, "trainer.save_every=17")


@pytest.mark.parametrize(
    ("before", "after", "reference"),
    [
        (("data.workers=0",), ("data.workers=1",), ()),
        (("data.workers=1",), ("data.workers=3", "checkpoint.asynchronous=true"), ()),
        (("data.workers=3",), ("data.workers=0", "trainer.deterministic=true"), ()),
        (("trainer.accumulate=2",), ("trainer.accumulate=2",), ("trainer.accumulate=2",)),
    ],
)
def test_resume_after_kill_equals_uninterrupted_run(
    start: Starts,
    uninterrupted: Callable[..., Path],
    tmp_path: Path,
    before: tuple[str, ...],
    after: tuple[str, ...],
    reference: tuple[str, ...],
) -> None:
    run = tmp_path / "runs/smoke"
    killed = start(*AT_17, *before)
    until((run / "checkpoints/step_00000017").exists, "the checkpoint at step 17", alive=killed)
    killed.kill()
    assert newest(run).step == 17

    again = start(*AT_17, *after)
    assert again.wait() == 0, again.printed()
    assert "resuming from step 17 to 40" in again.printed()
    assert_same_run(run, uninterrupted(*AT_17, *reference))


def test_run_killed_after_last_save_logs_missing_values_on_resume(
    start: Starts, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    run, short = tmp_path / "runs/smoke", (*RUN, "trainer.steps=6", "trainer.sample_every=6")
    loggers = ("logger.tensorboard=null", "logger.metrics=null", "logger.console.pause_at=6")
    killed = start(*short, "logger.console._target_=tests.faults.faulty_parts.PausingConsole", *loggers)
    until((tmp_path / "sampling").exists, "the last samples", alive=killed)
    killed.kill()
    assert (newest(run).step, status(run)["state"]) == (6, "running")

    again = start(*short)
    assert again.wait() == 0, again.printed()
    assert "finished at step 6" in again.printed()
    assert status(run)["state"] == "finished"
    expected = uninterrupted(*short)
    assert log(run) == log(expected)[1:]  # the killed run died before any logger wrote the first line
    assert curves(run)["photo2painting"] == [(6, 0.0)]
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert start(*short).wait() == 0
    # The run is complete, so a third start writes nothing.
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files
