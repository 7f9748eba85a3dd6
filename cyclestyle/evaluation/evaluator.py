"""Evaluation of models on the images that a user chooses: directions, sets, rulers, and the report of each model."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cyclestyle.data import UnpairedFolders
from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError
from cyclestyle.evaluation import sets
from cyclestyle.evaluation.models import ScoredModel, Side
from cyclestyle.evaluation.pair_rulers import PairRuler, load_pair_rulers
from cyclestyle.evaluation.report import DirectionReport, Report
from cyclestyle.evaluation.robustness import RobustnessReport, robustness
from cyclestyle.evaluation.rulers import Ruler, left_out, load_rulers, usual_size
from cyclestyle.evaluation.scores import SCORES, OnProgress, score_direction
from cyclestyle.evaluation.sets import Sets
from cyclestyle.hardware.device import Hardware

OF_RULERS = ("kid", "fid", "style", "structure", "copying")
OF_LPIPS = ("lpips", "truth_lpips")
DEFAULTS = {"rulers": ("efficientnet_lite0", "vgg16_hed"), "lpips": ("lpips_alex",)}
SUBSTITUTES = {"rulers": "lpips_alex", "lpips": "lpips_vgg"}  # in place of a default network that a loss has used

Log = Callable[[str], object]
Progress = Callable[[str], AbstractContextManager[OnProgress]]


class Images(NamedTuple):
    """Images to score on, as a user gives them: folders for one direction, or a data set for both.

    Attributes:
        input, target, truth: folders for one direction; None if not given.
        data: keyword arguments of `UnpairedFolders`; empty if not given.
        is_aligned: whether test images of both domains with equal names show the same scene.
        limit: maximum number of images of each set; None for all.
    """

    input: Path | None = None
    target: Path | None = None
    truth: Path | None = None
    data: Mapping[str, Any] = {}
    is_aligned: bool = False
    limit: int | None = None


class Networks(NamedTuple):
    """Pretrained networks to score with, as a user chooses them.

    Attributes:
        rulers: names of the networks that measure images by their features; `auto` takes those in `DEFAULTS`. If only
            one of these networks measures style, `auto` adds the first LPIPS network, which then measures style, too.
        lpips: names of the LPIPS networks that compare pairs of images; `auto` takes those in `DEFAULTS`.
        path: file or folder with the weights; None to search the cache and installed packages.
        missing: treatment of networks without weights, see `weights.load`.
        size: side, in px, of the square to which images are resized; `auto` takes `rulers.shared_size` of the targets.
        device: device on which the networks run, such as `cpu`; see `hardware.Hardware`.
    """

    rulers: Sequence[str] | Literal["auto"] = "auto"
    lpips: Sequence[str] | Literal["auto"] = "auto"
    path: Path | None = None
    missing: Literal["skip", "error", "fetch"] = "skip"
    size: int | Literal["auto"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class Settings(NamedTuple):
    """Further settings of an evaluation; see `scores.score_direction`."""

    names: Collection[str] = SCORES
    strengths: Sequence[float] = (1.0,)
    photo_size: int | None = None
    batch_size: int = 8
    workers: int = 0
    cache: bool = True
    seed: int = 0


class _Loaded(NamedTuple):
    """Pretrained networks with their weights."""

    rulers: Sequence[Ruler]
    lpips: Sequence[PairRuler]
    missing: Sequence[str]  # names of networks without weights


def evaluate_models(
    models: Sequence[ScoredModel],
    images: Images,
    networks: Networks,
    settings: Settings,
    *,
    with_robustness: bool = False,
    world: World,
    log: Log,
    progress: Progress,
) -> list[Report]:
    """Score models on the same images, with the same pretrained networks.

    Args:
        with_robustness: whether to measure how far translations move if the photos are degraded. Rank 0 alone
            measures it, and the reports of other ranks lack it.
        world: ranks that share the work.
        log: function that receives lines for the user.
        progress: called with a name for the work; returns a context manager that yields a function, which is called
            after each batch of images, see `scores.OnProgress`.

    Returns:
        One report for each model.

    Raises:
        CommandError: settings contradict one another, a direction is missing, or a loss of the training used a network
            that the user named.
        DataError: images are missing or damaged.
    """
    chosen = [choose_sets(model, images) for model in models]
    for model, by_side in zip(models, chosen, strict=True):
        for side, own in by_side.items():
            log(f"{model.translators[side]}: {_described(own)}")
    loaded = _load_networks(
        models, chosen, networks, settings.names, photo_size=settings.photo_size, world=world, log=log
    )
    reports = []
    for model, by_side in zip(models, chosen, strict=True):
        directions, moved = [], []
        for side, own in by_side.items():
            name = model.translators[side].direction
            with progress(f"scoring {name}") as on_progress:
                directions.append(_scored(model, side, own, loaded, settings, world=world, on_progress=on_progress))
            if with_robustness and world.is_main:  # the other ranks wait
                with progress(f"degrading {name}") as on_progress:
                    moved.append(_moved(model, side, own, loaded, settings, on_progress=on_progress))
        reports.append(
            Report(
                model.path,
                model.first.step,
                model.first.weights,
                tuple(directions),
                tuple(loaded.missing),
                _record(images, settings, loaded),
                tuple(moved),
            )
        )
    return reports


def choose_sets(model: ScoredModel, images: Images) -> dict[Side, Sets]:
    """Return the image files to score on, for each direction that is scored.

    Raises:
        CommandError: no images are given, or they are given in two ways.
        DataError: a folder is missing or has no images.
    """
    if images.input is not None and images.data:
        raise CommandError("input= and data.root= both give the photos: leave one of them out")
    if images.input is not None:
        found = sets.from_folders(images.input, target=images.target, truth=images.truth, limit=images.limit)
        return dict.fromkeys(model.selected(source=images.input, target=images.target or images.truth), found)
    if not images.data:
        raise CommandError(
            "evaluate needs photos: give input=photos/, best with target=paintings/, or, for both directions, "
            "data.root=data/monet2photo"
        )
    if images.target is not None:
        raise CommandError("target= belongs to input=; data.root= has the images of both domains: leave target= out")
    folders = _data_set(model, images)
    sides = model.selected()
    if images.truth is not None and len(sides) > 1:
        raise CommandError("truth= belongs to one direction: give direction= too, or data.aligned=true for both")
    return {
        side: sets.from_data_set(
            folders, side=side, is_aligned=images.is_aligned, truth=images.truth, limit=images.limit
        )
        for side in sides
    }


def _data_set(model: ScoredModel, images: Images) -> UnpairedFolders:
    a, b = model.first.domains
    return UnpairedFolders(**images.data, domain_a=a, domain_b=b, colour="managed", decoder="photo")


def _record(images: Images, settings: Settings, loaded: _Loaded) -> dict[str, Any]:
    """Return the user's choice of images, the settings, and the SHA-256 of the networks' weights, for the report."""
    chosen = {key: str(value) if isinstance(value, Path) else value for key, value in images._asdict().items()}
    return {
        "images": {**chosen, "data": dict(images.data)},
        "names": list(settings.names),
        "strengths": list(settings.strengths),
        "photo_size": settings.photo_size,
        "seed": settings.seed,
        "networks": {ruler.protocol: ruler.fingerprint for ruler in loaded.rulers},
        "lpips": {network.protocol: network.fingerprint for network in loaded.lpips},
    }


def _described(chosen: Sets) -> str:
    """Return a text for the log with the number of images in each set."""
    parts = [f"photos: {len(chosen.sources):,}"]
    if chosen.targets:
        parts.append(f"real images to compare with: {len(chosen.targets):,}")
    if chosen.references:
        parts.append(f"of training: {len(chosen.references):,}")
    return ", ".join(parts)


def _load_networks(
    models: Sequence[ScoredModel],
    chosen: Sequence[Mapping[Side, Sets]],
    networks: Networks,
    names: Collection[str],
    *,
    photo_size: int | None,
    world: World,
    log: Log,
) -> _Loaded:
    """Load the pretrained networks that the scores in `names` need."""
    is_rgb = any(
        _translates_rgb(model, side) for model, by_side in zip(models, chosen, strict=True) for side in by_side
    )
    losses_see = {name for model in models for name in model.losses_see}
    rulers = _allowed("rulers", networks.rulers, losses_see, log) if is_rgb and {*OF_RULERS} & {*names} else []
    has_second = networks.rulers == "auto" and "style" in names  # a network of LPIPS measures style, too
    needs_lpips = is_rgb and (has_second or {*OF_LPIPS} & {*names})
    lpips = _allowed("lpips", networks.lpips, losses_see, log) if needs_lpips else []
    files = [file for by_side in chosen for own in by_side.values() for file in own.targets or own.sources]
    size = usual_size(files, photo_size=photo_size) if networks.size == "auto" else networks.size
    how: dict[str, Any] = {
        "path": networks.path,
        "missing": networks.missing,
        "size": size,
        "device": Hardware(networks.device, precision="fp32", world=world).device,
        "report": log,
    }
    with world.main_first():  # one rank alone fetches weights
        loaded_rulers, missing = load_rulers(rulers, **how)
        loaded_lpips, missing_lpips = load_pair_rulers(lpips, **how)
    if has_second and sum(ruler.has_style for ruler in loaded_rulers) == 1:
        loaded_rulers += [network.for_style() for network in loaded_lpips[:1]]
    missing = list(dict.fromkeys([*missing, *missing_lpips]))
    if missing:
        log(left_out(missing))
    return _Loaded(loaded_rulers, loaded_lpips, missing)


def _allowed(
    key: Literal["rulers", "lpips"], names: Sequence[str] | str, losses_see: Collection[str], log: Log
) -> list[str]:
    """Return the names of the networks to measure with, without those that a loss of the training used.

    A model learns to satisfy the networks of its losses, even in ways that people do not see as improvements. Scores by
    these networks would be too good.

    Raises:
        CommandError: the user has named a network that a loss used.
    """
    if isinstance(names, str):
        allowed = [name for name in DEFAULTS[key] if name not in losses_see]
        if len(allowed) < len(DEFAULTS[key]):
            seen = ", ".join(name for name in DEFAULTS[key] if name in losses_see)
            allowed += [] if SUBSTITUTES[key] in losses_see else [SUBSTITUTES[key]]
            log(f"{key}: {', '.join(allowed) or 'none'}, without {seen}, which a loss of this model was computed with")
        return allowed
    for name in names:
        if name in losses_see:
            raise CommandError(
                f"{key}: {name} cannot judge this model, since a loss of its training was computed with it: choose "
                f"another network"
            )
    return list(names)


def _scored(
    model: ScoredModel,
    side: Side,
    chosen: Sets,
    loaded: _Loaded,
    settings: Settings,
    *,
    world: World,
    on_progress: OnProgress,
) -> DirectionReport:
    function, back = model.function(side), model.function("ba" if side == "ab" else "ab")
    assert function is not None
    names: Collection[str] = settings.names
    notes = chosen.notes
    if not _translates_rgb(model, side):
        names = [name for name in names if name not in OF_RULERS + OF_LPIPS]
        notes += ("left out: scores of pretrained networks (they need RGB images, and this model has grey ones)",)
        if settings.strengths != (1.0,):
            raise CommandError("strength= needs a model that translates RGB images to RGB images: leave it out")
    report = score_direction(
        function,
        chosen,
        direction=model.translators[side].direction,
        rulers=loaded.rulers,
        lpips=loaded.lpips,
        back=back,
        **settings._replace(names=names)._asdict(),
        world=world,
        on_progress=on_progress,
    )
    return report._replace(notes=notes + report.notes)


def _moved(
    model: ScoredModel, side: Side, chosen: Sets, loaded: _Loaded, settings: Settings, *, on_progress: OnProgress
) -> RobustnessReport:
    function = model.function(side)
    assert function is not None
    return robustness(
        function,
        chosen.sources,
        measures=loaded.lpips if _translates_rgb(model, side) else (),
        direction=model.translators[side].direction,
        photo_size=settings.photo_size,
        batch_size=settings.batch_size,
        workers=settings.workers,
        seed=settings.seed,
        on_progress=on_progress,
    )


def _translates_rgb(model: ScoredModel, side: Side) -> bool:
    translator = model.translators[side]
    return translator.in_channels == translator.out_channels == 3
