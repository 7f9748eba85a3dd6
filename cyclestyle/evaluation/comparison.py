"""Comparison of several models by their scores.

A ruler is a pretrained network that measures images. Two rulers disagree if they put two models in opposite orders.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cyclestyle.evaluation.report import DirectionReport, Report, Score
from cyclestyle.evaluation.table import LABELS, Protocol, lines, number

HIGHER_IS_BETTER = frozenset({
    "content_ssim", "reconstruction_psnr", "reconstruction_ssim", "truth_psnr", "truth_ssim"
})  # fmt: skip
HEADLINES = ("kid", "fid", "style", "structure", "lpips")  # scores for which the order by two rulers is compared


class Disagreement(NamedTuple):
    """Two models that two rulers (pretrained networks) put in opposite orders.

    Attributes:
        direction: name of the direction, such as `photo2monet`.
        name: name of the score.
        rulers: the two rulers; the first ruler prefers the first model, the second ruler the second one.
        models: the two models, by their labels.
        is_noise: whether, by at least one of the rulers, the intervals of the two models overlap; the order of the
            models by this ruler may then be chance.
    """

    direction: str
    name: str
    rulers: tuple[str, str]
    models: tuple[str, str]
    is_noise: bool

    def __str__(self) -> str:
        (first, second), (one, other) = self.models, self.rulers
        noise = "; the intervals overlap, so that this may be noise" if self.is_noise else ""
        return (
            f"rulers disagree on {LABELS[self.name]} of {self.direction}: {one} prefers {first}, {other} prefers "
            f"{second}{noise}"
        )


class Comparison(NamedTuple):
    """Scores of several models on the same images.

    Attributes:
        reports: one report for each model.
        labels: name of each model in tables and lines.
        disagreements: pairs of models that two rulers put in opposite orders.
    """

    reports: tuple[Report, ...]
    labels: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]


def compare(reports: Sequence[Report]) -> Comparison:
    """Compare the scores of several models.

    The label of a model is its path. If several models share a path, their labels also have the step and the weights.
    """
    paths = [report.checkpoint for report in reports]
    labels = [
        path if paths.count(path) == 1 else f"{path} (step {report.step}, {report.weights})"
        for path, report in zip(paths, reports, strict=True)
    ]
    found: list[Disagreement] = []
    for direction in _directions(reports):
        own = [report.find(direction) for report in reports]
        named = [(label, report) for label, report in zip(labels, own, strict=True) if report is not None]
        found += disagreements(named)
    return Comparison(tuple(reports), tuple(labels), tuple(found))


def disagreements(named: Sequence[tuple[str, DirectionReport]]) -> Iterator[Disagreement]:
    """Yield each pair of models that two rulers (pretrained networks) put in opposite orders.

    Only the scores in `HEADLINES` are compared.

    Args:
        named: label and report of each model, all of the same direction.
    """
    for (label, report), (other_label, other_report) in itertools.combinations(named, 2):
        for name in HEADLINES:
            pairs = _pairs(report, other_report, name)
            prefers_first = [pair for pair in pairs if pair[0].value < pair[1].value]
            prefers_second = [pair for pair in pairs if pair[0].value > pair[1].value]
            for one, other in itertools.product(prefers_first, prefers_second):
                yield Disagreement(
                    report.direction,
                    name,
                    (str(one[0].ruler), str(other[0].ruler)),
                    (label, other_label),
                    is_noise=overlap(*one) or overlap(*other),
                )


def overlap(x: Score, y: Score) -> bool:
    """Return whether the intervals of two scores overlap; False if one has no interval."""
    if x.low is None or x.high is None or y.low is None or y.high is None:
        return False
    return x.low <= y.high and y.low <= x.high


def better(x: Score, y: Score) -> bool:
    """Return whether score `x` is better than `y`; both have the same name."""
    return x.value > y.value if x.name in HIGHER_IS_BETTER else x.value < y.value


def table(comparison: Comparison) -> str:
    """Format the scores of all models: a block for each direction and protocol, a column for each model.

    A protocol is a way to measure: the pretrained network (ruler) and the size to which images are resized. In each
    line, `*` marks the best model, and `~` marks the models whose interval overlaps with that of the best one. The last
    lines name the rulers that disagree.
    """
    parts = [block for direction in _directions(comparison.reports) for block in _blocks(comparison, direction)]
    key = "*: best of the line, ~: its interval overlaps with that of the best"
    return "\n\n".join([*parts, "\n".join([key, *map(str, comparison.disagreements)])])


def _directions(reports: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(direction.direction for report in reports for direction in report.directions))


def _blocks(comparison: Comparison, direction: str) -> Iterator[str]:
    columns: list[dict[tuple[Protocol, str], Score]] = []
    for report in comparison.reports:
        own = report.find(direction)
        scores = () if own is None else own.scores
        columns.append({(Protocol.of(score), score.name): score for score in scores if score.row == "translated"})
    keys = list(dict.fromkeys(key for column in columns for key in column))
    for protocol in dict.fromkeys(protocol for protocol, _ in keys):
        names = [name for other, name in keys if other == protocol]
        rows = [[LABELS[name], *_cells([column.get((protocol, name)) for column in columns])] for name in names]
        yield lines(f"{direction}, {protocol}", comparison.labels, rows)


def _cells(scores: Sequence[Score | None]) -> list[str]:
    """Format the scores of one line; see `table` for the marks."""
    present = [score for score in scores if score is not None]
    best = None if present[0].name == "copying" else present[0]  # a larger distance is not always better
    for score in present[1:]:
        best = score if best is not None and better(score, best) else best
    marks = [
        "" if score is None else " *" if score is best else " ~" if best is not None and overlap(score, best) else ""
        for score in scores
    ]
    return ["-" if score is None else f"{number(score)}{mark}" for score, mark in zip(scores, marks, strict=True)]


def _pairs(x: DirectionReport, y: DirectionReport, name: str) -> list[tuple[Score, Score]]:
    """Return pairs of scores called `name`, one of each model, measured by the same network at the same size."""
    others = {Protocol.of(score): score for score in y.scores if score.name == name and score.row == "translated"}
    return [
        (score, others[Protocol.of(score)])
        for score in x.scores
        if score.name == name and score.row == "translated" and Protocol.of(score) in others
    ]
