"""Scores of one direction of a model on sets of images, as `score_direction` computes them."""

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from cyclestyle.cli.arguments import unknown_key_error
from cyclestyle.distributed.world import World
from cyclestyle.evaluation.estimates import Estimator
from cyclestyle.evaluation.features import SetFeatures, set_features
from cyclestyle.evaluation.measuring import Instruments, PairDistance, measure
from cyclestyle.evaluation.real_images import colour_sums, images_to_measure, real_images
from cyclestyle.evaluation.report import DirectionReport, Score
from cyclestyle.evaluation.rulers import Part, Ruler
from cyclestyle.evaluation.sets import Sets as Sets
from cyclestyle.photoset.batching import Model
from cyclestyle.photoset.worker_pool import Workers

SCORES = (
    "kid", "fid", "style", "structure", "copying", "lpips", "colours", "content_ssim", "reconstruction_psnr",
    "reconstruction_ssim", "truth_psnr", "truth_ssim", "truth_l1", "truth_lpips",
)  # fmt: skip
CURVE = ("kid", "style", "structure")  # scores that are computed at each of several strengths

_SETS = ("kid", "fid", "style")  # compare two sets of images
_RECONSTRUCTION = ("reconstruction_psnr", "reconstruction_ssim")
_TRUTH = ("truth_psnr", "truth_ssim", "truth_l1", "truth_lpips")


class OnProgress(Protocol):
    """Function that is called after each batch with the number of images done and the total number."""

    def __call__(self, done: int, total: int) -> object: ...


def score_direction(
    model: Model,
    sets: Sets,
    *,
    direction: str,
    rulers: Sequence[Ruler],
    lpips: Sequence[PairDistance] = (),
    back: Model | None = None,
    names: Collection[str] = SCORES,
    strengths: Sequence[float] = (1.0,),
    photo_size: int | None = None,
    batch_size: int = 8,
    workers: int = 0,
    world: World | None = None,
    cache: bool = True,
    seed: int = 0,
    on_progress: OnProgress = lambda done, total: None,
) -> DirectionReport:
    """Translate the photos of `sets` and score the translations; no image is written.

    Several ranks share the batches of images; every rank returns the same report, equal to that of one process.

    Args:
        model: function that translates a batch of photos, uint8 (N, 3, H, W), to images of the same shape.
        sets: files to score on.
        direction: name of the direction, such as `photo2monet`.
        rulers: pretrained networks that measure the images.
        lpips: networks that measure the perceptual distance of two images.
        back: function like `model` for the opposite direction, for the scores of reconstructions; None leaves them out.
        names: names of the scores to compute, out of `SCORES`. A score whose images or networks are missing is left
            out, with a line in the notes of the report.
        strengths: weights of the model's output in the scored images, see `translation.blending.blend`. With several,
            all scores are those of strength 1, or of the largest strength if 1 is missing; the scores in `CURVE` are
            also computed for each strength.
        photo_size: side, in px, of the square to which all images are resized first, like training images by
            `data.load_size`; None leaves them as stored.
        batch_size: number of images that are translated and measured together.
        workers: number of processes that read images; 0 reads them in threads.
        world: ranks that share the work; None for this process alone.
        cache: whether to keep the features of real images on disk.
        seed: seed of the bootstrap, from which the intervals follow.
        on_progress: function that is called after each batch of images.

    Raises:
        CommandError: a name of a score is unknown.
        DataError: an image is missing or damaged, or a true translation differs in size from its photo.
    """
    world, strengths = world or World(), sorted({*strengths})
    main = 1.0 if 1.0 in strengths else strengths[-1]
    possible, notes = _possible(names, sets, rulers=rulers, lpips=lpips, has_back=back is not None)
    plan = [(ruler, _parts(ruler, possible)) for ruler in rulers]
    copying_ruler = next((ruler for ruler, parts in plan if "pooled" in parts and "copying" in possible), None)
    back = back if possible & {*_RECONSTRUCTION} else None
    instruments = Instruments(model, back, plan, lpips, possible, strengths, main)
    progress = _Progress(_count(sets, plan, copying_ruler), on_progress, ranks=world.size)
    how: dict[str, Any] = {"photo_size": photo_size, "batch_size": batch_size, "world": world}

    colours = None
    with Workers(workers) as pool:
        columns = measure(instruments, sets, workers=pool, on_batch=progress.add, **how)
        if "colours" in possible:
            colours = colour_sums(sets.targets, photo_size=photo_size, workers=pool, world=world)

    estimator = Estimator(columns, direction=direction, seed=seed, photo_size=photo_size)
    scores: list[Score] = []
    curve: dict[float, list[Score]] = {strength: [] for strength in strengths if len(strengths) > 1}
    for ruler, parts in plan:
        load = functools.partial(_load, ruler=ruler, workers=workers, cache=cache, progress=progress, **how)
        of_sets = parts - {"tokens"}
        real = real_images(sets, load, parts=of_sets, with_copying=ruler is copying_ruler) if of_sets else None
        scores += estimator.of_ruler(ruler, real, possible, strength=main)
        for strength, points in curve.items():
            points += estimator.of_translations(ruler, real, possible & {*CURVE}, strength=strength)
    scores += estimator.of_pairs({network.name: network.size for network in lpips})
    scores += estimator.of_colours(colours) if colours is not None else []
    reports = (DirectionReport(direction, tuple(own), strength) for strength, own in curve.items())
    return DirectionReport(direction, tuple(scores), main, tuple(notes), tuple(reports))


def check_names(names: Collection[str]) -> None:
    """Raise a CommandError if one of `names` is not the name of a score."""
    for name in names:
        if name not in SCORES:
            raise unknown_key_error("score", name, SCORES)


def _possible(
    names: Collection[str], sets: Sets, *, rulers: Sequence[Ruler], lpips: Sequence[PairDistance], has_back: bool
) -> tuple[frozenset[str], list[str]]:
    """Return the names of the scores that can be computed, and one line for each reason to leave scores out.

    Some scores are left out without a line: scores against true translations if `sets` has none, LPIPS scores if
    `lpips` is empty, and scores from features if `rulers` is empty.
    """
    check_names(names)
    counts = f"{len(sets.sources)} and {len(sets.targets)}"
    without = "no pretrained network measures it" if rulers else ""  # without any, the caller knows the reason
    obstacles: list[tuple[tuple[str, ...], bool, str]] = [
        (_TRUTH, sets.truths is None, ""),
        (
            (*_SETS, "copying", "colours"),
            not sets.targets,
            "no images of the target domain: give target= or data.root=",
        ),
        (
            _SETS,
            min(len(sets.sources), len(sets.targets)) < 2,
            f"two photos and targets at least, there are {counts}",
        ),
        (("style",), not any(ruler.has_style for ruler in rulers), without),
        (("kid", "fid", "copying"), not any(ruler.has_pooled for ruler in rulers), without),
        (("structure",), not any(ruler.has_structure for ruler in rulers), without),
        (("lpips", "truth_lpips"), not lpips, ""),
        (_RECONSTRUCTION, not has_back, "the model has no generator for the opposite direction"),
    ]
    possible, notes = set(names), []
    for affected, is_obstacle, reason in obstacles:
        if is_obstacle and (left_out := [name for name in SCORES if name in possible and name in affected]):
            possible -= {*left_out}
            notes += [f"left out: {', '.join(left_out)} ({reason})"] if reason else []
    return frozenset(possible), notes


def _parts(ruler: Ruler, names: Collection[str]) -> set[Part]:
    """Return the parts of a ruler's features (`pooled`, `tokens`, `grams`) that the scores in `names` need."""
    parts: set[Part] = set()
    if ruler.has_pooled and {"kid", "fid", "copying"} & {*names}:
        parts.add("pooled")
    if ruler.has_structure and "structure" in names:
        parts.add("tokens")
    if ruler.has_style and "style" in names:
        parts.add("grams")
    return parts


def _count(sets: Sets, plan: Sequence[tuple[Ruler, Collection[Part]]], copying_ruler: Ruler | None) -> int:
    """Return the total number of images for the progress: photos count once, real images once for each ruler.

    Args:
        sets: files to score on.
        plan: pairs of a ruler and the parts of its features that are computed. Real images count only if these contain
            `pooled` or `grams`.
        copying_ruler: ruler of the copying score, which may need further real images; None without this score.
    """
    real = sum(
        images_to_measure(sets, with_copying=ruler is copying_ruler)
        for ruler, parts in plan
        if {"pooled", "grams"} & {*parts}
    )
    return len(sets.sources) + real


def _load(
    files: Sequence[Path], parts: Collection[Part], *, ruler: Ruler, progress: "_Progress", **settings: Any
) -> SetFeatures:
    before = progress.done
    return set_features(
        files, ruler, parts=parts, on_progress=lambda done, total: progress.set_done(before + done), **settings
    )


class _Progress:
    """Counter of the images that all ranks have done; it calls `report` after each change."""

    def __init__(self, total: int, report: OnProgress, *, ranks: int) -> None:
        self.done, self._total, self._report, self._ranks = 0, total, report, ranks

    def add(self, count: int) -> None:
        """Count `count` further images of this rank; the other ranks are assumed to be equally fast."""
        self.set_done(self.done + count * self._ranks)

    def set_done(self, done: int) -> None:
        """Set the number of images that all ranks together have done."""
        self.done = min(self._total, done)
        self._report(self.done, self._total)
