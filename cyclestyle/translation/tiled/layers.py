"""Layers that compute any full-width strip of their output from only the input rows that affect this strip."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  PyTorch's own name for it
from torch import Tensor, nn

from cyclestyle.networks.norm import InstanceNorm
from cyclestyle.networks.padding import ReflectionPad, pad_to_multiple


class Cost(NamedTuple):
    """Work and memory needed to compute some rows of an activation from the image or from stored activations."""

    operations: float  # number of multiplications, for progress reports
    values: int  # peak count of numbers in memory, including the result


class RowSource(Protocol):
    """An activation of the whole image that returns its rows on request, as a tensor (1, channels, count, width)."""

    channels: int
    height: int  # number of rows of the whole image at this layer; `width` likewise
    width: int
    owned: bool  # whether the caller may overwrite the returned rows

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return the rows from `top` (inclusive) to `bottom` (exclusive), in channels-last layout."""

    def cost(self, count: int) -> Cost:
        """Return the cost of a strip of `count` rows that touches neither the top nor the bottom of the image."""


class NormStatistics(NamedTuple):
    """Mean and variance of each channel over the whole image, two tensors of shape (channels,)."""

    mean: Tensor
    variance: Tensor  # biased, as in instance norm


class StatisticsSource(Protocol):
    """Object that supplies instance-norm layers with the statistics of their input over the whole image."""

    def statistics(self, source: RowSource, layer: nn.InstanceNorm2d) -> NormStatistics: ...


class PaddedImage:
    """The input image with the padding that the networks apply to it; strips are padded when they are requested.

    Args:
        image: (1, C, H, W) on any device; an image on the device `meta` has a size but no values.
        device: device of the returned rows.
        multiple: the padded height and width are multiples of this number of px, see `pad_to_multiple`.
        minimum: the padded height and width are at least this number of px, see `pad_to_multiple`.
    """

    owned = True

    def __init__(self, image: Tensor, *, device: torch.device, multiple: int, minimum: int) -> None:
        self.image, self.device = image, device
        self.channels, height, width = image.shape[1:]
        # Padding the indices of the rows and columns gives the source of each padded row and column.
        rows, columns = torch.arange(height).reshape(1, 1, -1, 1), torch.arange(width).reshape(1, 1, 1, -1)
        down = pad_to_multiple(rows, multiple, minimum=minimum)
        across = pad_to_multiple(columns, multiple, minimum=minimum)
        self._rows, self._columns = down.image[0, 0, :, 0], across.image[0, 0, 0]
        self.height, self.width = len(self._rows), len(self._columns)
        self.crop_rows: slice = down.crop[1]
        self.crop_columns: slice = across.crop[2]

    def rows(self, top: int, bottom: int) -> Tensor:
        strip = self.image.index_select(2, self._rows[top:bottom])
        if self.width != self.image.shape[3]:
            strip = strip.index_select(3, self._columns)
        return strip.to(self.device).contiguous(memory_format=torch.channels_last)

    def cost(self, count: int) -> Cost:
        return Cost(0, 2 * _count_values(self, count))


class ReflectPad:
    """Reflection padding by `margin` px on all sides.

    Callers must request at least 2 * margin + 1 rows at a time, which is the height of the kernel of the convolution
    that follows the padding.
    """

    owned = True

    def __init__(self, source: RowSource, margin: int) -> None:
        self.source, self.margin, self.channels = source, margin, source.channels
        self.height, self.width = source.height + 2 * margin, source.width + 2 * margin

    def rows(self, top: int, bottom: int) -> Tensor:
        first, end = max(top - self.margin, 0), min(bottom - self.margin, self.source.height)
        inside = self.source.rows(first, end)
        start = first + self.margin - top  # index of the first inner row within the padded strip
        count, width, margin = end - first, self.source.width, self.margin

        # `F.pad` would convert bf16 to float32 under autocast.
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

    def cost(self, count: int) -> Cost:
        return _cost_from(self, count, self.source, count)


class Convolution:
    """A convolution; if the layer has padding, zeros surround the whole image, not each strip."""

    owned = True

    def __init__(self, source: RowSource, layer: nn.Conv2d) -> None:
        self.source, self.layer, self.channels = source, layer, layer.out_channels
        self.kernel, self.stride, self.margin = (
            _single_size(layer.kernel_size),
            _single_size(layer.stride),
            _single_size(layer.padding),
        )
        self.height, self.width = (
            (size + 2 * self.margin - self.kernel) // self.stride + 1 for size in (source.height, source.width)
        )

    def rows(self, top: int, bottom: int) -> Tensor:
        first = top * self.stride - self.margin
        end = (bottom - 1) * self.stride - self.margin + self.kernel
        above, under = max(-first, 0), max(end - self.source.height, 0)
        strip = self.source.rows(first + above, end - under)
        if above or under:
            strip = F.pad(strip, (0, 0, above, under))
        return F.conv2d(strip, self.layer.weight, self.layer.bias, stride=self.stride, padding=(0, self.margin))

    def cost(self, count: int) -> Cost:
        cost = _cost_from(self, count, self.source, (count - 1) * self.stride + self.kernel)
        return Cost(cost.operations + _count_values(self, count) * self.layer.weight[0].numel(), cost.values)


class TransposedConvolution:
    """A transposed convolution; an output row depends only on the few input rows whose kernel windows contain it."""

    owned = True

    def __init__(self, source: RowSource, layer: nn.ConvTranspose2d) -> None:
        self.source, self.layer, self.channels = source, layer, layer.out_channels
        self.kernel, self.stride, self.margin = (
            _single_size(layer.kernel_size),
            _single_size(layer.stride),
            _single_size(layer.padding),
        )
        self.extra = _single_size(layer.output_padding)
        self.height, self.width = (
            (size - 1) * self.stride - 2 * self.margin + self.kernel + self.extra
            for size in (source.height, source.width)
        )

    def rows(self, top: int, bottom: int) -> Tensor:
        # Input row i contributes to `kernel` output rows, the first at i * stride - margin.
        first = max(-((self.kernel - 1 - self.margin - top) // self.stride), 0)
        end = min((bottom - 1 + self.margin) // self.stride + 1, self.source.height)
        output = F.conv_transpose2d(
            self.source.rows(first, end),
            self.layer.weight,
            self.layer.bias,
            stride=self.stride,
            padding=(0, self.margin),
            output_padding=(0, self.extra),
        )
        start = top + self.margin - first * self.stride
        return output[:, :, start : start + bottom - top]

    def cost(self, count: int) -> Cost:
        needed = (count + self.kernel - 2) // self.stride + 1
        reached = (needed - 1) * self.stride + self.kernel
        cost = _cost_from(self, reached, self.source, needed)
        operations_per_value = self.layer.weight[:, 0].numel() / self.stride**2
        return Cost(cost.operations + _count_values(self, reached) * operations_per_value, cost.values)


class NearestUpsample:
    """Nearest-neighbour upsampling: every pixel becomes a square of `times` x `times` equal pixels."""

    owned = True

    def __init__(self, source: RowSource, times: int) -> None:
        self.source, self.times, self.channels = source, times, source.channels
        self.height, self.width = source.height * times, source.width * times

    def rows(self, top: int, bottom: int) -> Tensor:
        first, end = top // self.times, (bottom - 1) // self.times + 1
        enlarged = F.interpolate(self.source.rows(first, end), scale_factor=self.times, mode="nearest")
        return enlarged[:, :, top - first * self.times : bottom - first * self.times]

    def cost(self, count: int) -> Cost:
        return _cost_from(self, count, self.source, count // self.times + 2)


class Normalize:
    """Instance norm of a strip with the statistics of the whole image."""

    owned = True

    def __init__(self, source: RowSource, layer: nn.InstanceNorm2d, statistics: NormStatistics) -> None:
        self.source, self.layer, self.statistics = source, layer, statistics
        self.channels, self.height, self.width = source.channels, source.height, source.width

    def rows(self, top: int, bottom: int) -> Tensor:
        layer, (mean, variance) = self.layer, self.statistics
        return F.batch_norm(self.source.rows(top, bottom), mean, variance, layer.weight, layer.bias, eps=layer.eps)

    def cost(self, count: int) -> Cost:
        return _cost_from(self, count, self.source, count)


class Pointwise:
    """Elementwise function of an activation.

    Args:
        source: the activation.
        function: overwrites a strip in place and returns it.
    """

    owned = True

    def __init__(self, source: RowSource, function: Callable[[Tensor], Tensor]) -> None:
        self.source, self.function = source, function
        self.channels, self.height, self.width = source.channels, source.height, source.width

    def rows(self, top: int, bottom: int) -> Tensor:
        strip = self.source.rows(top, bottom)
        return self.function(strip if self.source.owned else strip.clone())

    def cost(self, count: int) -> Cost:
        return self.source.cost(count) if self.source.owned else _cost_from(self, count, self.source, count)


class Add:
    """Sum of two activations of the same size.

    The sum overwrites the rows that `second` returns. Therefore `second.owned` must be true: it states that callers may
    overwrite these rows.
    """

    owned = True

    def __init__(self, first: RowSource, second: RowSource) -> None:
        assert second.owned
        self.first, self.second = first, second
        self.channels, self.height, self.width = first.channels, first.height, first.width

    def rows(self, top: int, bottom: int) -> Tensor:
        return self.second.rows(top, bottom).add_(self.first.rows(top, bottom))

    def cost(self, count: int) -> Cost:
        return _sequential_cost(self.second.cost(count), _count_values(self, count), self.first.cost(count))


class Concat:
    """Concatenation, along the channels, of two sources of the same height and width."""

    owned = True

    def __init__(self, first: RowSource, second: RowSource) -> None:
        self.first, self.second, self.channels = first, second, first.channels + second.channels
        self.height, self.width = first.height, first.width

    def rows(self, top: int, bottom: int) -> Tensor:
        return torch.cat([self.first.rows(top, bottom), self.second.rows(top, bottom)], dim=1)

    def cost(self, count: int) -> Cost:
        both = _sequential_cost(self.first.cost(count), _count_values(self.first, count), self.second.cost(count))
        return Cost(both.operations, max(both.values, 2 * _count_values(self, count)))


def apply(layers: nn.Module, source: RowSource, norm_source: StatisticsSource) -> RowSource:
    """Return the output of a layer, or of a sequence of layers, for the input `source`.

    Layers are applied in evaluation mode, in which dropout does nothing. Instance-norm layers get their statistics from
    `norm_source`, which may compute all rows of the layer's input to measure them.

    Raises:
        KeyError: the type of a layer is not supported.
    """
    # Base classes are searched too: networks in training contain subclasses of convolutions with another backward pass.
    kind = next((kind for kind in type(layers).__mro__ if kind in _CONVERTERS), type(layers))
    return _CONVERTERS[kind](layers, source, norm_source)


def _sequence(layers: nn.Sequential, source: RowSource, norm_source: StatisticsSource) -> RowSource:
    for layer in layers:
        source = apply(layer, source, norm_source)
    return source


def _normalize(layer: nn.InstanceNorm2d, source: RowSource, norm_source: StatisticsSource) -> RowSource:
    assert not layer.track_running_stats
    return Normalize(source, layer, norm_source.statistics(source, layer))


_CONVERTERS: dict[type[nn.Module], Callable[[Any, Any, Any], RowSource]] = {
    nn.Sequential: _sequence,
    ReflectionPad: lambda layer, source, _: ReflectPad(source, layer.padding[0]),
    nn.Conv2d: lambda layer, source, _: Convolution(source, layer),
    nn.ConvTranspose2d: lambda layer, source, _: TransposedConvolution(source, layer),
    nn.Upsample: lambda layer, source, _: NearestUpsample(source, int(layer.scale_factor)),
    InstanceNorm: _normalize,
    nn.Dropout: lambda layer, source, _: source,
    nn.ReLU: lambda layer, source, _: Pointwise(source, torch.relu_),
    nn.LeakyReLU: lambda layer, source, _: Pointwise(source, lambda strip: F.leaky_relu_(strip, layer.negative_slope)),
    nn.Tanh: lambda layer, source, _: Pointwise(source, torch.tanh_),
}


def _count_values(source: RowSource, count: int) -> int:
    """Return how many numbers `count` rows of `source` contain."""
    return source.channels * min(count, source.height) * source.width


def _cost_from(layer: RowSource, count: int, source: RowSource, needed: int) -> Cost:
    """Return the cost of computing `count` output rows of `layer`, without the multiplications of `layer` itself.

    The cost includes computing `needed` rows of `source`, the input of `layer`, and holding both input and output in
    memory.
    """
    operations, values = source.cost(min(needed, source.height))
    return Cost(operations, max(values, _count_values(source, needed) + _count_values(layer, count)))


def _sequential_cost(first: Cost, held: int, second: Cost) -> Cost:
    """Return the multiplications and peak memory of two results; the first is in memory while the second is computed.

    Args:
        first: cost of the first result.
        held: count of numbers in the first result.
        second: cost of the second result.
    """
    return Cost(first.operations + second.operations, max(first.values, held + second.values))


def _single_size(sizes: Any) -> int:
    """Return the common value of a pair (vertical, horizontal), such as a stride; both values must be equal."""
    size, other = sizes
    assert size == other
    return int(size)
