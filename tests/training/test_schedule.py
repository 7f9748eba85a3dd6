"""The learning-rate schedule, compared with the numbers in the paper's recipe."""

import pytest

from cyclestyle.errors import CommandError
from cyclestyle.training.schedule import LinearDecay
from tests.factories import tiny_trainer


def test_learning_rate_factor_is_constant_then_decays_to_1_over_101() -> None:
    schedule = LinearDecay(100, 100)
    assert [schedule.factor(epoch) for epoch in (0, 50, 99)] == [1, 1, 1]
    assert schedule.factor(100) == pytest.approx(100 / 101)
    assert schedule.factor(149) == pytest.approx(51 / 101)
    assert schedule.factor(199) == pytest.approx(1 / 101)


def test_learning_rate_factor_stays_constant_after_last_epoch() -> None:
    assert LinearDecay(100, 100).factor(5000) == pytest.approx(1 / 101)
    assert LinearDecay(3, 1).factor(4) == pytest.approx(1 / 2)


def test_learning_rate_factor_without_decay_is_constant() -> None:
    assert {LinearDecay(10, 0).factor(epoch) for epoch in range(50)} == {1.0}


def test_learning_rate_changes_once_per_epoch() -> None:
    trainer = tiny_trainer(batch_size=4, samples_per_epoch=10, schedule=LinearDecay(1, 1))
    rates = []
    for step in range(6):
        trainer.step = step
        rates.append(trainer.learning_rate / 2e-4)
    # Steps begin at sample indices 0, 4, 8 (epoch 0) and 12, 16 (epoch 1); 20 is past the end and keeps the last rate.
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5])


def test_training_length_is_from_steps_else_epochs_else_schedule() -> None:
    def total(**settings: int | None) -> int:
        return tiny_trainer(batch_size=4, samples_per_epoch=10, schedule=LinearDecay(2, 3), **settings).total

    assert total(steps=7, epochs=1) == 7
    assert total(steps=None, epochs=2) == 5
    assert total(steps=None, epochs=None) == 13  # 50 pairs in batches of 4
    for settings in ({"steps": 0}, {"steps": -5}, {"steps": None, "epochs": 0}):
        with pytest.raises(CommandError, match="give 1 or more"):
            total(**settings)


def test_schedule_with_negative_epochs_or_zero_length_is_rejected() -> None:
    for constant, decay in ((-1, 3), (3, -1), (0, 0)):
        with pytest.raises(CommandError, match="schedule"):
            LinearDecay(constant, decay)
