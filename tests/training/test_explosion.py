"""Detection of losses that explode but stay finite."""

from collections.abc import Iterable

import numpy as np
import pytest

from cyclestyle.errors import CommandError, DivergedError
from cyclestyle.training.explosion import ExplosionWatch


def reports(logs: Iterable[dict[str, float]]) -> list[str]:
    """Reports of a watch that gets one log after each step."""
    texts: list[str] = []
    watch = ExplosionWatch(note=lambda text: None, report=texts.append)
    for step, values in enumerate(logs, start=1):
        watch.on_log(step, values)
    return texts


def test_loss_above_the_bound_of_its_kind_is_reported_once() -> None:
    (text,) = reports([{"loss/gan_ab": 1.0, "loss/discriminator_b": d} for d in (0.5, 376.0, 0.5, 400.0)])
    assert "by step 2: loss/discriminator_b 376 (healthy: below 20)" in text
    (text,) = reports([{"loss/gan_ba": -376.0}])  # hinge losses of generators may be negative
    assert "by step 1: loss/gan_ba -376 (healthy: below 100)" in text


def test_loss_far_above_its_own_history_is_reported_after_three_logs() -> None:
    calm, high = [{"loss/cycle_a": 0.8}] * 10, {"loss/cycle_a": 9.0}
    (text,) = reports([*calm, high, high, high])
    assert "by step 13: loss/cycle_a 9 (before: 0.8)" in text
    assert reports([*calm, high, high, *calm, high, high]) == []
    assert reports([*calm[:9], high, high, high]) == []  # too few logs for a comparison
    assert reports([*calm, *[{"loss/cycle_a": 7.9}] * 20]) == []


def test_values_other_than_losses_are_ignored() -> None:
    assert reports([{"speed/images_per_s": 900.0, "lr": 1e9, "kid": 500.0, "score/real_a": 900.0}] * 20) == []


def test_user_losses_are_compared_only_with_their_own_history() -> None:
    assert reports([{"loss/mine_ab": 1e6 * (1 + step)} for step in range(50)]) == []
    assert reports([{"loss/mine": 0.0} for _ in range(20)] + [{"loss/mine": 50.0}] * 20) == []
    (text,) = reports([{"loss/mine": 0.1}] * 10 + [{"loss/mine": 500.0}] * 3)
    assert "loss/mine 500 (before: 0.1)" in text


@pytest.mark.parametrize("seed", range(5))
def test_noisy_decreasing_losses_are_not_reported(seed: int) -> None:
    """Losses fall while single logs reach several times the median."""
    random = np.random.default_rng(seed)
    fall = np.linspace(0, 1, 2000)
    noise = np.exp(0.5 * random.standard_normal((3, 2000)))
    assert reports(
        {
            "loss/discriminator_a": 0.2 * noise[0, step] * (1 - 0.9 * fall[step]),
            "loss/gan_ab": 0.6 * noise[1, step],
            "loss/cycle_a": 0.4 * noise[2, step] + 6 * np.exp(-8 * fall[step]),
        }
        for step in range(2000)
    ) == []  # fmt: skip


def test_on_explosion_stop_ends_training_and_unknown_value_is_rejected() -> None:
    notes: list[str] = []
    watch = ExplosionWatch("stop", note=notes.append)
    with pytest.raises(DivergedError, match="by step 7: loss/gan_ab 500"):
        watch.on_log(7, {"loss/gan_ab": 500.0})
    assert len(notes) == 1
    with pytest.raises(CommandError, match=r"trainer\.on_explosion=ignore: give warn or stop"):
        ExplosionWatch("ignore")  # type: ignore[arg-type]
