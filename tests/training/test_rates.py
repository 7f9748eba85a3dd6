"""Lines at the start of a run about the learning rate of the coming steps."""

from cyclestyle.training.rates import rate_hint, rate_lines
from cyclestyle.training.schedule import Constant, Cosine, LinearDecay, Schedule, Step
from tests.factories import tiny_trainer


def lines(schedule: Schedule, *, epochs: int, step: int = 0, resumed: bool = False) -> list[str]:
    """Lines for a run with 10 steps per epoch and an initial learning rate of 2e-4."""
    trainer = tiny_trainer(schedule=schedule, steps=10 * epochs, samples_per_epoch=10)
    trainer.step = step
    return rate_lines(trainer, resumed=resumed)


def test_run_within_its_schedule_reports_first_and_last_learning_rate() -> None:
    assert lines(LinearDecay(100, 99), epochs=199) == ["learning rate 0.0002 (100 %) now, 2e-06 (1 %) at the last step"]
    assert lines(LinearDecay(100, 99), epochs=50) == [
        "learning rate 0.0002 (100 %) now, 0.0002 (100 %) at the last step; the schedule would end at step 1990"
    ]


def test_extended_run_reports_its_decayed_learning_rate_and_keys_that_raise_it() -> None:
    rate, after = lines(LinearDecay(100, 99), epochs=300, step=1990, resumed=True)
    assert rate == "learning rate 2e-06 (1 %) now, 2e-06 (1 %) at the last step"
    assert after.startswith("steps 1991 to 3000 come after the end of the schedule (step 1990): they train at 1 % of")
    assert "schedule.constant_epochs=199 schedule.decay_epochs=101 resume.allow_changed=true" in after

    with_these_keys = lines(LinearDecay(199, 101), epochs=300, step=1990, resumed=True)
    assert with_these_keys == ["learning rate 0.000198 (99 %) now, 1.96e-06 (0.98 %) at the last step"]


def test_run_longer_than_its_schedule_reports_steps_after_the_schedule() -> None:
    _, new = lines(LinearDecay(5, 4), epochs=20)
    assert "steps 91 to 200 come after the end of the schedule (step 90): they train at 20 % of" in new
    assert "schedule.constant_epochs=16 schedule.decay_epochs=4;" in new
    assert "resume.allow_changed" not in new  # a new run is free to choose its recipe

    _, cosine = lines(Cosine(5, 5), epochs=20, step=50, resumed=True)
    assert "steps 101 to 200 come after" in cosine
    assert "train at 0 % of" in cosine
    assert "schedule.constant_epochs=15 schedule.decay_epochs=5 resume.allow_changed=true" in cosine

    _, step = lines(Step(10, every_epochs=5), epochs=20, step=100, resumed=True)
    assert "train at 25 % of" in step
    assert "other keys of schedule= change it, with resume.allow_changed=true" in step
    assert len(lines(Constant(10), epochs=20, step=100, resumed=True)) == 1


def test_finished_run_reports_its_decayed_learning_rate() -> None:
    assert "decayed to 20 %" in rate_hint(tiny_trainer(schedule=LinearDecay(5, 4), steps=90))
    assert rate_hint(tiny_trainer(schedule=LinearDecay(5, 4), steps=20)) == ""  # ended before the schedule did
    assert rate_hint(tiny_trainer(schedule=Constant(9), steps=90)) == ""
