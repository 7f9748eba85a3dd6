"""Padding of feature maps inside the networks, and of input images whose size does not fit a network."""

from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Padded(NamedTuple):
    """A padded image and an index: for a tensor `x` of the padded size, `x[crop]` is the area of the original image."""

    image: Tensor
    crop: tuple[EllipsisType, slice, slice]


def pad_to_multiple(x: Tensor, multiple: int, *, minimum: int) -> Padded:
    """Pad (N, C, H, W) until H and W are multiples of `multiple` and at least `minimum`.

    `minimum` must be a multiple of `multiple`.

    The added pixels are split evenly between opposite sides; an odd pixel is added at the right or bottom. They are
    filled by reflection, or by repeating the edge pixels along an axis that is too short for reflection. An image that
    needs no padding is returned without a copy.
    """
    height, width = x.shape[-2:]
    top, bottom = _margins(height, multiple, minimum)
    left, right = _margins(width, multiple, minimum)

    if top or bottom:
        x = x.index_select(-2, _positions(height, top, bottom, device=x.device))
    if left or right:
        x = x.index_select(-1, _positions(width, left, right, device=x.device))

    return Padded(x, (..., slice(top, top + height), slice(left, left + width)))


class ReflectionPad(nn.ReflectionPad2d):
    """`nn.ReflectionPad2d` that can be deterministic on CUDA, and that keeps the dtype of its input under autocast.

    Under `torch.use_deterministic_algorithms`, the backward pass of PyTorch's CUDA kernel raises an error; in that
    case, the same values are gathered by index. In all other cases PyTorch's module is used, which is faster and
    exports to ONNX as a single node. On CPUs, autocast would convert the input to float32 and store this copy for the
    backward pass. Padding only moves values and needs no such precision, so autocast is disabled for it.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name in PyTorch
        if input.is_cuda and torch.are_deterministic_algorithms_enabled():
            return reflect_by_index(input, self.padding)
        if input.is_cpu and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input)
        return super().forward(input)


def reflect_by_index(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Return `F.pad(x, padding, mode="reflect")` for `x` (N, C, H, W), by indexing; deterministic on CUDA.

    `padding` is (left, right, top, bottom) in px.
    """
    left, right, top, bottom = padding
    height, width = x.shape[-2:]
    rows = _positions(height, top, bottom, device=x.device)
    columns = _positions(width, left, right, device=x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def repeat_edges(x: Tensor, margin: int) -> Tensor:
    """Return `F.pad(x, 4 * [margin], mode="replicate")` for `x` (N, C, H, W), by indexing; deterministic on CUDA."""
    rows, columns = (torch.arange(-margin, side + margin, device=x.device).clamp(0, side - 1) for side in x.shape[-2:])
    return x.index_select(-2, rows).index_select(-1, columns)


def _margins(size: int, multiple: int, minimum: int) -> tuple[int, int]:
    missing = max(minimum, -(-size // multiple) * multiple) - size
    return missing // 2, missing - missing // 2


def _positions(size: int, before: int, after: int, *, device: torch.device) -> Tensor:
    """Return, for each position along a padded axis, the index of the pixel to copy there.

    The axis has `size` px before padding; `before` and `after` px are added at its ends. An added pixel is a
    copy of the mirrored pixel, or of the edge pixel if the axis is too short for reflection.
    """
    positions = torch.arange(-before, size + after, device=device)
    if max(before, after) < size:
        last = size - 1
        return last - (last - positions.abs()).abs()
    return positions.clamp(0, size - 1)
