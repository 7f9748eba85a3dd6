"""40 steps at once are 17, kill -9 and 23 more, whatever loads the pictures and however many share the work."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.commands import until
from tests.faults.conftest import RUN, Starts
from tests.faults.run_comparison import assert_same_run, curves, log, newest, status

AT_17 = (*RUN, "trainer.save_every=17")


@pytest.mark.parametrize(
    ("first", "then", "straight"),
    [
        (("data.workers=0",), ("data.workers=1",), ()),
        (("data.workers=1",), ("data.workers=3", "checkpoint.asynchronous=true"), ()),
        (("data.workers=3",), ("data.workers=0", "trainer.deterministic=true"), ()),
        (("trainer.accumulate=2",), ("trainer.accumulate=2",), ("trainer.accumulate=2",)),
    ],
)
def test_17_steps_and_a_kill_and_23_more_are_40_straight_ones(
    start: Starts,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
    first: tuple[str, ...],
    then: tuple[str, ...],
    straight: tuple[str, ...],
) -> None:
    run = tmp_path / "runs/smoke"
    killed = start(*AT_17, *first)
    until((run / "checkpoints/step_00000017").exists, "the checkpoint at step 17", alive=killed)
    killed.kill()
    assert newest(run).step == 17

    again = start(*AT_17, *then)
    assert again.wait() == 0, again.said()
    assert "going on from step 17 to 40" in again.said()
    assert_same_run(run, undisturbed(*AT_17, *straight))


def test_a_run_killed_after_its_last_save_tells_what_it_had_not_told(
    start: Starts, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    run, short = tmp_path / "runs/smoke", (*RUN, "trainer.steps=6", "trainer.sample_every=6")
    before = ("logger.tensorboard=null", "logger.metrics=null", "logger.console.pause_at=6")
    killed = start(*short, "logger.console._target_=tests.faults.faulty_parts.ConsoleThatPauses", *before)
    until((tmp_path / "sampling").exists, "the last pictures", alive=killed)
    killed.kill()
    assert (newest(run).step, status(run)["state"]) == (6, "running")

    again = start(*short)
    assert again.wait() == 0, again.said()
    assert "finished at step 6" in again.said()
    assert status(run)["state"] == "finished"
    straight = undisturbed(*short)
    assert log(run) == log(straight)[1:]  # it had told the first to nobody
    assert curves(run)["photo2painting"] == [(6, 0.0)]
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert start(*short).wait() == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files  # nothing is left to be told
