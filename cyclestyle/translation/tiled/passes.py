"""Sweeps over a whole picture, strip by strip: to measure it, to keep what is computed, or only to count the cost."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from cyclestyle.translation.tiled.activation_store import ActivationStore, ActivationStores
from cyclestyle.translation.tiled.layers import Cost, NormStatistics, RowSource

_ALWAYS = 200 * 10**6  # bytes that PyTorch and the allocator were measured to keep for themselves
_SLACK = 1.3  # of what strips take: likewise
_AT_ONCE = 2**20  # numbers of a strip that are measured at a time: little memory, and they stay in the cache


class StoredActivation:
    """Activations of the whole picture that wait in a store.

    Args:
        statistics: of what was written last, None if nobody asked for them.
    """

    def __init__(self, store: ActivationStore, like: RowSource, device: torch.device) -> None:
        self.store, self.device = store, device
        self.channels, self.height, self.width = like.channels, like.height, like.width
        self.owned = not store.lent or device.type != "cpu"
        self.statistics: NormStatistics | None = None

    def rows(self, top: int, bottom: int) -> Tensor:
        return self.store.read(top, bottom).to(self.device)

    def load(self, count: int) -> Cost:
        return Cost(0, self.channels * min(count, self.height) * self.width)


class Pass(Protocol):
    """What an architecture is computed with."""

    def statistics(self, of: RowSource, layer: nn.InstanceNorm2d) -> NormStatistics:
        """Of the whole of it, for a norm layer: known already if it is kept, else from a sweep of its own."""

    def keep(self, made: RowSource) -> StoredActivation:
        """All of it, measured, in a store of its own."""

    def overwrite(self, kept: StoredActivation, made: RowSource, *, measured: bool) -> None:
        """All of it into a store that it may itself be made from, as long as that takes no rows far above its own."""


class Passes:
    """Real sweeps.

    Args:
        stores: for what is kept.
        device: where strips are computed.
        rows: height of a strip, in px of the picture.
        height: of the picture, in px.
        advance: is told after every strip how many operations it took.
        observe: is told the statistics for every norm layer.
    """

    def __init__(
        self,
        stores: ActivationStores,
        *,
        device: torch.device,
        rows: int,
        height: int,
        advance: Callable[[float], object],
        observe: Callable[[nn.InstanceNorm2d, NormStatistics], object],
    ) -> None:
        self.stores, self.device, self.advance, self.observe = stores, device, advance, observe
        self.rows, self.height = rows, height

    def statistics(self, of: RowSource, layer: nn.InstanceNorm2d) -> NormStatistics:
        statistics = of.statistics if isinstance(of, StoredActivation) else None
        if statistics is None:
            moments = RunningMoments(of.channels)
            self.over(of, lambda top, strip: moments.add(strip))
            statistics = moments.statistics(self.device)
        self.observe(layer, statistics)
        return statistics

    def keep(self, made: RowSource) -> StoredActivation:
        kept: StoredActivation | None = None
        moments = RunningMoments(made.channels)

        def take(top: int, strip: Tensor) -> None:
            nonlocal kept
            moments.add(strip)
            if kept is None:
                kept = StoredActivation(
                    self.stores.make(made.channels, made.height, made.width, strip.dtype), made, self.device
                )
            kept.store.write(top, strip)

        self.over(made, take)
        assert kept is not None
        kept.statistics = moments.statistics(self.device)
        return kept

    def overwrite(self, kept: StoredActivation, made: RowSource, *, measured: bool) -> None:
        moments = RunningMoments(made.channels)
        waiting: tuple[int, Tensor] | None = None

        def take(top: int, strip: Tensor) -> None:
            nonlocal waiting
            if measured:
                moments.add(strip)
            if waiting:  # until now, since this strip may have needed the last rows as they were
                kept.store.write(*waiting)
            waiting = top, strip

        self.over(made, take)
        if waiting:
            kept.store.write(*waiting)
        kept.statistics = moments.statistics(self.device) if measured else None

    def over(self, part: RowSource, take: Callable[[int, Tensor], object], between: slice | None = None) -> None:
        """Hand over the rows of something, strip by strip, each with the number of its first; all of them, or some.

        A callback and no iterator: in a loop, each strip would still be held while the next one is computed.
        """
        for top, bottom in strip_bounds(part, self.rows, self.height, between):
            take(top, part.rows(top, bottom))
            self.advance(part.load(bottom - top).operations)


class CostEstimate:
    """Sweeps that are only counted; takes what `Passes` takes, with stores on `meta`."""

    def __init__(self, stores: ActivationStores, *, dtype: torch.dtype, rows: int, height: int) -> None:
        self.stores, self.dtype, self.rows, self.height = stores, dtype, rows, height
        self.operations = 0.0
        self.strip_bytes = 0  # at the worst time, as of `most`
        self.most = 0  # bytes of what waits and of strips together

    def statistics(self, of: RowSource, layer: nn.InstanceNorm2d) -> NormStatistics:
        if not isinstance(of, StoredActivation):
            self.count(of)
        return NormStatistics(torch.zeros(of.channels), torch.ones(of.channels))

    def keep(self, made: RowSource) -> StoredActivation:
        kept = StoredActivation(
            self.stores.make(made.channels, made.height, made.width, self.dtype), made, torch.device("cpu")
        )
        self.count(made)
        return kept

    def overwrite(self, kept: StoredActivation, made: RowSource, *, measured: bool) -> None:
        self.count(made, held=1)

    def count(self, part: RowSource, between: slice | None = None, *, held: int = 0) -> None:
        """A sweep over something; `held` strips of the result are held while the next one is computed."""
        counts = Counter(bottom - top for top, bottom in strip_bounds(part, self.rows, self.height, between))
        for count, times in counts.items():
            operations, values = part.load(count)
            self.operations += operations * times
            values += held * part.channels * count * part.width
            strip_bytes = int(values * self.dtype.itemsize * _SLACK) + _ALWAYS
            self.strip_bytes = max(self.strip_bytes, strip_bytes)
            self.most = max(self.most, self.stores.held + strip_bytes)


def strip_bounds(part: RowSource, rows: int, height: int, between: slice | None) -> list[tuple[int, int]]:
    """Where strips begin and end, all of nearly one height: `rows` where the part is as high as the picture."""
    start, stop = (between.start, between.stop) if between else (0, part.height)
    most = max(rows * part.height // height, 1)
    count = -(-(stop - start) // most)
    edges = [start + (stop - start) * number // count for number in range(count + 1)]
    return list(pairwise(edges))


class RunningMoments:
    """Mean and variance of every channel over strips that come one by one, merged in float64 (Chan et al. 1983)."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)  # of the distances to the mean, summed
        self.dtype = torch.float32

    def add(self, strip: Tensor) -> None:
        """(1, channels, h, W), in any precision."""
        self.dtype = torch.promote_types(strip.dtype, torch.float32)
        pixels = strip[0].permute(1, 2, 0).flatten(0, 1)  # (h * W, channels)
        for some in torch.split(pixels, max(_AT_ONCE // self.mean.numel(), 1)):
            values = some.to(self.dtype)
            mean = values.mean(0)
            squares = (values - mean).square_().sum(0)
            self._merge(len(some), mean.cpu().double(), squares.cpu().double())

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        distance = mean - self.mean
        self.mean = self.mean + distance * (count / total)
        self.squares = self.squares + squares + distance.square() * (self.count * count / total)
        self.count = total

    def statistics(self, device: torch.device) -> NormStatistics:
        """Of all strips so far, in the precision of the norm's arithmetic."""
        variance = self.squares / self.count
        return NormStatistics(self.mean.to(self.dtype).to(device), variance.to(self.dtype).to(device))
