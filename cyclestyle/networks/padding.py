"""Padding: inside the networks, and around pictures whose size a network cannot take as it is."""

from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Padded(NamedTuple):
    """A padded picture, and the index that takes the original's place out of anything of the padded size."""

    picture: Tensor
    crop: tuple[EllipsisType, slice, slice]


def pad_to_multiple(x: Tensor, multiple: int, *, minimum: int) -> Padded:
    """Pad (N, C, H, W) until H and W are multiples of `multiple` and at least `minimum`, itself such a multiple.

    The margins are shared between both sides, the odd pixel going right or below. They are reflections where the side
    is long enough for that, else repetitions of the edge. What fits already comes back as it is: the same tensor.
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
    """`nn.ReflectionPad2d` for training: also deterministic on CUDA, and in the precision that its input has.

    Under `torch.use_deterministic_algorithms` PyTorch refuses the backward pass of its own kernel on CUDA, so the same
    values are gathered by index; everywhere else it is PyTorch's module, which is faster and exports to ONNX as a
    single node. Autocast on CPUs would compute it in float32 and keep that copy for the backward pass: it is left out,
    as padding only moves values.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  PyTorch's name for it
        if input.is_cuda and torch.are_deterministic_algorithms_enabled():
            return reflect_by_index(input, self.padding)
        if input.is_cpu and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input)
        return super().forward(input)


def reflect_by_index(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """`F.pad(x, padding, mode="reflect")` for (N, C, H, W), as a gather; padding is (left, right, top, bottom)."""
    left, right, top, bottom = padding
    height, width = x.shape[-2:]
    rows = _positions(height, top, bottom, device=x.device)
    columns = _positions(width, left, right, device=x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def repeat_edges(x: Tensor, margin: int) -> Tensor:
    """`F.pad(x, 4 * [margin], mode="replicate")` for (N, C, H, W), as a gather: deterministic on CUDA as well."""
    rows, columns = (torch.arange(-margin, side + margin, device=x.device).clamp(0, side - 1) for side in x.shape[-2:])
    return x.index_select(-2, rows).index_select(-1, columns)


def _margins(size: int, multiple: int, minimum: int) -> tuple[int, int]:
    missing = max(minimum, -(-size // multiple) * multiple) - size
    return missing // 2, missing - missing // 2


def _positions(size: int, before: int, after: int, *, device: torch.device) -> Tensor:
    """Which of `size` pixels stands at each place of the padded side: mirrored at the edges, else the nearest one."""
    positions = torch.arange(-before, size + after, device=device)
    if max(before, after) < size:
        last = size - 1
        return last - (last - positions.abs()).abs()
    return positions.clamp(0, size - 1)
