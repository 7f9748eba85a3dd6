"""Learning-rate schedules, compared with the numbers in the paper's recipe and with formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclestyle.errors import CommandError
from cyclestyle.training.schedule import Constant, Cosine, LinearDecay, Step
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
        rates.append(trainer.learning_rates["generators"] / 2e-4)
    # Steps begin at sample indices 0, 4, 8 (epoch 0) and 12, 16 (epoch 1); 20 is past the end and keeps the last rate.
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5])


def test_training_length_is_set_by_steps_or_else_epochs_or_else_schedule() -> None:
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


@given(
    step=st.integers(0, 10**7),
    batch_size=st.integers(1, 256),
    samples=st.integers(1, 10**6),
    constant=st.integers(0, 300),
    decay=st.integers(1, 300),
)
def test_linear_decay_depends_on_whole_epochs_alone(
    step: int, batch_size: int, samples: int, constant: int, decay: int
) -> None:
    epoch = step * batch_size // samples
    expected = 1 - min(max(0, epoch + 1 - constant), decay) / (decay + 1)
    assert LinearDecay(constant, decay).factor(step * batch_size / samples) == pytest.approx(expected, rel=1e-12)


def test_linear_decay_changes_at_the_first_step_of_an_epoch() -> None:
    for samples in range(1, 400):
        for batch_size in (1, 3, 8):
            for epoch in (1, 2, 3, 99):
                first = -(-epoch * samples // batch_size)  # first step that begins in this epoch or later
                schedule = LinearDecay(epoch - 1, 200)
                factors = [schedule.factor(step * batch_size / samples) for step in (first - 1, first)]
                passed = (first * batch_size // samples + 1) - (epoch - 1)
                assert factors[1] == 1 - passed / 201
                assert factors[0] > factors[1]


def test_cosine_schedule_matches_formula_and_stays_at_its_final_value() -> None:
    schedule = Cosine(10, 40, final=0.1)
    assert schedule.epochs == 50
    assert [schedule.factor(epoch) for epoch in (0, 5.5, 10)] == [1, 1, 1]
    for epoch in (10.25, 17, 30, 49.9):
        expected = 0.1 + 0.9 * math.cos(math.pi * (epoch - 10) / 40 / 2) ** 2  # (1 + cos 2x) / 2 = cos^2 x
        assert schedule.factor(epoch) == pytest.approx(expected, rel=1e-12)
    assert schedule.factor(30) == pytest.approx(0.55)
    assert [schedule.factor(epoch) for epoch in (50, 50.5, 4000)] == pytest.approx([0.1, 0.1, 0.1])
    assert {Cosine(5, 0, final=0.5).factor(epoch) for epoch in (0, 4, 5, 9)} == {1.0}
    assert Cosine().factor(200) == 0


def test_constant_and_step_schedules_match_formulas() -> None:
    assert {Constant(3).factor(epoch) for epoch in (0, 1.5, 3, 100)} == {1.0}
    assert (Constant(3).epochs, Step(7).epochs) == (3, 7)
    schedule = Step(10, every_epochs=3, gamma=0.1)
    factors = [schedule.factor(epoch) for epoch in (0, 2, 2.999, 3, 5.5, 6, 9, 30)]
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.001, 1e-10])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cosine(-1, 3), "schedule.constant_epochs=-1, schedule.decay_epochs=3: neither may be negative"),
        (lambda: Cosine(0, 0), "schedule.constant_epochs=0, schedule.decay_epochs=0: neither may be negative"),
        (lambda: Cosine(final=1.5), "schedule.final=1.5: give a factor from 0 to 1"),
        (lambda: Cosine(final=-0.1), "schedule.final=-0.1: give a factor from 0 to 1"),
        (lambda: Cosine(final=math.nan), "schedule.final=nan: give a factor from 0 to 1"),
        (lambda: Constant(0), "schedule.epochs=0: give 1 or more"),
        (lambda: Step(0), "schedule.epochs=0: give 1 or more"),
        (lambda: Step(every_epochs=0), "schedule.every_epochs=0: give 1 or more"),
        (lambda: Step(gamma=0), "schedule.gamma=0: give a multiplier above 0, at most 1"),
        (lambda: Step(gamma=1.1), "schedule.gamma=1.1: give a multiplier above 0, at most 1"),
        (lambda: Step(gamma=math.nan), "schedule.gamma=nan: give a multiplier above 0, at most 1"),
    ],
)
def test_bad_arguments_of_schedules_are_rejected(build, message: str) -> None:
    with pytest.raises(CommandError) as caught:
        build()
    assert str(caught.value).startswith(message)
