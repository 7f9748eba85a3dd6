"""Scores of the generators during training: which numbers are logged, and the line of `scores.jsonl`."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cyclestyle.checkpoints.model import Model
from cyclestyle.evaluation.models import ScoredModel, Side
from cyclestyle.evaluation.report import DirectionReport, Score
from cyclestyle.evaluation.rulers import Ruler
from cyclestyle.evaluation.scores import SCORES, score_direction
from cyclestyle.evaluation.sets import Sets
from cyclestyle.hardware.device import Hardware
from cyclestyle.model_files import generator_file
from cyclestyle.translation.translator import TorchGenerator, Translator

# Scores that training can compute: those that need neither true translations nor LPIPS.
NAMES = tuple(name for name in SCORES if "truth" not in name and name != "lpips")


class Evaluated(NamedTuple):
    """Result of one evaluation of the generators.

    Attributes:
        values: numbers to log by name, see `logged_numbers`.
        record: content of the line in `scores.jsonl`, as plain data.
    """

    values: dict[str, float]
    record: dict[str, Any]


class TrainingScores:
    """Scores the translations of both generators, in both directions.

    The generators are built in the same way as by `evaluate`, so that `evaluate` computes the same scores from a
    checkpoint of the same model.

    Args:
        sets: images to score on, for each direction.
        rulers: pretrained networks that measure the images.
        names: names of the scores, out of `scores.SCORES`.
        photo_size: side in px of the square to which all images are resized first; None leaves them as stored.
        hardware: device and precision of the generators, and the ranks that share the work.
    """

    def __init__(
        self,
        sets: Mapping[Side, Sets],
        rulers: Sequence[Ruler],
        *,
        names: Sequence[str],
        photo_size: int | None,
        hardware: Hardware,
    ) -> None:
        self.sets, self.rulers, self.names, self.photo_size = dict(sets), list(rulers), list(names), photo_size
        self._hardware = copy.copy(hardware)  # a new object would reset cuDNN's settings for training
        self._hardware.compile = False  # it would compile again in each evaluation

    def __call__(self, model: Model) -> Evaluated:
        """Score a model in memory, with its averaged generators if it has them; all ranks must call this together.

        Raises:
            DataError: an image is missing or damaged.
        """
        scored = self._scored_model(model)
        reports = {side: self._report(scored, side) for side in self.sets}
        record = {
            "weights": scored.first.weights,
            "photo_size": self.photo_size,
            "directions": {
                report.direction: [score._asdict() for score in report.scores] for report in reports.values()
            },
        }
        values = logged_numbers(reports, self.names)
        return Evaluated(values, {"values": values, **record})

    @property
    def expected(self) -> set[str]:
        """Names of the numbers that each evaluation logs, except for the bounds of intervals.

        Each score has its name alone, such as `kid`, and one name for each direction and ruler (pretrained network),
        such as `kid/ab/vgg16_hed`; scores of pixels have one name for each direction, such as `colours/ab`. A score
        from features has no names if none of the rulers can compute it.
        """
        parts = {"kid": "has_pooled", "fid": "has_pooled", "copying": "has_pooled"}
        parts |= {"style": "has_style", "structure": "has_structure"}
        names: set[str] = set()
        for name in self.names:
            rulers = [ruler.name for ruler in self.rulers if name in parts and getattr(ruler, parts[name])]
            paths = [f"{side}/{ruler}" for side in self.sets for ruler in rulers] if name in parts else [*self.sets]
            names |= {name, *(f"{name}/{path}" for path in paths)} if paths else set()
        return names

    def _scored_model(self, model: Model) -> ScoredModel:
        files = generator_file.from_model(model, "ema")
        translators = {
            side: Translator(
                TorchGenerator(generator_file.build(source), self._hardware),
                direction=source.direction,
                directions=files.directions,
                weights=source.weights,
                path=source.path,
                step=source.step,
                domains=source.domains,
                side=side,
            )
            for side, source in files.by_side.items()
        }
        return ScoredModel(str(model.path), translators, losses_see=model.losses_see)

    def _report(self, model: ScoredModel, side: Side) -> DirectionReport:
        function = model.function(side)
        assert function is not None
        return score_direction(
            function,
            self.sets[side],
            direction=model.translators[side].direction,
            rulers=self.rulers,
            back=model.function("ba" if side == "ab" else "ab"),
            names=self.names,
            photo_size=self.photo_size,
            world=self._hardware.world,
        )


def logged_numbers(reports: Mapping[Side, DirectionReport], names: Sequence[str]) -> dict[str, float]:
    """Return the numbers to log for the scores of the translations in both directions.

    Each score, such as `kid`, has these numbers:

    * `kid`: the mean over the directions, by the first ruler (pretrained network) that computes the score; left out if
      a direction lacks the score.
    * `kid/low` and `kid/high`: the bounds of the 95 % interval of this mean; left out if a score has no interval.
    * `kid/ab/vgg16_hed`: the score of one direction by one ruler; `colours/ab` for a score of pixels.

    Args:
        reports: report of each direction.
        names: names of the scores, in the order of the log.
    """
    means: dict[str, float] = {}
    details: dict[str, float] = {}
    for name in names:
        firsts = []
        for side, report in reports.items():
            scores = [score for score in report.scores if score.name == name and score.row == "translated"]
            firsts += scores[:1]
            for score in scores:
                details["/".join(filter(None, (name, side, score.ruler)))] = score.value
        if firsts and len(firsts) == len(reports):
            means |= _mean(name, firsts)
    return means | details


def _mean(name: str, scores: Sequence[Score]) -> dict[str, float]:
    """Return the mean of scores, and the bounds of its interval if all scores have intervals.

    The scores are treated as independent. The distance from the mean to its lower bound is the root of the sum of the
    squared distances from the scores to their lower bounds, divided by the number of scores. The same holds for the
    upper bounds.

    Args:
        name: name of the score, such as `kid`; the bounds get the names `kid/low` and `kid/high`.
        scores: one score for each direction.
    """
    count = len(scores)
    mean = math.fsum(score.value for score in scores) / count
    numbers = {name: mean}
    lows, highs = ([getattr(score, side) for score in scores] for side in ("low", "high"))
    if None not in lows and None not in highs:
        below = math.hypot(*(score.value - low for score, low in zip(scores, lows, strict=True))) / count
        above = math.hypot(*(high - score.value for score, high in zip(scores, highs, strict=True))) / count
        numbers |= {f"{name}/low": mean - below, f"{name}/high": mean + above}
    return numbers
