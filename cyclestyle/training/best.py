"""Keeps the checkpoint of the step at which a logged number was best."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from cyclestyle.checkpoints.best import BestCheckpoint
from cyclestyle.errors import warn
from cyclestyle.training.periodic import Save

if TYPE_CHECKING:
    from cyclestyle.training.trainer import Trainer


class BestKeeper:
    """Saves checkpoints, and makes `best` in the run folder point to the one with the best value of a logged number.

    The number comes from a user-defined task, such as an evaluation, or from the usual log of losses and speeds. A new
    best value from a task saves a checkpoint of its step if there is none yet, except at step 0. A value from the usual
    log counts only at steps that are saved anyway, since a loss may reach a new best value in almost every log.

    Args:
        save: function that saves a checkpoint of the trainer; called on all ranks.
        best: name of the number, and rule for the better value; without a name, no checkpoint is marked.
        expected: names of numbers that a task will return later in the run; they cause no warning.
    """

    def __init__(self, trainer: "Trainer", save: Save, best: BestCheckpoint, *, expected: Collection[str] = ()) -> None:
        self._trainer, self._save, self._best = trainer, save, best
        self._saved = trainer.step  # a resumed run has a checkpoint of its first step
        # Whether a number of this name was or will be logged, or a warning was given.
        self._is_known = best.has_record or best.name in expected

    def save(self, *, last: bool) -> None:
        """Save a checkpoint of the present step; `last` is true if this process saves no further one."""
        self._save(last=last)
        self._saved = self._trainer.step

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Mark the checkpoint of `step` as the best if the chosen number in `values` has a new best value.

        No checkpoint is marked if none was saved at `step`. `values` are the numbers of the usual log.

        The first call warns if the chosen number is neither in `values` nor among the numbers that tasks have returned.
        All ranks must call this together; only the values on rank 0 count.
        """
        if self._best.name is None:
            return
        if not self._is_known and self._best.name not in values and self._trainer.world.is_main:
            warn(
                f"checkpoint.best={self._best.name}: no number of this name has been logged so far; there are "
                f"{', '.join(list(values)[:4])} and others in metrics.jsonl"
            )
        self._is_known = True
        if step == self._saved:
            self._consider(step, values)

    def on_task(self, step: int, values: Mapping[str, float], *, evaluations: int | None = None) -> None:
        """Save and mark a checkpoint of `step` if a task has returned a new best value; do nothing at step 0.

        If the task has also returned the bounds of the value's interval, as `NAME/low` and `NAME/high`, they are stored
        with the mark.

        All ranks must call this together; only the values on rank 0 count.

        Args:
            values: numbers that the task has returned, by name.
            evaluations: how many times the task has been done in this run; None if it does not count.
        """
        if self._best.name is not None and step > 0:
            self._consider(step, values, evaluations)
        self._is_known |= self._best.name in values

    def _consider(self, step: int, values: Mapping[str, float], evaluations: int | None = None) -> None:
        world, name = self._trainer.world, str(self._best.name)
        improves = world.is_main and name in values and self._best.improves(values[name])
        if not world.any(improves, no_timeout=True):
            return
        if step != self._saved:
            self.save(last=False)
        if world.is_main:
            low, high = values.get(f"{name}/low"), values.get(f"{name}/high")
            interval = None if low is None or high is None else (low, high)
            self._best.record(step, values[name], interval=interval, evaluations=evaluations)
