"""The keeper of the best checkpoint: which numbers count, when a save is caused, warnings, and resume."""

import math
from pathlib import Path
from typing import Any

import pytest

from cyclestyle.checkpoints.best import BestCheckpoint
from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.training.best import BestKeeper
from cyclestyle.training.periodic import own_task, usual_tasks
from tests.checkpoints.test_directory import save, steps
from tests.factories import random_batch, tiny_trainer


class Run:
    """A run at a chosen step, whose checkpoints are saved to a folder."""

    def __init__(
        self, folder: Path, *, step: int = 0, best: str | None = "kid", mode: Any = "min", expected: Any = ()
    ) -> None:
        self.folder, self.saves = folder, []
        self.trainer = tiny_trainer(steps=1000)
        self.trainer.step = step
        self.checkpoints = Checkpoints(folder, keep=100)
        marker = BestCheckpoint(self.checkpoints, best=best, mode=mode)
        self.keeper = BestKeeper(self.trainer, self.write, marker, expected=expected)

    def write(self, *, last: bool) -> None:
        self.saves.append(self.trainer.step)
        save(self.folder, self.trainer.step, keep=100)

    def at(self, step: int, *, saved: bool = False, log: Any = None, task: Any = None) -> "Run":
        """Do what a run does after step `step`: save, log, then the task, where these are given."""
        self.trainer.step = step
        if saved:
            self.keeper.save(last=False)
        if log is not None:
            self.keeper.on_log(step, log)
        if task is not None:
            self.keeper.on_task(step, task)
        return self

    @property
    def best(self) -> tuple[int, float] | None:
        best = self.checkpoints.best()
        return None if best is None else (best.step, best.value)


def test_logged_number_marks_best_checkpoint_only_at_saved_steps(tmp_path: Path) -> None:
    run = Run(tmp_path).at(1, log={"kid": 0.1})
    assert (run.best, run.saves) == (None, [])
    assert run.at(2, saved=True, log={"kid": 0.5}).best == (2, 0.5)
    assert run.at(3, log={"kid": 0.2}).best == (2, 0.5)
    assert run.at(4, saved=True, log={"kid": 0.5}).best == (2, 0.5)  # an equal value is not better
    assert run.at(6, saved=True, log={"kid": 0.4}).best == (6, 0.4)
    assert run.saves == [2, 4, 6]


def test_new_best_number_from_a_periodic_task_saves_one_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path).at(0, task={"kid": 0.0})  # step 0, of random weights, does not count
    assert (run.best, run.saves) == (None, [])
    assert capsys.readouterr().err == ""  # no attempt to mark a checkpoint of step 0
    assert run.at(1, task={"kid": 0.5, "fid": 0.1}).best == (1, 0.5)
    assert run.at(2, task={"kid": 0.6}).best == (1, 0.5)
    assert run.at(3, task={"kid": math.nan}).best == (1, 0.5)
    assert run.at(4, task={"fid": 0.0}).best == (1, 0.5)
    assert run.at(5, saved=True, task={"kid": 0.4}).best == (5, 0.4)  # saved by its schedule
    assert run.saves == [1, 5]
    assert steps(tmp_path) == ["step_00000001", "step_00000005"]


def test_mode_max_prefers_higher_numbers_and_never_nan(tmp_path: Path) -> None:
    run = Run(tmp_path, mode="max").at(1, task={"kid": math.nan})
    assert run.best is None
    assert run.at(2, task={"kid": 0.5}).best == (2, 0.5)
    assert run.at(3, task={"kid": 0.4}).best == (2, 0.5)
    assert run.at(4, task={"kid": math.inf}).best == (4, math.inf)
    assert run.saves == [2, 4]


def test_no_checkpoint_is_marked_if_option_checkpoint_best_is_not_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, best=None).at(2, saved=True, log={"kid": 0.5}, task={"kid": 0.1})
    assert (run.best, run.saves) == (None, [2])
    assert capsys.readouterr().err == ""


def test_best_number_missing_in_the_first_log_gives_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path).at(1, log={"lr": 1.0, "epoch": 2.0})
    (warning,) = capsys.readouterr().err.splitlines()
    assert (
        "checkpoint.best=kid: no number of this name has been logged so far; there are lr, epoch and others" in warning
    )
    run.at(2, log={"lr": 1.0}).at(3, log={"lr": 1.0})
    assert capsys.readouterr().err == ""


def test_checkpoint_best_naming_a_number_of_a_task_gives_no_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(tmp_path).at(0, task={"kid": 0.5}).at(1, log={"lr": 1.0})
    assert capsys.readouterr().err == ""


def test_number_that_a_task_will_return_gives_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(tmp_path, expected=["kid", "style"]).at(1, log={"lr": 1.0})
    assert capsys.readouterr().err == ""
    Run(tmp_path, expected=["style"]).at(1, log={"lr": 1.0})
    assert "checkpoint.best=kid" in capsys.readouterr().err


def test_best_mark_has_the_interval_that_the_task_returned(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.trainer.step = 1
    run.keeper.on_task(1, {"kid": 0.5, "kid/low": 0.25, "kid/high": 0.75, "style/low": 0.0}, evaluations=3)
    assert run.checkpoints.best()[4:] == ("min", (0.25, 0.75), 3)
    assert run.at(2, task={"kid": 0.4, "style/low": 0.0, "style/high": 1.0}).checkpoints.best()[4:] == (
        "min",
        None,
        None,
    )


def test_resumed_run_compares_with_earlier_best_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(tmp_path).at(2, saved=True, task={"kid": 0.3}).at(4, saved=True, task={"kid": 0.5})
    resumed = Run(tmp_path, step=4).at(4, log={"lr": 1.0}, task={"kid": 0.4})
    assert (resumed.best, resumed.saves) == ((2, 0.3), [])
    assert capsys.readouterr().err == ""  # the name is known from the run so far
    assert resumed.at(5, task={"kid": 0.2}).best == (5, 0.2)
    assert resumed.saves == [5]

    again = Run(tmp_path, step=5).at(5, task={"kid": 0.1})  # the checkpoint of its first step exists
    assert (again.best, again.saves) == ((5, 0.1), [])
    other = Run(tmp_path, step=5, mode="max").at(6, task={"kid": 0.05})  # another rule has no record yet
    assert other.best == (6, 0.05)


def test_best_checkpoint_of_a_training_run_has_lowest_number_of_its_task(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.trainer.total = 6
    scores = {0: 0.0, 1: 0.9, 2: 0.4, 3: 0.7, 4: 0.2, 5: 0.3, 6: 0.8}
    task = own_task(
        run.trainer,
        lambda step, networks: {"kid": scores[step]},
        name="kid",
        every=1,
        loggers=[],
        on_values=run.keeper.on_task,
    )
    usual = usual_tasks(run.trainer, save=run.keeper.save, on_log=run.keeper.on_log, log_every=1, save_every=5)
    run.trainer.fit(iter([random_batch([step], size=16) for step in range(6)]), tasks=[*usual, task])
    assert run.best == (4, 0.2)
    assert run.saves == [1, 2, 4, 5, 6]  # three new best values, the schedule, and the last step
