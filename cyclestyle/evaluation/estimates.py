"""Scores with intervals, computed from the measurements of all images."""

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from cyclestyle.evaluation.features import SetFeatures
from cyclestyle.evaluation.measuring import GRAM, Column, Columns, pooled_statistics
from cyclestyle.evaluation.real_images import RealImages
from cyclestyle.evaluation.report import Row, Score
from cyclestyle.evaluation.rulers import Ruler
from cyclestyle.metrics import colour, copying, fid, kid, style
from cyclestyle.metrics.estimate import Estimate, mean_estimate
from cyclestyle.rng import rng_for

RESIZE = "bicubic"  # interpolation by which images are resized for rulers, and by `photo_size`
_MEANS = ("content_ssim", "reconstruction_psnr", "reconstruction_ssim", "truth_psnr", "truth_ssim", "truth_l1")


class Estimator:
    """Computes scores of one direction from the measurements of its images.

    Args:
        columns: measurements of the photos and translations, see `measuring.measure`.
        direction: name of the direction.
        seed: seed of the bootstrap; each score has random numbers of its own, so that its interval does not depend on
            the other scores.
        photo_size: side of the square to which all images were resized, in px; None if they were not.
    """

    def __init__(self, columns: Columns, *, direction: str, seed: int, photo_size: int | None) -> None:
        self._columns, self._direction, self._seed, self._photo_size = columns, direction, seed, photo_size

    def of_ruler(
        self, ruler: Ruler, real: RealImages | None, names: Collection[str], *, strength: float
    ) -> Iterator[Score]:
        """Yield all scores that are measured by `ruler`, a pretrained network.

        Args:
            real: features of the real images; None if no score needs them.
            names: names of the scores.
            strength: weight of the model's output in the images that are scored as translations.
        """
        yield from self.of_translations(ruler, real, names, strength=strength)
        if real is None:
            return
        yield from self._of_sets(ruler, self._features(ruler, "untouched", None), real.targets, names, "untouched")
        if real.floor is not None:
            yield from self._of_sets(ruler, *real.floor, names, "floor")
        if real.references is not None and "copying" in names:
            translated = self._features(ruler, "translated", strength).pooled
            yield self._copying(ruler, translated, real.references.pooled, "translated")
            if real.references is not real.targets:
                yield self._copying(ruler, real.targets.pooled, real.references.pooled, "floor")

    def of_translations(
        self, ruler: Ruler, real: RealImages | None, names: Collection[str], *, strength: float
    ) -> Iterator[Score]:
        """Yield the scores of the translations at one strength.

        Style distance, KID and FID compare the translations with real images of the target domain. The structure
        distance compares each translation with its photo.

        Args:
            real: features of the real images; None leaves out the scores that need them.
        """
        if real is not None:
            features = self._features(ruler, "translated", strength)
            yield from self._of_sets(ruler, features, real.targets, names, "translated")
        distances = self._columns.get(Column("structure", ruler.name, "translated", strength))
        if distances is not None and "structure" in names:
            yield self._mean("structure", "translated", distances, ruler=ruler.name, size=ruler.size)

    def of_pairs(self, sizes: dict[str, int]) -> Iterator[Score]:
        """Yield the means over all photos of scores that compare two images.

        Args:
            sizes: side of the square to which each network of LPIPS resizes images, in px, by the network's name.
        """
        for column, values in self._columns.items():
            if column.name in _MEANS:
                yield self._mean(column.name, column.row, values, ruler=None, size=self._photo_size)
            elif column.name in ("lpips", "truth_lpips") and column.ruler is not None:
                yield self._mean(column.name, column.row, values, ruler=column.ruler, size=sizes[column.ruler])

    def of_colours(self, targets: Tensor) -> Iterator[Score]:
        """Yield the colour distances of the translations and of the photos to real images of the target domain.

        Args:
            targets: `measuring.pixel_sums` of the real images.
        """
        for row in ("translated", "untouched"):
            sums = self._columns[Column("colours", row=row)]
            distance = colour.colour_distance(pooled_statistics(sums), pooled_statistics(targets))
            yield Score(
                "colours", None, row, distance, n=len(sums), reference=len(targets), **self._sizes(self._photo_size)
            )

    def _features(self, ruler: Ruler, row: Row, strength: float | None) -> SetFeatures:
        """Return the features of the images of `row`: `untouched` photos, or translations at `strength`."""
        named = {
            column.name: values
            for column, values in self._columns.items()
            if (column.ruler, column.row, column.strength) == (ruler.name, row, strength)
        }
        layers = sorted(name for name in named if name.startswith(GRAM))  # there are fewer than ten
        grams = tuple(named[name] for name in layers)
        return SetFeatures(named.get("pooled", torch.empty(0)), grams)

    def _of_sets(
        self, ruler: Ruler, x: SetFeatures, y: SetFeatures, names: Collection[str], row: Row
    ) -> Iterator[Score]:
        """Yield KID, FID and style distance, if in `names`, between a set of images `x` and a set `y`."""
        about: dict[str, Any] = {"n": len(x.pooled), "reference": len(y.pooled), **self._sizes(ruler.size)}
        if x.pooled.numel() and "kid" in names:
            estimate = kid.kid(x.pooled, y.pooled, generator=self._generator("kid", ruler.name, row))
            yield Score("kid", ruler.name, row, *_with_interval(estimate), **about)
        if x.pooled.numel() and "fid" in names:
            yield Score("fid", ruler.name, row, fid.fid(x.pooled, y.pooled), **about)
        if x.grams and "style" in names:
            generator = self._generator("style", ruler.name, row)
            estimate = style.style_distance(x.grams, y.grams, generator=generator)
            about |= {"n": len(x.grams[0]), "reference": len(y.grams[0])}
            yield Score("style", ruler.name, row, *_with_interval(estimate), **about)

    def _copying(self, ruler: Ruler, x: Tensor, references: Tensor, row: Row) -> Score:
        distances = copying.nearest_cosine_distance(x, references)
        score = self._mean("copying", row, distances, ruler=ruler.name, size=ruler.size)
        return score._replace(reference=len(references))

    def _mean(self, name: str, row: Row, values: Tensor, *, ruler: str | None, size: int | None) -> Score:
        """Return the score `name`: the mean and interval of `values`, which has one value per image."""
        estimate = mean_estimate(values, generator=self._generator(name, ruler, row))
        return Score(name, ruler, row, *_with_interval(estimate), n=len(values), **self._sizes(size))

    def _sizes(self, size: int | None) -> dict[str, Any]:
        return {"size": size, "resize": None if size is None else RESIZE}

    def _generator(self, *what: object) -> torch.Generator:
        purpose = " ".join(map(str, (self._direction, *what)))
        return torch.Generator().manual_seed(int(rng_for(self._seed, purpose).integers(2**62)))


def _with_interval(estimate: Estimate) -> tuple[float, float | None, float | None]:
    """Return value, low and high; low and high are None if there is no interval, or an end of it is infinite."""
    value, low, high = estimate
    return (value, low, high) if math.isfinite(low) and math.isfinite(high) else (value, None, None)
