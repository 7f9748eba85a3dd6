"""Lines about the learning rate of the coming steps, printed at the start of a run."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclestyle.training.trainer import Trainer


def rate_lines(trainer: "Trainer", *, resumed: bool) -> list[str]:
    """Return lines that describe the learning rate now and at the last step; none if all steps are done.

    If the run is longer than its schedule and its rate has decayed, a second line names the steps after the end of the
    schedule, their rate, and the config keys that change this rate.

    Args:
        resumed: whether the run resumes; the second line then also names `resume.allow_changed=true`, which a resumed
            run needs for a changed schedule.
    """
    if trainer.step >= trainer.total:
        return []
    end, last = _end(trainer), trainer.total - 1
    early = f"; the schedule would end at step {end}" if trainer.total < end else ""
    lines = [f"learning rate {_rate(trainer, trainer.step)} now, {_rate(trainer, last)} at the last step{early}"]
    if trainer.total > end and _factor(trainer, last) < 1:
        lines.append(
            f"steps {max(end, trainer.step) + 1} to {trainer.total} come after the end of the schedule (step {end}): "
            f"they train at {_percent(_factor(trainer, max(end, trainer.step)))} of the initial learning rate; "
            f"{_remedy(trainer, resumed=resumed)}"
        )
    return lines


def rate_hint(trainer: "Trainer") -> str:
    """Return a hint for finished runs: how far the learning rate has decayed, in case the run is to be made longer.

    The hint is empty if the rate has not decayed, or if the schedule is longer than the run.
    """
    factor = _factor(trainer, trainer.total)
    if factor >= 1 or trainer.total < _end(trainer):
        return ""
    return (
        f"; its learning rate has decayed to {_percent(factor)}: the start of a longer run prints the keys "
        f"of schedule= that raise it"
    )


def _remedy(trainer: "Trainer", *, resumed: bool) -> str:
    """Return advice on the config keys that change the learning rate of the steps after the end of the schedule.

    Args:
        resumed: whether the run resumes; the advice then also names `resume.allow_changed=true`.
    """
    allow = " resume.allow_changed=true (they are part of the recipe)" if resumed else ""
    schedule = trainer.schedule
    epochs = math.ceil(trainer.total * trainer.batch_size / trainer.samples_per_epoch)
    decay = getattr(schedule, "decay_epochs", None)
    if decay is None or not hasattr(schedule, "constant_epochs"):
        with_permission = ", with resume.allow_changed=true (they are part of the recipe)" if resumed else ""
        return f"other keys of schedule= change it{with_permission}"
    constant = epochs - decay
    if trainer.step >= _end(trainer):  # the decay is over: the full rate would last until now, the new decay begins
        constant = math.ceil(trainer.epoch)
        decay = max(epochs - constant, 0)
    return (
        f"to decay from the full rate again: schedule.constant_epochs={constant} schedule.decay_epochs={decay}{allow}; "
        f"a higher schedule.constant_epochs keeps the full rate for longer"
    )


def _end(trainer: "Trainer") -> int:
    """Return the step at which the schedule ends."""
    return math.ceil(trainer.schedule.epochs * trainer.samples_per_epoch / trainer.batch_size)


def _factor(trainer: "Trainer", step: int) -> float:
    """Return the factor by which the schedule multiplies the initial learning rates when `step` steps are done."""
    return trainer.schedule.factor(step * trainer.batch_size / trainer.samples_per_epoch)


def _rate(trainer: "Trainer", step: int) -> str:
    """Format the first optimizer's learning rate after `step` steps and its share of the initial one: `2e-06 (1 %)`."""
    factor = _factor(trainer, step)
    rate = next(iter(trainer.updater.optimizers.rates(factor).values()))
    return f"{rate:.3g} ({_percent(factor)})"


def _percent(factor: float) -> str:
    return f"{100 * factor:.3g} %"
