"""40 steps at once are 17, kill -9 and 23 more, whatever loads the pictures and however many share the work."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import RUN, Starts
from tests.faults.runs import assert_same_run, newest
from tests.faults.starts import until

AT_17 = (*RUN, "trainer.save_every=17")


@pytest.mark.parametrize(
    ("first", "then", "straight"),
    [
        (("data.workers=0",), ("data.workers=1",), ()),
        (("data.workers=1",), ("data.workers=3", "checkpoint.background=true"), ()),
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
