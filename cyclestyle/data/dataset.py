"""Training pairs as a pure function of the seed and the sample index.

Sample index n (`draw` in code) identifies the n-th pair of a run, counted from 0 over all steps and ranks. The files,
crops and flips of the pair depend on the seed and n alone. They are the same for any number of workers and ranks, and
after a restart.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cyclestyle.data.crop import Crop
from cyclestyle.data.inspection import as_image_error
from cyclestyle.errors import DataError
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.reading import Channels, ImageReader
from cyclestyle.rng import rng_for

MAX_TRIES = 100  # files tried for one image; if all of them are unreadable, the disk is probably at fault


class Pair(NamedTuple):
    """One training example: an image of each domain, uint8 (C, H, W).

    `draw` is the sample index: the number of the pair in the run, counted from 0. The number of channels, C, is 3 for
    colour and 1 for grey; the two domains may differ.
    """

    a: Tensor
    b: Tensor
    draw: int
    replaced: Sequence[str] = ()  # `path: reason` of unreadable files that were replaced


class Batch(NamedTuple):
    """N pairs: N images of each domain, uint8 (N, C, H, W).

    `draws` holds the N sample indices: the number of each pair in the run. The number of channels, C, is 3 for colour
    and 1 for grey; the two domains may differ.
    """

    a: Tensor
    b: Tensor
    draws: list[int]
    replaced: Sequence[str] = ()  # `path: reason` of unreadable files that were replaced


class UnpairedDataset:
    """Pairs of training images from two lists of files.

    Item n is the n-th pair of a run, counted from 0 over all steps and ranks; n is called the sample index.

    Files of domain a are used in rounds: each round uses every file once, in a new random order. Files of domain b are
    drawn uniformly at random. Both rules follow the CycleGAN authors' implementation of 2017.

    An unreadable file is replaced by a random file of the same domain. The replacement depends on the seed and the
    sample index alone; no other pair changes.

    Args:
        a, b: image files of the two domains.
        crop: cuts the training crop from an image.
        seed: the run's seed.
        bad_a, bad_b: indices into the lists `a` and `b`; the files at these indices are never read.
        replacing: whether unreadable files are replaced; if False, an unreadable file raises a DataError.
        reader: reads the image files; files that it rejects count as unreadable.
        channels_a, channels_b: 3 for RGB images of the domain, 1 for grey images.
    """

    def __init__(
        self,
        a: list[Path],
        b: list[Path],
        *,
        crop: Crop,
        seed: int,
        bad_a: frozenset[int] = frozenset(),
        bad_b: frozenset[int] = frozenset(),
        replacing: bool = True,
        reader: ImageReader = ImageReader(),  # noqa: B008 - immutable
        channels_a: Channels = 3,
        channels_b: Channels = 3,
    ) -> None:
        assert len(bad_a) < len(a)
        assert len(bad_b) < len(b)
        self.a, self.b, self.bad_a, self.bad_b = a, b, bad_a, bad_b
        self.crop, self.seed, self.replacing = crop, seed, replacing
        self.reader, self.channels_a, self.channels_b = reader, channels_a, channels_b

    def __len__(self) -> int:
        """Return the number of pairs in an epoch: the number of files in the larger domain."""
        return max(len(self.a), len(self.b))

    def files(self, draw: int) -> tuple[Path, Path]:
        """Return the two files chosen for sample index `draw`, first of domain a, then of domain b; open neither.

        Replacements are returned for files at the indices in `bad_a` and `bad_b`, but not for other unreadable files.
        """
        return next(self._candidates_a(draw)), next(self._candidates_b(draw))

    def __getitem__(self, draw: int) -> Pair:
        a, replaced_a = self._first_readable(self._candidates_a(draw), "crop a", draw, self.channels_a)
        b, replaced_b = self._first_readable(self._candidates_b(draw), "crop b", draw, self.channels_b)
        return Pair(a, b, draw, [*replaced_a, *replaced_b])

    def _candidates_a(self, draw: int) -> Iterator[Path]:
        round_index, position = divmod(draw, len(self.a))
        slot = int(_shuffled(len(self.a), self.seed, round_index)[position])
        return self._candidates(self.a, slot, bad=self.bad_a, purpose="instead of a", draw=draw)

    def _candidates_b(self, draw: int) -> Iterator[Path]:
        slot = int(rng_for(self.seed, "b", draw).integers(len(self.b)))
        return self._candidates(self.b, slot, bad=self.bad_b, purpose="instead of b", draw=draw)

    def _candidates(
        self, files: list[Path], slot: int, *, bad: frozenset[int], purpose: str, draw: int
    ) -> Iterator[Path]:
        """Yield the file `files[slot]`, then an endless series of replacements, drawn at random from `files`.

        Files at an index in `bad` are never yielded; if `slot` is in `bad`, the first yielded file is a replacement.
        The replacements depend on the run's seed, on `purpose` (a label for this use of random numbers) and on the
        sample index `draw`. They are the same whether `slot` is in `bad` or `files[slot]` is found to be unreadable.
        """
        if slot not in bad:
            yield files[slot]
        random = rng_for(self.seed, purpose, draw)
        while True:
            slot = int(random.integers(len(files)))
            if slot not in bad:
                yield files[slot]

    def _first_readable(
        self, candidates: Iterator[Path], purpose: str, draw: int, channels: Channels
    ) -> tuple[Tensor, list[str]]:
        """Return a crop of the first readable file in `candidates`, and an error text for each file before it.

        The run's seed, `purpose` (a label for this use of random numbers) and the sample index `draw` determine the
        position and flip of the crop.

        Raises:
            DataError: a file is unreadable and `replacing` is False, or the first `MAX_TRIES` files are unreadable.
        """
        errors: dict[Path, str] = {}
        for file in itertools.islice(candidates, MAX_TRIES):
            try:
                return self._crop_of(file, rng_for(self.seed, purpose, draw), channels), list(errors.values())
            except Exception as error:  # a bug in a decoder or in this package must not end the run
                if not self.replacing:
                    raise as_image_error(file, error) from None
                errors[file] = str(as_image_error(file, error))
        reason = list(errors.values())[-1]
        raise DataError(f"found no readable picture in {MAX_TRIES} random tries; the last error: {reason}")

    def _crop_of(self, file: Path, random: np.random.Generator, channels: Channels) -> Tensor:
        image: object = self.reader.read(file, channels=channels)
        mode = {1: "L", 3: "RGB"}[channels]
        if not isinstance(image, Image.Image) or image.mode != mode:
            raise ImageError(file, f"decoded to {getattr(image, 'mode', type(image).__name__)}, not {mode}", False)
        pixels = self.crop.random(image, random)
        shape = (channels, self.crop.crop_size, self.crop.crop_size)
        if pixels.dtype != torch.uint8 or pixels.shape != shape:
            actual = f"{pixels.dtype} {tuple(pixels.shape)}"
            raise ImageError(file, f"decoded to {actual}, not {torch.uint8} {shape}", False)
        return pixels


@functools.lru_cache(maxsize=2)  # consecutive pairs share a round; a batch across the end of a round needs two rounds
def _shuffled(count: int, seed: int, round_index: int) -> np.ndarray:
    return rng_for(seed, "a", round_index).permutation(count)
