"""Layers that compute any rows of their result from no more than the rows that these need: full-width strips."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  PyTorch's own name for it
from torch import Tensor, nn

from cyclestyle.networks.norm import InstanceNorm
from cyclestyle.networks.padding import ReflectionPad, pad_to_multiple


class Cost(NamedTuple):
    """What it takes to compute some rows, from the picture or from what was kept."""

    operations: float  # multiplications, to tell how far the work is
    values: int  # the most numbers that are held at one time, the result among them


class RowSource(Protocol):
    """What has rows (1, channels, count, width) that can be asked for, a strip at a time."""

    channels: int
    height: int  # px, as of `width`: of the whole
    width: int
    owned: bool  # rows that were asked for belong to who asked, and may be overwritten

    def rows(self, top: int, bottom: int) -> Tensor:
        """Those from `top` to before `bottom`, in channels last."""

    def load(self, count: int) -> Cost:
        """Of asking for so many rows away from the edges."""


class NormStatistics(NamedTuple):
    """Of every channel, over the whole picture, (channels,)."""

    mean: Tensor
    variance: Tensor  # biased, as instance norm takes it


class StatisticsSource(Protocol):
    """What knows the statistics of the whole of something."""

    def statistics(self, of: RowSource, layer: nn.InstanceNorm2d) -> NormStatistics: ...


class Picture:
    """The picture itself, padded as the networks pad it, a strip at a time.

    Args:
        picture: (1, C, H, W) on any device; on `meta` it is a picture of that size only.
        device: where its rows are wanted.
        multiple: see `pad_to_multiple`, as of `minimum`.
    """

    owned = True

    def __init__(self, picture: Tensor, *, device: torch.device, multiple: int, minimum: int) -> None:
        self.picture, self.device = picture, device
        self.channels, height, width = picture.shape[1:]
        # Padding the numbers of the rows and columns says where each row and column comes from.
        rows, columns = torch.arange(height).reshape(1, 1, -1, 1), torch.arange(width).reshape(1, 1, 1, -1)
        down = pad_to_multiple(rows, multiple, minimum=minimum)
        across = pad_to_multiple(columns, multiple, minimum=minimum)
        self._rows, self._columns = down.picture[0, 0, :, 0], across.picture[0, 0, 0]
        self.height, self.width = len(self._rows), len(self._columns)
        self.crop_rows: slice = down.crop[1]
        self.crop_columns: slice = across.crop[2]

    def rows(self, top: int, bottom: int) -> Tensor:
        strip = self.picture.index_select(2, self._rows[top:bottom])
        if self.width != self.picture.shape[3]:
            strip = strip.index_select(3, self._columns)
        return strip.to(self.device).contiguous(memory_format=torch.channels_last)

    def load(self, count: int) -> Cost:
        return Cost(0, 2 * _values(self, count))


class ReflectPad:
    """Reflection padding; rows are asked for by 2 * margin + 1 or more, as the convolution behind it does."""

    owned = True

    def __init__(self, below: RowSource, margin: int) -> None:
        self.below, self.margin, self.channels = below, margin, below.channels
        self.height, self.width = below.height + 2 * margin, below.width + 2 * margin

    def rows(self, top: int, bottom: int) -> Tensor:
        first, end = max(top - self.margin, 0), min(bottom - self.margin, self.below.height)
        inside = self.below.rows(first, end)
        start = first + self.margin - top  # of them in what is asked for
        count, width, margin = end - first, self.below.width, self.margin

        # `F.pad` would do, but makes float32 of bf16 under autocast.
        padded = torch.empty(
            (1, self.channels, bottom - top, self.width),
            dtype=inside.dtype, device=inside.device, memory_format=torch.channels_last,
        )  # fmt: skip
        middle = padded[..., margin : margin + width]
        middle[:, :, start : start + count] = inside
        for row in range(start):
            middle[:, :, row] = inside[:, :, start - row]
        for row in range(start + count, bottom - top):
            middle[:, :, row] = inside[:, :, 2 * (count - 1) + start - row]
        padded[..., :margin] = padded[..., margin + 1 : 2 * margin + 1].flip(-1)
        padded[..., margin + width :] = padded[..., width - 1 : width + margin - 1].flip(-1)
        return padded

    def load(self, count: int) -> Cost:
        return _behind(self, count, self.below, count)


class Convolution:
    """A convolution, with zeros around the picture if the layer has padding."""

    owned = True

    def __init__(self, below: RowSource, layer: nn.Conv2d) -> None:
        self.below, self.layer, self.channels = below, layer, layer.out_channels
        self.kernel, self.stride, self.margin = _plain(layer.kernel_size), _plain(layer.stride), _plain(layer.padding)
        self.height, self.width = (
            (size + 2 * self.margin - self.kernel) // self.stride + 1 for size in (below.height, below.width)
        )

    def rows(self, top: int, bottom: int) -> Tensor:
        first = top * self.stride - self.margin
        end = (bottom - 1) * self.stride - self.margin + self.kernel
        above, under = max(-first, 0), max(end - self.below.height, 0)
        strip = self.below.rows(first + above, end - under)
        if above or under:
            strip = F.pad(strip, (0, 0, above, under))
        return F.conv2d(strip, self.layer.weight, self.layer.bias, stride=self.stride, padding=(0, self.margin))

    def load(self, count: int) -> Cost:
        load = _behind(self, count, self.below, (count - 1) * self.stride + self.kernel)
        return Cost(load.operations + _values(self, count) * self.layer.weight[0].numel(), load.values)


class TransposedConvolution:
    """A transposed convolution: every row comes from the few rows below whose products reach it."""

    owned = True

    def __init__(self, below: RowSource, layer: nn.ConvTranspose2d) -> None:
        self.below, self.layer, self.channels = below, layer, layer.out_channels
        self.kernel, self.stride, self.margin = _plain(layer.kernel_size), _plain(layer.stride), _plain(layer.padding)
        self.extra = _plain(layer.output_padding)
        self.height, self.width = (
            (size - 1) * self.stride - 2 * self.margin + self.kernel + self.extra
            for size in (below.height, below.width)
        )

    def rows(self, top: int, bottom: int) -> Tensor:
        # Row i below goes to the rows from i * stride - margin on, `kernel` of them.
        first = max(-((self.kernel - 1 - self.margin - top) // self.stride), 0)
        end = min((bottom - 1 + self.margin) // self.stride + 1, self.below.height)
        reached = F.conv_transpose2d(
            self.below.rows(first, end),
            self.layer.weight,
            self.layer.bias,
            stride=self.stride,
            padding=(0, self.margin),
            output_padding=(0, self.extra),
        )
        start = top + self.margin - first * self.stride
        return reached[:, :, start : start + bottom - top]

    def load(self, count: int) -> Cost:
        needed = (count + self.kernel - 2) // self.stride + 1
        reached = (needed - 1) * self.stride + self.kernel
        load = _behind(self, reached, self.below, needed)
        each = self.layer.weight[:, 0].numel() / self.stride**2
        return Cost(load.operations + _values(self, reached) * each, load.values)


class NearestUpsample:
    """Every pixel as a square of pixels: nearest neighbour."""

    owned = True

    def __init__(self, below: RowSource, times: int) -> None:
        self.below, self.times, self.channels = below, times, below.channels
        self.height, self.width = below.height * times, below.width * times

    def rows(self, top: int, bottom: int) -> Tensor:
        first, end = top // self.times, (bottom - 1) // self.times + 1
        enlarged = F.interpolate(self.below.rows(first, end), scale_factor=self.times, mode="nearest")
        return enlarged[:, :, top - first * self.times : bottom - first * self.times]

    def load(self, count: int) -> Cost:
        return _behind(self, count, self.below, count // self.times + 2)


class Normalize:
    """Instance norm with the statistics of the whole picture."""

    owned = True

    def __init__(self, below: RowSource, layer: nn.InstanceNorm2d, statistics: NormStatistics) -> None:
        self.below, self.layer, self.statistics = below, layer, statistics
        self.channels, self.height, self.width = below.channels, below.height, below.width

    def rows(self, top: int, bottom: int) -> Tensor:
        layer, (mean, variance) = self.layer, self.statistics
        return F.batch_norm(self.below.rows(top, bottom), mean, variance, layer.weight, layer.bias, eps=layer.eps)

    def load(self, count: int) -> Cost:
        return _behind(self, count, self.below, count)


class Pointwise:
    """A function of every number by itself.

    Args:
        function: overwrites a strip and returns it.
    """

    owned = True

    def __init__(self, below: RowSource, function: Callable[[Tensor], Tensor]) -> None:
        self.below, self.function = below, function
        self.channels, self.height, self.width = below.channels, below.height, below.width

    def rows(self, top: int, bottom: int) -> Tensor:
        strip = self.below.rows(top, bottom)
        return self.function(strip if self.below.owned else strip.clone())

    def load(self, count: int) -> Cost:
        return self.below.load(count) if self.below.owned else _behind(self, count, self.below, count)


class Add:
    """Two of one size, added; the second one's rows must be owned and are overwritten."""

    owned = True

    def __init__(self, first: RowSource, second: RowSource) -> None:
        assert second.owned
        self.first, self.second = first, second
        self.channels, self.height, self.width = first.channels, first.height, first.width

    def rows(self, top: int, bottom: int) -> Tensor:
        return self.second.rows(top, bottom).add_(self.first.rows(top, bottom))

    def load(self, count: int) -> Cost:
        return _one_after_the_other(self.second.load(count), _values(self, count), self.first.load(count))


class Concat:
    """The channels of two of one size, one after the other."""

    owned = True

    def __init__(self, first: RowSource, second: RowSource) -> None:
        self.first, self.second, self.channels = first, second, first.channels + second.channels
        self.height, self.width = first.height, first.width

    def rows(self, top: int, bottom: int) -> Tensor:
        return torch.cat([self.first.rows(top, bottom), self.second.rows(top, bottom)], dim=1)

    def load(self, count: int) -> Cost:
        both = _one_after_the_other(self.first.load(count), _values(self.first, count), self.second.load(count))
        return Cost(both.operations, max(both.values, 2 * _values(self, count)))


def apply(layers: nn.Module, below: RowSource, measures: StatisticsSource) -> RowSource:
    """What a layer, or a sequence of them, makes of `below`, in evaluation: dropout does nothing.

    Norms need statistics, and building them may mean to compute all that is below.

    Raises:
        KeyError: a layer of a kind that is not known here.
    """
    return _PARTS[type(layers)](layers, below, measures)


def _sequence(layers: nn.Sequential, below: RowSource, measures: StatisticsSource) -> RowSource:
    for layer in layers:
        below = apply(layer, below, measures)
    return below


def _normalised(layer: nn.InstanceNorm2d, below: RowSource, measures: StatisticsSource) -> RowSource:
    assert not layer.track_running_stats
    return Normalize(below, layer, measures.statistics(below, layer))


_PARTS: dict[type[nn.Module], Callable[[Any, Any, Any], RowSource]] = {
    nn.Sequential: _sequence,
    ReflectionPad: lambda layer, below, _: ReflectPad(below, layer.padding[0]),
    nn.Conv2d: lambda layer, below, _: Convolution(below, layer),
    nn.ConvTranspose2d: lambda layer, below, _: TransposedConvolution(below, layer),
    nn.Upsample: lambda layer, below, _: NearestUpsample(below, int(layer.scale_factor)),
    InstanceNorm: _normalised,
    nn.Dropout: lambda layer, below, _: below,
    nn.ReLU: lambda layer, below, _: Pointwise(below, torch.relu_),
    nn.LeakyReLU: lambda layer, below, _: Pointwise(below, lambda strip: F.leaky_relu_(strip, layer.negative_slope)),
    nn.Tanh: lambda layer, below, _: Pointwise(below, torch.tanh_),
}


def _values(of: RowSource, count: int) -> int:
    """Numbers in so many of its rows."""
    return of.channels * min(count, of.height) * of.width


def _behind(part: RowSource, count: int, below: RowSource, needed: int) -> Cost:
    """Of rows that are computed from others, which are held until then; the part's own arithmetic is not in it."""
    operations, values = below.load(min(needed, below.height))
    return Cost(operations, max(values, _values(below, needed) + _values(part, count)))


def _one_after_the_other(first: Cost, held: int, second: Cost) -> Cost:
    """Of two results, the first of which, `held` numbers, is held while the second is computed."""
    return Cost(first.operations + second.operations, max(first.values, held + second.values))


def _plain(sizes: Any) -> int:
    """A layer's size, the same in both directions."""
    size, other = sizes
    assert size == other
    return int(size)
