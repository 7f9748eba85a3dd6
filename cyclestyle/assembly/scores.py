"""Builds the task that scores the generators during training, from the config node `scores`.

This module imports the evaluation and its networks only if the task is switched on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclestyle.errors import CommandError

if TYPE_CHECKING:
    from cyclestyle.data import UnpairedFolders
    from cyclestyle.evaluation.models import Side
    from cyclestyle.evaluation.rulers import Ruler
    from cyclestyle.evaluation.sets import Sets
    from cyclestyle.evaluation.training_scores import TrainingScores
    from cyclestyle.training.messages import PrintLine
    from cyclestyle.training.trainer import Trainer

Missing = Literal["fetch", "error", "skip"]
Size = int | Literal["auto"]


def build_scores(
    trainer: "Trainer",
    data: "UnpairedFolders",
    report: "PrintLine",
    /,
    *,
    every: int | None = None,
    images: int | None = 200,
    names: Sequence[str] = ("kid", "style", "structure"),
    rulers: Literal["auto"] | Sequence[str] = "auto",
    missing: Missing = "fetch",
    path: str | None = None,
    size: Size = "auto",
    photo_size: Size | None = "auto",
) -> "TrainingScores | None":
    """Build the object that scores the generators; return None if it is switched off or has nothing to compute.

    All ranks must call this function together; weights of pretrained networks are fetched by rank 0 alone. A ruler is a
    pretrained network that measures images. A loss sees a network if it uses the features of this network.

    Args:
        report: function that prints a line; the lines name the rulers in use, and the rulers without weights.
        every: number of steps between two evaluations; None switches them off.
        images: maximum number of images of each set, evenly spaced; None takes all.
        names: names of the scores, see `training_scores.NAMES`.
        rulers: names of the rulers; `auto` takes `evaluator.DEFAULTS`. If a loss of the run sees one of them, `auto`
            takes `evaluator.SUBSTITUTES` in its place.
        missing: treatment of rulers without weights, see `weights.load`.
        path: file or folder with weights of rulers, see `weights.load`.
        size: side in px of the square to which rulers resize images; `auto` follows the size of the images.
        photo_size: side in px of the square to which all images are resized first; `auto` takes `data.load_size` with
            `data.resize=stretch`, None leaves them as stored.

    Raises:
        CommandError: a setting is invalid, a loss of the run sees a named ruler, or the images are grey.
    """
    if every is None:
        return None
    from cyclestyle.evaluation.evaluator import OF_RULERS
    from cyclestyle.evaluation.training_scores import TrainingScores

    _check(every=every, names=names, size=size, photo_size=photo_size)
    _check_data(data)
    chosen = _allowed(rulers, trainer, report) if {*OF_RULERS} & {*names} else []
    if photo_size == "auto":
        photo_size = data.crop.load_size if data.crop.resize == "stretch" else None
    sets = _sets(data, images, with_references="copying" in names)
    loaded = _load(chosen, trainer, sets, report, missing=missing, path=path, size=size, photo_size=photo_size)
    scores = TrainingScores(sets, loaded, names=names, photo_size=photo_size, hardware=trainer.hardware)
    if not scores.expected:
        return None
    counts = " and ".join(f"{len(own.sources):,}" for own in sets.values())
    by = f" by {'; '.join(ruler.protocol for ruler in loaded)}" if loaded else ""
    report(f"scores every {every} steps on {counts} images: {', '.join(names)}{by}")
    return scores


def _check(*, every: int, names: Sequence[str], size: Size, photo_size: Size | None) -> None:
    """Raise a CommandError for a number that is out of range, or for an unknown name of a score."""
    from cyclestyle.evaluation.training_scores import NAMES
    from cyclestyle.training.periodic import check_every

    check_every("scores.every", every)
    for key, value in (("size", size), ("photo_size", photo_size)):
        if isinstance(value, int) and value < 32:
            raise CommandError(f"scores.{key}={value}: give 32 px or more")
    if not names:
        raise CommandError(f"scores.names=[]: give at least one of {', '.join(NAMES)}")
    for name in names:
        if name not in NAMES:
            raise CommandError(
                f"scores.names: {name} is no score that training computes: there are {', '.join(NAMES)}; "
                f"python -m cyclestyle.evaluate has further ones"
            )


def _check_data(data: "UnpairedFolders") -> None:
    """Raise a CommandError if the images are grey, or if `data` has no method that lists its usable files."""
    if not hasattr(data, "usable_files"):
        raise CommandError(
            f"scores.every: the data set {type(data).__name__} has no method usable_files, which lists the images to "
            f"score on: leave scores.every out, or add the method (cyclestyle.data.UnpairedFolders has it)"
        )
    if not data.channels_a == data.channels_b == 3:
        raise CommandError(
            "scores.every needs RGB images, and data.channels_a or data.channels_b is 1: leave scores.every out"
        )


def _allowed(rulers: Literal["auto"] | Sequence[str], trainer: "Trainer", report: "PrintLine") -> Sequence[str]:
    """Return the names of the pretrained networks to measure with, without those that a loss of the run uses.

    Raises:
        CommandError: the user named a network that a loss uses.
    """
    from cyclestyle.evaluation.evaluator import DEFAULTS, SUBSTITUTES
    from cyclestyle.objectives.sees import networks_seen

    seen, usual = networks_seen(trainer.objective), DEFAULTS["rulers"]
    candidates = [name for name in (*usual, SUBSTITUTES["rulers"]) if name not in seen]
    if isinstance(rulers, str):
        refused = [name for name in usual if name in seen]
        if not refused:
            return usual
        report(
            f"scores.rulers: {', '.join(candidates) or 'none'}; without {refused[0]}, which would rate this run too "
            f"well, since {seen[refused[0]]} sees it"
        )
        return candidates
    for name in rulers:
        if name in seen:
            others = [other for other in candidates if other not in rulers]
            raise CommandError(
                f"scores.rulers: {name} would rate this run too well, since {seen[name]} sees it: take "
                f"{others[0] if others else 'another network'} instead"
            )
    return rulers


def _sets(data: "UnpairedFolders", images: int | None, *, with_references: bool) -> "dict[Side, Sets]":
    """Return the files to score each direction on; `with_references` adds training images of the target domain."""
    from cyclestyle.evaluation.sets import from_data_set

    if images is not None and images < 2:
        raise CommandError(f"scores.images={images}: give the maximum number of images of a set, 2 or more, or null")
    files = data.usable_files()
    sides: tuple[Side, Side] = ("ab", "ba")
    sets = {side: from_data_set(files, side=side, limit=images) for side in sides}
    return sets if with_references else {side: own._replace(references=()) for side, own in sets.items()}


def _load(
    names: Sequence[str],
    trainer: "Trainer",
    sets: "Mapping[Side, Sets]",
    report: "PrintLine",
    *,
    missing: Missing,
    path: str | None,
    size: Size,
    photo_size: int | None,
) -> "list[Ruler]":
    """Load pretrained networks as rulers; leave out networks without weights, and print a line that names these."""
    from cyclestyle.evaluation.rulers import left_out, load_rulers, usual_size

    if not names:
        return []
    if size == "auto":
        size = usual_size([file for own in sets.values() for file in own.targets], photo_size=photo_size)
    with trainer.world.main_first():  # one rank alone fetches weights
        rulers, without = load_rulers(
            names,
            path=None if path is None else Path(path),
            missing=missing,
            size=size,
            device=trainer.hardware.device,
            report=report,
            key="scores.path",
        )
    if without:
        report(left_out(without))
    return rulers
