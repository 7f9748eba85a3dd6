"""A 3x3 convolution whose backward pass needs 4 products per pixel instead of 9 (Winograd 1980; Lavin, Gray 2016).

Images are cut into windows d of 4x4 px, one every 2 px. Each window and the 3x3 weight w give 2x2 px y of the output:

    y = A^T [ (G w G^T) * (B^T d B) ] A

where A, B and G are constant matrices, and * multiplies elementwise and is summed over channels (Lavin and Gray 2016,
equation 8). The gradient e of y determines the gradients of the windows (left) and of the weights (right, summed over
windows):

    B [ (G w G^T) * (A e A^T) ] B^T        G^T [ (A e A^T) * (B^T d B) ] G

Each sum over channels or windows is a matrix product, one for each of the 16 positions in a window. With 16 products
per 2x2 px of the output, that is 4 per pixel. The last rows of A and B^T have the opposite sign to those in the paper,
which saves work; the two signs cancel.
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
_WINDOWS = 1024  # windows computed at a time, so that intermediate values stay in the processor's cache


class WinogradConv2d(nn.Conv2d):
    """3x3 convolution without padding, with Winograd's backward pass.

    Outputs equal PyTorch's outputs. Gradients of images and weights take fewer multiplications if height and width are
    even and the layer is large enough for this to pay. In bf16 the rounding error of these gradients is about 2.4 times
    the error of PyTorch's gradients, which is small against the rounding error of the outputs (docs/benchmarks.md).

    Args:
        conv: convolution to replace, `nn.Conv2d(in_channels, out_channels, 3)`: (N, in_channels, H, W) ->
            (N, out_channels, H - 2, W - 2). The new module shares its parameters.
    """

    winograd_from = 2**18  # smallest layer: min(in_channels, out_channels) times the number of pixels of all images

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, device="meta")
        assert conv.weight.shape == self.weight.shape
        assert conv.bias is not None
        assert (conv.stride, conv.padding, conv.dilation) == (self.stride, self.padding, self.dilation)
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  name in nn.Conv2d
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
    """Replace the convolutions of all residual blocks by `WinogradConv2d`, in place; parameters keep their names."""
    for block in module.modules():
        if isinstance(block, ResidualBlock):
            for half in (block.first, block.second):
                assert isinstance(half.conv, nn.Conv2d)
                half.conv = WinogradConv2d(half.conv)


class _Convolution(torch.autograd.Function):
    """`conv2d` with Winograd's backward pass, for `images` (N, I, H, W), weights (O, I, 3, 3) and biases (O,).

    I and O are the numbers of input and output channels. The convolution is computed in the dtype of `images`.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return conv2d(images, weight.to(images.dtype), bias.to(images.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images, weight = ctx.saved_tensors
        grad_images, grad_weight = _gradients(gradient.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1), weight)
        return grad_images.permute(0, 3, 1, 2), grad_weight, gradient.sum((0, 2, 3), dtype=weight.dtype)


def _gradients(e: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute gradients of x (N, H + 2, W + 2, I) and weight (O, I, 3, 3) from the output's gradient e (N, H, W, O)."""
    count, height, width, _ = e.shape
    g_2d = torch.kron(_G, _G).to(weight.dtype)  # (16, 9): G for rows and columns
    weights = (g_2d @ weight.reshape(-1, 9).T).to(e.dtype).view(16, *weight.shape[:2])
    grad_x, grad_weight, products = torch.zeros_like(x), torch.empty_like(weight), None

    rows = 2 * max(1, _WINDOWS // (count * width // 2))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        transformed = _transform_gradient(e[:, top:bottom])
        _inverse_input(torch.bmm(transformed, weights), grad_x[:, top : bottom + 2])
        product = torch.bmm(transformed.transpose(1, 2), _transform_input(x[:, top : bottom + 2]))
        products = product if products is None else products.to(weight.dtype).add_(product)

    assert products is not None
    sums = g_2d.T.to(products.dtype) @ products.view(16, -1)
    return grad_x, grad_weight.copy_(sums.T.view_as(weight))


def _transform_input(x: Tensor) -> Tensor:
    """Return B^T d B for all 4x4 windows d of x (N, H + 2, W + 2, C), as (16, N * H/2 * W/2, C)."""
    count, height, width, channels = x.shape
    height, width = height // 2 - 1, width // 2 - 1
    rows = x.new_empty(4, 2, count, height, width + 1, channels)
    output = x.new_empty(4, 4, count, height, width, channels)
    even, odd = _by_parity(x).contiguous()
    _apply_bt(even, odd, rows, dim=2)
    _apply_bt(rows[:, 0], rows[:, 1], output.transpose(0, 1), dim=3)
    return output.view(16, -1, channels)


def _apply_bt(even: Tensor, odd: Tensor, output: Tensor, *, dim: int) -> None:
    """Multiply B^T by each window of 4 px along `dim`.

    Args:
        even, odd: pixels at even and at odd positions along `dim`. Window i has the pixels even[i], odd[i],
            even[i + 1] and odd[i + 1].
        output: tensor (4, ...) for the products, written in place; the first dimension holds their 4 entries.
    """
    count = even.shape[dim] - 1
    first, second, third, fourth = (x.narrow(dim, start, count) for start in (0, 1) for x in (even, odd))
    torch.sub(first, third, out=output[0])
    torch.add(second, third, out=output[1])
    torch.sub(third, second, out=output[2])
    torch.sub(fourth, second, out=output[3])


def _inverse_input(values: Tensor, x: Tensor) -> None:
    """Transform 4x4 matrices m to B m B^T and add each to its window of x (N, H + 2, W + 2, C), in place.

    Args:
        values: the matrices, (16, N * H/2 * W/2, C); the first dimension holds the entries of each matrix.
    """
    count, height, width, channels = x.shape
    height, width = height // 2 - 1, width // 2 - 1
    rows = x.new_zeros(2, 4, count, height + 1, width, channels)
    _apply_b(values.view(4, 4, count, height, width, channels), rows[0], rows[1], dim=2)
    even, odd = _by_parity(x).transpose(0, 1)
    _apply_b(rows.transpose(0, 1), even, odd, dim=3)


def _apply_b(values: Tensor, even: Tensor, odd: Tensor, *, dim: int) -> None:
    """Multiply `values` (4, ...) by the 4x4 matrix B, and add each product to a window of 4 px along `dim`.

    Neighbouring windows overlap by 2 px.

    Args:
        even, odd: pixels at even and at odd positions along `dim`; the products are added to them in place.
    """
    count = even.shape[dim] - 1
    first, second, third, fourth = (x.narrow(dim, start, count) for start in (0, 1) for x in (even, odd))
    first += values[0]
    second += values[1] - values[2] - values[3]
    third += values[1] + values[2] - values[0]
    fourth += values[3]


def _transform_gradient(e: Tensor) -> Tensor:
    """Return A b A^T for all blocks b of 2x2 px in e (N, H, W, C), as (16, N * H/2 * W/2, C)."""
    count, height, width, channels = e.shape
    output = e.new_empty(4, 4, count, height // 2, width // 2, channels)
    output[::3, ::3] = _by_parity(e)
    _apply_a(output[::3].transpose(0, 1))
    _apply_a(output)
    return output.view(16, -1, channels)


def _apply_a(values: Tensor) -> None:
    """Multiply A by the vector (values[0], values[3]); write the product, a vector of 4 entries, to `values` (4, ...).

    Only entries 1 and 2 are written, as entries 0 and 3 of the product equal those of the vector.
    """
    torch.add(values[0], values[3], out=values[1])
    torch.sub(values[0], values[3], out=values[2])


def _by_parity(x: Tensor) -> Tensor:
    """View (N, H, W, C) as (2, 2, N, H/2, W/2, C), indexed first by the parity of row and column."""
    count, height, width, channels = x.shape
    return x.view(count, height // 2, 2, width // 2, 2, channels).permute(2, 4, 0, 1, 3, 5)
