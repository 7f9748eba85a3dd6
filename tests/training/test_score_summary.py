"""The summary of a run's evaluations: the best one, the noise of the difference to the last one, and the rulers."""

import math

import pytest

from cyclestyle.run.scores_file import Evaluation
from cyclestyle.training.score_summary import summary


def kid(step: int, value: float, half: float = 0.005, **others: float) -> Evaluation:
    return Evaluation(step, {"kid": value, "kid/low": value - half, "kid/high": value + half, **others})


def test_summary_names_best_evaluation_and_last_within_the_noise() -> None:
    evaluations = [kid(3000, 0.06), kid(6000, 0.041), kid(9000, 0.047)]
    assert summary(evaluations, "kid") == [
        "best of 3 evaluations: step 6000, kid 0.041 [0.036, 0.046]; "
        "the last (step 9000) differs by less than the noise"
    ]


def test_summary_compares_last_evaluation_beyond_the_noise() -> None:
    (line,) = summary([kid(2, 0.041), kid(4, 0.049)], "kid")  # noise: sqrt(2) * 0.005 = 0.0071
    assert line.endswith("; the last (step 4) is worse: 0.049 [0.044, 0.054]")


def test_noise_is_measured_on_the_side_of_the_other_value() -> None:
    wide_below = Evaluation(2, {"kid": 0.04, "kid/low": 0.0, "kid/high": 0.041})
    assert "is worse" in summary([wide_below, kid(4, 0.05, 0.001)], "kid")[0]
    wide_above = Evaluation(2, {"kid": 0.04, "kid/low": 0.039, "kid/high": 0.08})
    assert "less than the noise" in summary([wide_above, kid(4, 0.05, 0.001)], "kid")[0]


def test_higher_values_are_better_with_mode_max() -> None:
    evaluations = [Evaluation(step, {"ssim": value}) for step, value in ((2, 0.5), (4, 0.75), (6, 0.25))]
    assert summary(evaluations, "ssim", "max") == [
        "best of 3 evaluations: step 4, ssim 0.75; the last (step 6) has 0.25"
    ]


def test_earliest_of_equal_values_is_best() -> None:
    assert "step 2," in summary([kid(2, 0.04), kid(4, 0.04)], "kid")[0]


def test_last_evaluation_that_is_the_best_is_not_compared() -> None:
    assert summary([kid(2, 0.06), kid(4, 0.04)], "kid") == [
        "best of 2 evaluations: the last, step 4, kid 0.040 [0.035, 0.045]"
    ]
    assert summary([kid(4, 0.04)], "kid") == ["best of 1 evaluation: step 4, kid 0.040 [0.035, 0.045]"]


@pytest.mark.parametrize("evaluations", [[], [Evaluation(2, {"style": 1.0})], [Evaluation(2, {"kid": math.nan})]])
def test_evaluations_without_the_number_give_no_summary(evaluations: list[Evaluation]) -> None:
    assert summary(evaluations, "kid") == []


def test_rulers_that_order_best_and_last_differently_give_one_line() -> None:
    def evaluation(step: int, lite0: float, hed: float, structure: float) -> Evaluation:
        return kid(
            step, lite0, **{"kid/ab/lite0": lite0, "kid/ab/hed": hed, "kid/ba/hed": hed, "style/ab/x": structure}
        )

    first = evaluation(2, 0.04, 0.3, 1.0)
    _, line = summary([first, evaluation(4, 0.05, 0.2, 0.5)], "kid")
    assert line == ("rulers disagree: from the best evaluation to the last, kid/ab is higher by lite0 and lower by hed")
    assert len(summary([first, evaluation(4, 0.05, 0.4, 0.5)], "kid")) == 1
    assert len(summary([first, evaluation(4, 0.05, 0.3, 0.5)], "kid")) == 1  # an equal value is no other order
