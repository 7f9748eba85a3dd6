"""Keeps the checkpoint of the step at which a logged number was best."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cyclestyle.checkpoints.best import BestCheckpoint
from cyclestyle.errors import warn
from cyclestyle.training.periodic import Save

if TYPE_CHECKING:
    from cyclestyle.training.trainer import Trainer


class BestKeeper:
    """Saves checkpoints, and marks the one whose number is the best so far.

    A number that a task returns counts at every step but 0: if it is the best so far, the step is saved. A number in
    the usual log counts only at steps that are saved anyway, since it would cause a save after almost every log.

    Args:
        save: function that saves a checkpoint of the trainer; called on all ranks.
        best: rule for the best value; without a name, nothing is marked.
    """

    def __init__(self, trainer: "Trainer", save: Save, best: BestCheckpoint) -> None:
        self._trainer, self._save, self._best = trainer, save, best
        self._saved = trainer.step  # a resumed run has a checkpoint of its first step
        self._is_known = best.has_record  # whether a number of this name was logged, or a warning was given

    def save(self, *, last: bool) -> None:
        """Save a checkpoint of the present step."""
        self._save(last=last)
        self._saved = self._trainer.step

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Consider the numbers of the usual log; on ranks other than 0 they are ignored."""
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

    def on_task(self, step: int, values: Mapping[str, float]) -> None:
        """Consider the numbers of a task; all ranks must call this together."""
        if self._best.name is not None and step > 0:
            self._consider(step, values)
        self._is_known |= self._best.name in values

    def _consider(self, step: int, values: Mapping[str, float]) -> None:
        world, name = self._trainer.world, str(self._best.name)
        improves = world.is_main and name in values and self._best.improves(values[name])
        if not world.any(improves, no_timeout=True):
            return
        if step != self._saved:
            self.save(last=False)
        if world.is_main:
            self._best.record(step, values[name])
