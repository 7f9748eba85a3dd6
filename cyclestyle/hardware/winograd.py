"""A 3x3 convolution whose backward pass multiplies 4 times a pixel instead of 9 (Winograd 1980; Lavin, Gray 2016).

Pictures are cut into windows d of 4x4 px, 2 px apart, each of which makes 2x2 px of the result:

    y = A^T [ (G w G^T) * (B^T d B) ] A

with * by elements, summed over the channels (Lavin and Gray 2016, equation 8). Of y's gradient e follow those of the
windows and of the weights, the latter summed over windows:

    B [ (G w G^T) * (A e A^T) ] B^T        G^T [ (A e A^T) * (B^T d B) ] G

So for each of a window's 16 places there is one product of matrices, of windows by channels and of channels by
channels. The matrices' last rows have another sign than in the paper, both, which cancels out and saves work.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from cyclestyle.networks.resnet import ResidualBlock

#     A^T = 1  1  1  0        B^T = 1  0 -1  0        G =  1    0    0
#           0  1 -1  1              0  1  1  0            1/2  1/2  1/2
#                                   0 -1  1  0            1/2 -1/2  1/2
#                                   0 -1  0  1             0    0    1
_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_WINDOWS = 1024  # at a time, so that what belongs together stays in the processor's cache


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution without padding that shares the parameters of another, with Winograd's backward pass.

    Images of an even height and width get their gradients, and the weights theirs, by fewer multiplications, if the
    layer is large enough for that to pay; outputs are PyTorch's own. In bf16 the rounding error of those gradients is
    some 2.4 times that of PyTorch's, which disappears behind the rounding of the outputs (docs/benchmarks.md).

    Args:
        conv: `nn.Conv2d(in_channels, out_channels, 3)`: (N, in_channels, H, W) -> (N, out_channels, H - 2, W - 2).
    """

    winograd_from = 2**18  # channels (the fewer, of both sides) times pixels (of all images)

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, device="meta")
        assert conv.weight.shape == self.weight.shape
        assert conv.bias is not None
        assert (conv.stride, conv.padding, conv.dilation) == (self.stride, self.padding, self.dilation)
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  PyTorch's name for it
        if not (torch.is_grad_enabled() and self._pays(input)):
            return super().forward(input)
        kind = input.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        output: Tensor = _Convolution.apply(input.to(precision), self.weight, self.bias)
        return output

    def _pays(self, x: Tensor) -> bool:
        count, _, height, width = x.shape
        size = min(self.in_channels, self.out_channels) * count * height * width
        # torch.compile makes the backward pass below slower than PyTorch's convolution.
        return size >= self.winograd_from and height % 2 == width % 2 == 0 and not torch.compiler.is_compiling()


def use_winograd(module: nn.Module) -> None:
    """Exchange the convolutions of all residual blocks in a module, in place; parameters and their names stay."""
    for block in module.modules():
        if isinstance(block, ResidualBlock):
            for half in (block.first, block.second):
                assert isinstance(half.conv, nn.Conv2d)
                half.conv = WinogradConv2d(half.conv)


class _Convolution(torch.autograd.Function):
    """`conv2d` in the precision of its pictures (N, I, H, W), with weights (O, I, 3, 3) and biases (O,)."""

    @staticmethod
    def forward(ctx: Any, pictures: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(pictures, weight)
        return conv2d(pictures, weight.to(pictures.dtype), bias.to(pictures.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pictures, weight = ctx.saved_tensors
        of_pictures, of_weight = _gradients(gradient.permute(0, 2, 3, 1), pictures.permute(0, 2, 3, 1), weight)
        return of_pictures.permute(0, 3, 1, 2), of_weight, gradient.sum((0, 2, 3), dtype=weight.dtype)


def _gradients(e: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Those of x (N, H + 2, W + 2, I) and of weight (O, I, 3, 3), where the result's is e (N, H, W, O)."""
    count, height, width, _ = e.shape
    both = torch.kron(_G, _G).to(weight.dtype)  # (16, 9): G for rows and columns
    weights = (both @ weight.reshape(-1, 9).T).to(e.dtype).view(16, *weight.shape[:2])
    of_x, of_weight, products = torch.zeros_like(x), torch.empty_like(weight), None

    rows = 2 * max(1, _WINDOWS // (count * width // 2))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        spread = _transform_gradient(e[:, top:bottom])
        _inverse_input(torch.bmm(spread, weights), of_x[:, top : bottom + 2])
        more = torch.bmm(spread.transpose(1, 2), _transform_input(x[:, top : bottom + 2]))
        products = more if products is None else products.to(weight.dtype).add_(more)

    assert products is not None
    made = both.T.to(products.dtype) @ products.view(16, -1)
    return of_x, of_weight.copy_(made.T.view_as(weight))


def _transform_input(x: Tensor) -> Tensor:
    """B^T d B of all windows d of x (N, H + 2, W + 2, C): (16, N * H/2 * W/2, C)."""
    count, height, width, channels = x.shape
    height, width = height // 2 - 1, width // 2 - 1
    rows = x.new_empty(4, 2, count, height, width + 1, channels)
    made = x.new_empty(4, 4, count, height, width, channels)
    even, odd = _by_parity(x).contiguous()
    _apply_bt(even, odd, rows, dim=2)
    _apply_bt(rows[:, 0], rows[:, 1], made.transpose(0, 1), dim=3)
    return made.view(16, -1, channels)


def _apply_bt(even: Tensor, odd: Tensor, made: Tensor, *, dim: int) -> None:
    """B^T times each window along a dimension, of which every other place is in `even` and those between in `odd`."""
    count = even.shape[dim] - 1
    first, second, third, fourth = (x.narrow(dim, start, count) for start in (0, 1) for x in (even, odd))
    torch.sub(first, third, out=made[0])
    torch.add(second, third, out=made[1])
    torch.sub(third, second, out=made[2])
    torch.sub(fourth, second, out=made[3])


def _inverse_input(values: Tensor, x: Tensor) -> None:
    """Add B m B^T to its window of x (N, H + 2, W + 2, C), for all m in values (16, N * H/2 * W/2, C)."""
    count, height, width, channels = x.shape
    height, width = height // 2 - 1, width // 2 - 1
    rows = x.new_zeros(2, 4, count, height + 1, width, channels)
    _apply_b(values.view(4, 4, count, height, width, channels), rows[0], rows[1], dim=2)
    even, odd = _by_parity(x).transpose(0, 1)
    _apply_b(rows.transpose(0, 1), even, odd, dim=3)


def _apply_b(values: Tensor, even: Tensor, odd: Tensor, *, dim: int) -> None:
    """Add B times the values to the windows along a dimension that `_apply_bt` would take."""
    count = even.shape[dim] - 1
    first, second, third, fourth = (x.narrow(dim, start, count) for start in (0, 1) for x in (even, odd))
    first += values[0]
    second += values[1] - values[2] - values[3]
    third += values[1] + values[2] - values[0]
    fourth += values[3]


def _transform_gradient(e: Tensor) -> Tensor:
    """A b A^T of all blocks b of 2x2 px of e (N, H, W, C): (16, N * H/2 * W/2, C)."""
    count, height, width, channels = e.shape
    made = e.new_empty(4, 4, count, height // 2, width // 2, channels)
    made[::3, ::3] = _by_parity(e)
    _apply_a(made[::3].transpose(0, 1))
    _apply_a(made)
    return made.view(16, -1, channels)


def _apply_a(made: Tensor) -> None:
    """A times the two values in the first and the last place, which it leaves there."""
    torch.add(made[0], made[3], out=made[1])
    torch.sub(made[0], made[3], out=made[2])


def _by_parity(x: Tensor) -> Tensor:
    """(N, H, W, C) as (2, 2, N, H/2, W/2, C): whether the row and the column are odd first."""
    count, height, width, channels = x.shape
    return x.view(count, height // 2, 2, width // 2, 2, channels).permute(2, 4, 0, 1, 3, 5)
