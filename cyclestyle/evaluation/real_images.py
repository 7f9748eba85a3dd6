"""Features and colours of the real images that translations are compared with."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cyclestyle.distributed.world import World
from cyclestyle.evaluation.features import SetFeatures
from cyclestyle.evaluation.measuring import Reader, pixel_sums
from cyclestyle.evaluation.rulers import Part
from cyclestyle.evaluation.sets import Sets, evenly_spaced
from cyclestyle.photoset.worker_pool import Workers

Load = Callable[[Sequence[Path], Collection[Part]], SetFeatures]


class RealImages(NamedTuple):
    """Features, by one ruler, of real images of the target domain.

    Attributes:
        targets: the images that all other sets are compared with.
        floor: two sets of real images. Their distance is the floor: the distance that a perfect model can reach. The
            first set is `Sets.references`, up to the number of photos; the second is `targets`. If the first set would
            have fewer than 2 images, both sets are halves of the targets, or `floor` is None if there are fewer than 4
            targets.
        references: the images that translations may have copied; None if copying is not scored.
    """

    targets: SetFeatures
    floor: tuple[SetFeatures, SetFeatures] | None
    references: SetFeatures | None = None


def real_images(sets: Sets, load: Load, *, parts: Collection[Part], with_copying: bool) -> RealImages:
    """Compute the features of the targets and references of `sets`.

    Args:
        sets: files; the number of photos limits the number of references for the floor.
        load: function that returns the features of files; its second argument selects the parts of the features.
        parts: parts of the features that are computed: `pooled`, `grams` or both.
        with_copying: whether the copying score is computed. It needs the `pooled` features of all references; if
            `sets` has none, the targets take their place.
    """
    targets = load(sets.targets, parts)
    beside = evenly_spaced(sets.references, len(sets.sources)) if sets.references else []
    if len(beside) > 1:
        floor: tuple[SetFeatures, SetFeatures] | None = (load(beside, parts), targets)
    else:
        halves = _every_second(targets, 0), _every_second(targets, 1)
        floor = halves if len(sets.targets) >= 4 else None
    if not with_copying:
        return RealImages(targets, floor)
    if not sets.references:
        return RealImages(targets, floor, targets)
    if floor and 1 < len(beside) == len(sets.references):
        return RealImages(targets, floor, floor[0])
    return RealImages(targets, floor, load(sets.references, {"pooled"}))


def images_to_measure(sets: Sets, *, with_copying: bool) -> int:
    """Return the number of images that `real_images` loads."""
    beside = min(len(sets.sources), len(sets.references))
    for_floor = beside if beside > 1 else 0
    for_copying = len(sets.references) if with_copying and for_floor < len(sets.references) else 0
    return len(sets.targets) + for_floor + for_copying


def colour_sums(files: Sequence[Path], *, photo_size: int | None, workers: Workers, world: World) -> Tensor:
    """Return colour sums of N image files, float64 (N, 7), see `measuring.pixel_sums`; the ranks share the files."""
    own = [pixel_sums(image[None]) for image in Reader(workers, photo_size)(files[world.rank :: world.size])]
    sums = torch.empty(len(files), 7, dtype=torch.float64)
    for rank, rows in enumerate(world.gather(own)):
        if rows:
            sums[rank :: world.size] = torch.cat(rows)
    return sums


def _every_second(features: SetFeatures, first: int) -> SetFeatures:
    return SetFeatures(features.pooled[first::2], tuple(gram[first::2] for gram in features.grams))
