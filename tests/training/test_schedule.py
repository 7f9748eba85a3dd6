"""The learning rate against the numbers of the recipe."""

import pytest

from cyclestyle.errors import CommandError
from cyclestyle.training.schedule import LinearDecay
from tests.factories import tiny_trainer


def test_the_recipe_is_constant_then_falls_to_one_hundred_and_first() -> None:
    schedule = LinearDecay(100, 100)
    assert [schedule.factor(epoch) for epoch in (0, 50, 99)] == [1, 1, 1]
    assert schedule.factor(100) == pytest.approx(100 / 101)
    assert schedule.factor(149) == pytest.approx(51 / 101)
    assert schedule.factor(199) == pytest.approx(1 / 101)


def test_after_its_end_it_stays_where_it_ended() -> None:
    assert LinearDecay(100, 100).factor(5000) == pytest.approx(1 / 101)
    assert LinearDecay(3, 1).factor(4) == pytest.approx(1 / 2)


def test_without_decay_it_is_constant_for_ever() -> None:
    assert {LinearDecay(10, 0).factor(epoch) for epoch in range(50)} == {1.0}


def test_rates_change_once_an_epoch_counted_in_draws() -> None:
    trainer = tiny_trainer(batch_size=4, samples_per_epoch=10, schedule=LinearDecay(1, 1))
    rates = []
    for step in range(6):
        trainer.step = step
        rates.append(trainer.learning_rate / 2e-4)
    # Steps begin at draws 0, 4, 8 of epoch 0 and at 12, 16 of epoch 1; draw 20 is past the end and stays there.
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5])


def test_length_is_steps_before_epochs_before_the_schedules_own() -> None:
    def total(**settings: int | None) -> int:
        return tiny_trainer(batch_size=4, samples_per_epoch=10, schedule=LinearDecay(2, 3), **settings).total

    assert total(steps=7, epochs=1) == 7
    assert total(steps=None, epochs=2) == 5
    assert total(steps=None, epochs=None) == 13  # 50 draws
    for settings in ({"steps": 0}, {"steps": -5}, {"steps": None, "epochs": 0}):
        with pytest.raises(CommandError, match="give 1 or more"):
            total(**settings)


def test_a_schedule_without_length_is_refused() -> None:
    for constant, decay in ((-1, 3), (3, -1), (0, 0)):
        with pytest.raises(CommandError, match="schedule"):
            LinearDecay(constant, decay)
