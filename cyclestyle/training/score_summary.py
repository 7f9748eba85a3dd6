"""Summary of the evaluations of a run: the best one, and whether the last one differs from it by more than chance."""

import math
from collections.abc import Sequence

from cyclestyle.checkpoints.best import Interval, Mode
from cyclestyle.monitor.console import with_interval
from cyclestyle.run.scores_file import Evaluation


def summary(evaluations: Sequence[Evaluation], name: str, mode: Mode = "min") -> list[str]:
    """Return one or two lines on the evaluations of a run; empty if none of them has a number of this name.

    The first line names the best evaluation and compares the last one with it. Two intervals are compared as those of
    independent estimates. Both evaluations use the same images, so that small differences may be real although they
    are reported as noise.

    The second line names a number that two pretrained networks order differently for these two evaluations. It is
    missing if there is no such number.

    Args:
        evaluations: all evaluations of the run, in the order of the steps.
        name: name of the number by which the best evaluation is chosen, such as `kid`.
        mode: `min` if lower values are better, `max` if higher values are.
    """
    sign = 1 if mode == "min" else -1
    known = [each for each in evaluations if not math.isnan(each.values.get(name, math.nan))]
    if not known:
        return []
    best, last = min(known, key=lambda each: sign * each.values[name]), known[-1]
    if best.step == last.step:
        which = f"the last, step {best.step}" if len(known) > 1 else f"step {best.step}"
        return [f"best of {_count(known)}: {which}, {name} {_value(best, name)}"]
    first = f"best of {_count(known)}: step {best.step}, {name} {_value(best, name)}; {_compared(best, last, name)}"
    return [first, *_disagreement(best, last, name.partition("/")[0])]


def _count(evaluations: Sequence[Evaluation]) -> str:
    return f"{len(evaluations)} evaluation{'s' if len(evaluations) > 1 else ''}"


def _value(evaluation: Evaluation, name: str) -> str:
    return with_interval(evaluation.values[name], _interval(evaluation, name))


def _interval(evaluation: Evaluation, name: str) -> Interval | None:
    low, high = evaluation.values.get(f"{name}/low"), evaluation.values.get(f"{name}/high")
    return None if low is None or high is None else (low, high)


def _compared(best: Evaluation, last: Evaluation, name: str) -> str:
    """Describe the last evaluation in comparison with the best one."""
    intervals = _interval(best, name), _interval(last, name)
    if intervals[0] is None or intervals[1] is None:
        return f"the last (step {last.step}) has {_value(last, name)}"
    x, y = best.values[name], last.values[name]
    # Half of each interval on the side of the other value; the noise of a difference is the root of the sum of squares.
    halves = [
        bounds[1] - value if value < other else value - bounds[0]
        for bounds, value, other in ((intervals[0], x, y), (intervals[1], y, x))
    ]
    if abs(x - y) < math.hypot(*halves):
        return f"the last (step {last.step}) differs by less than the noise"
    return f"the last (step {last.step}) is worse: {_value(last, name)}"


def _disagreement(best: Evaluation, last: Evaluation, score: str) -> list[str]:
    """Return one line if two pretrained networks order the two evaluations differently by `score`, such as `kid`."""
    rises: dict[
        str, dict[str, bool]
    ] = {}  # score and direction, such as `kid/ab` -> network -> whether `last` is higher
    for name, value in best.values.items():
        path, _, ruler = name.rpartition("/")
        if path.startswith(f"{score}/") and (other := last.values.get(name)) not in (None, value):
            rises.setdefault(path, {})[ruler] = other > value
    for path, by_ruler in rises.items():
        if len({*by_ruler.values()}) > 1:
            parts = [f"{'higher' if is_higher else 'lower'} by {ruler}" for ruler, is_higher in by_ruler.items()]
            return [f"rulers disagree: from the best evaluation to the last, {path} is {' and '.join(parts)}"]
    return []
