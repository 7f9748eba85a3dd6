"""Passes over a whole image, strip by strip, that measure statistics, store activations, or only estimate the cost."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from cyclestyle.translation.tiled.activation_store import ActivationStore, ActivationStores
from cyclestyle.translation.tiled.layers import Cost, NormStatistics, RowSource

_FIXED_BYTES = 200 * 10**6  # measured overhead of PyTorch and the allocator, in bytes
_STRIP_OVERHEAD = 1.3  # measured factor on the memory of strips
_CHUNK = 2**20  # count of numbers measured at a time: this many numbers take little memory, and fit into the cache


class StoredActivation:
    """Row source that reads an activation of the whole image from a store.

    Args:
        store: store that holds the activation.
        like: row source with the number of channels, height and width of the stored activation.
        device: device of the returned rows.

    Attributes:
        statistics: statistics of the values that the store holds; None if they were not measured.
    """

    def __init__(self, store: ActivationStore, like: RowSource, device: torch.device) -> None:
        self.store, self.device = store, device
        self.channels, self.height, self.width = like.channels, like.height, like.width
        self.owned = not store.returns_views or device.type != "cpu"
        self.statistics: NormStatistics | None = None

    def rows(self, top: int, bottom: int) -> Tensor:
        return self.store.read(top, bottom).to(self.device)

    def cost(self, count: int) -> Cost:
        return Cost(0, self.channels * min(count, self.height) * self.width)


class Pass(Protocol):
    """Operations on activations of the whole image; tiling plans are composed of these operations.

    `Passes` performs the operations, `CostEstimate` only estimates their cost.
    """

    def statistics(self, source: RowSource, layer: nn.InstanceNorm2d) -> NormStatistics:
        """Return the statistics of `source`, the input of the norm layer `layer`; measure them if they are unknown."""

    def store(self, source: RowSource) -> StoredActivation:
        """Compute all rows of `source`, write them to a new store, and measure their statistics.

        Return a row source that reads the store, with these statistics.
        """

    def overwrite(self, stored: StoredActivation, source: RowSource, *, measured: bool) -> None:
        """Replace the rows of `stored` by those of `source`, computed strip by strip from top to bottom.

        `source` itself may be computed from `stored`. Each strip is written one strip late, so the computation of a
        strip can still read the old rows of the previous strip, and of everything below it. It cannot read the old rows
        of earlier strips.

        Args:
            measured: whether to measure the statistics of the new values; if not, `stored.statistics` becomes None.
        """


class Passes:
    """Implementation of `Pass` that computes a network's activations for one image, strip by strip.

    Args:
        stores: creates the memory or files that hold activations between two passes over the image.
        device: device that computes the strips.
        rows: height of a strip, in px of the image.
        height: height of the padded image, in px.
        advance: called after every strip with the number of multiplications for that strip.
        observe: called with every norm layer and the statistics of its input.
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

    def statistics(self, source: RowSource, layer: nn.InstanceNorm2d) -> NormStatistics:
        statistics = source.statistics if isinstance(source, StoredActivation) else None
        if statistics is None:
            moments = RunningMoments(source.channels)
            self.for_each_strip(source, lambda top, strip: moments.add(strip))
            statistics = moments.statistics(self.device)
        self.observe(layer, statistics)
        return statistics

    def store(self, source: RowSource) -> StoredActivation:
        stored: StoredActivation | None = None
        moments = RunningMoments(source.channels)

        def on_strip(top: int, strip: Tensor) -> None:
            nonlocal stored
            moments.add(strip)
            if stored is None:
                stored = StoredActivation(
                    self.stores.make(source.channels, source.height, source.width, strip.dtype), source, self.device
                )
            stored.store.write(top, strip)

        self.for_each_strip(source, on_strip)
        assert stored is not None
        stored.statistics = moments.statistics(self.device)
        return stored

    def overwrite(self, stored: StoredActivation, source: RowSource, *, measured: bool) -> None:
        moments = RunningMoments(source.channels)
        pending: tuple[int, Tensor] | None = None

        def on_strip(top: int, strip: Tensor) -> None:
            nonlocal pending
            if measured:
                moments.add(strip)
            if pending:  # written one strip late, since this strip may still need the old values of those rows
                stored.store.write(*pending)
            pending = top, strip

        self.for_each_strip(source, on_strip)
        if pending:
            stored.store.write(*pending)
        stored.statistics = moments.statistics(self.device) if measured else None

    def for_each_strip(
        self, source: RowSource, on_strip: Callable[[int, Tensor], object], between: slice | None = None
    ) -> None:
        """Compute `source` strip by strip, and call `on_strip(top, strip)` for each strip.

        `top` is the index of the strip's first row. With `between`, only the rows in this slice are computed. A
        callback is used instead of an iterator, since a loop would keep each strip in memory while the next strip is
        computed.
        """
        for top, bottom in strip_bounds(source, self.rows, self.height, between):
            on_strip(top, source.rows(top, bottom))
            self.advance(source.cost(bottom - top).operations)


class CostEstimate:
    """Implementation of `Pass` that computes no activations, and only estimates the work and memory of computing them.

    Args:
        stores: creates the stores, which are on the device `meta`.
        dtype: precision of the strips and stores.
        rows: height of a strip, in px of the image.
        height: height of the padded image, in px.
    """

    def __init__(self, stores: ActivationStores, *, dtype: torch.dtype, rows: int, height: int) -> None:
        self.stores, self.dtype, self.rows, self.height = stores, dtype, rows, height
        self.operations = 0.0
        self.strip_bytes = 0  # peak of the strips alone
        self.peak_bytes = 0  # peak of stores and strips together

    def statistics(self, source: RowSource, layer: nn.InstanceNorm2d) -> NormStatistics:
        if not isinstance(source, StoredActivation):
            self.count(source)
        return NormStatistics(torch.zeros(source.channels), torch.ones(source.channels))

    def store(self, source: RowSource) -> StoredActivation:
        stored = StoredActivation(
            self.stores.make(source.channels, source.height, source.width, self.dtype), source, torch.device("cpu")
        )
        self.count(source)
        return stored

    def overwrite(self, stored: StoredActivation, source: RowSource, *, measured: bool) -> None:
        self.count(source, held=1)

    def count(self, source: RowSource, between: slice | None = None, *, held: int = 0) -> None:
        """Add the cost of a pass over the rows of `source`, or over only the rows in the slice `between`.

        Args:
            held: number of computed strips that stay in memory while the next strip is computed.
        """
        counts = Counter(bottom - top for top, bottom in strip_bounds(source, self.rows, self.height, between))
        for count, times in counts.items():
            operations, values = source.cost(count)
            self.operations += operations * times
            values += held * source.channels * count * source.width
            strip_bytes = int(values * self.dtype.itemsize * _STRIP_OVERHEAD) + _FIXED_BYTES
            self.strip_bytes = max(self.strip_bytes, strip_bytes)
            self.peak_bytes = max(self.peak_bytes, self.stores.held + strip_bytes)


def strip_bounds(source: RowSource, rows: int, height: int, between: slice | None) -> list[tuple[int, int]]:
    """Return the first row and the end row (exclusive) of each strip of `source`.

    All strips have nearly the same height.

    Args:
        rows: approximate height of a strip in px of the image. If `source` has a lower resolution than the image, its
            strips have proportionally fewer rows.
        height: height of the padded image, in px.
        between: slice of rows of `source` to divide; by default all rows.
    """
    start, stop = (between.start, between.stop) if between else (0, source.height)
    strip_rows = max(rows * source.height // height, 1)
    count = -(-(stop - start) // strip_rows)
    edges = [start + (stop - start) * number // count for number in range(count + 1)]
    return list(pairwise(edges))


class RunningMoments:
    """Mean and variance of every channel over all strips added so far, merged in float64 (Chan et al. 1983)."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)  # sum of squared distances to the mean
        self.dtype = torch.float32

    def add(self, strip: Tensor) -> None:
        """Add a strip (1, channels, h, W) of any floating-point dtype."""
        self.dtype = torch.promote_types(strip.dtype, torch.float32)
        pixels = strip[0].permute(1, 2, 0).flatten(0, 1)  # (h * W, channels)
        for chunk in torch.split(pixels, max(_CHUNK // self.mean.numel(), 1)):
            values = chunk.to(self.dtype)
            mean = values.mean(0)
            squares = (values - mean).square_().sum(0)
            self._merge(len(chunk), mean.cpu().double(), squares.cpu().double())

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        distance = mean - self.mean
        self.mean = self.mean + distance * (count / total)
        self.squares = self.squares + squares + distance.square() * (self.count * count / total)
        self.count = total

    def statistics(self, device: torch.device) -> NormStatistics:
        """Return the statistics of all strips added so far, on `device`.

        Their dtype is float64 for float64 strips, else float32.
        """
        variance = self.squares / self.count
        return NormStatistics(self.mean.to(self.dtype).to(device), variance.to(self.dtype).to(device))
