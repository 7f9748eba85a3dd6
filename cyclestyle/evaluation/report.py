"""Scores of a model as plain data: one `Score` for each number, grouped by direction of translation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from cyclestyle.evaluation.robustness import RobustnessReport

Row = Literal["translated", "untouched", "floor", "truth", "mapped"]


class Score(NamedTuple):
    """One number, with everything that is needed to read and to repeat it.

    Attributes:
        name: name of the score, such as `kid`; `scores.SCORES` lists all names.
        ruler: pretrained network whose features are compared, such as `vgg16_hed`; None for scores of pixels.
        row: images that are scored. `translated` are the model's translations and `untouched` their photos. `floor` are
            real images of the target domain, whose score shows how close to 0 a perfect model can be. `mapped` are the
            photos, changed by the best global colour map. `truth` are the true translations.
        value: the score; PSNR of identical images is infinite.
        low, high: 95 % interval of `value` for other images of the same kinds; None if no interval is computed.
        n: number of scored images.
        reference: number of images that they are compared with; None if each image is compared with one image of its
            own, such as its photo.
        size: side, in px, of the square to which all images are resized before the features are computed; None for
            scores of images as they are.
        resize: name of the interpolation of this resizing, such as `bicubic`; None if `size` is None.
    """

    name: str
    ruler: str | None
    row: Row
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    reference: int | None = None
    size: int | None = None
    resize: str | None = None


class DirectionReport(NamedTuple):
    """Scores of one direction of a model.

    Attributes:
        direction: name of the direction, such as `photo2monet`.
        scores: all scores, in the order in which they are printed.
        strength: weight of the model's output in the scored images; 0 is the photo, 1 the output.
        notes: one line for each score that was left out, with the reason.
        curve: one report of the same direction for each strength, in rising order, with only the scores in
            `scores.CURVE`; empty if only one strength was scored.
    """

    direction: str
    scores: tuple[Score, ...]
    strength: float = 1.0
    notes: tuple[str, ...] = ()
    curve: tuple["DirectionReport", ...] = ()

    def find(self, name: str, ruler: str | None = None, row: Row = "translated") -> Score | None:
        """Return the first score with this name and row; None if it was not computed.

        Args:
            name: name of the score, such as `kid`.
            ruler: name of the pretrained network; None accepts any.
            row: images that are scored.
        """
        for score in self.scores:
            if score.name == name and score.row == row and ruler in (None, score.ruler):
                return score
        return None


class Report(NamedTuple):
    """Scores of one model.

    Attributes:
        checkpoint: path of the model, as the user gave it.
        step: training step of the model; None if its file does not state it.
        weights: `ema` for the moving average of the weights, `raw` for the weights of the last step.
        directions: one report for each direction that was scored.
        missing: names of pretrained networks whose weights were not found, so that their scores are left out.
        settings: plain data from which the scores can be repeated: folders, sizes, seed, and the SHA-256 of the weights
            of each pretrained network.
        robustness: for each direction, how far translations move if their photos are degraded; empty if not measured.
    """

    checkpoint: str
    step: int | None
    weights: Literal["ema", "raw"]
    directions: tuple[DirectionReport, ...]
    missing: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}
    robustness: "tuple[RobustnessReport, ...]" = ()

    def find(self, direction: str) -> DirectionReport | None:
        """Return the report of a direction, such as `photo2monet`; None if the direction was not scored."""
        return next((report for report in self.directions if report.direction == direction), None)
