"""Comparison of PyTorch's 3x3 convolution with the convolution that uses Winograd's backward pass."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cyclestyle.hardware.winograd import WinogradConv2d, use_winograd
from cyclestyle.networks import ResNetGenerator

LAYOUTS = {"default": torch.contiguous_format, "channels last": torch.channels_last}


def layers(inputs: int, outputs: int, **kind: torch.dtype) -> tuple[WinogradConv2d, nn.Conv2d]:
    """Winograd's layer, enabled for any size, and PyTorch's layer, with equal but separate parameters."""
    random = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3).to(**kind)
    for parameter in conv.parameters():
        parameter.data.normal_(generator=random)
    winograd = WinogradConv2d(copy.deepcopy(conv))
    winograd.winograd_from = 0
    return winograd, conv


def use(network: nn.Module) -> None:
    """Replace the convolutions of a network with Winograd's layers, and enable these for any size."""
    use_winograd(network)
    for layer in network.modules():
        if isinstance(layer, WinogradConv2d):
            layer.winograd_from = 0


def gradients(layer: nn.Module, x: Tensor, e: Tensor) -> list[Tensor]:
    """Gradients of image `x`, weights and biases, given the output's gradient `e`."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    return list(torch.autograd.grad(layer(x), [x, *layer.parameters()], e))


def values(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=random).contiguous(memory_format=layout)


@pytest.mark.parametrize("output_layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("count", "height", "width"),
    [(1, 2, 2), (2, 4, 6), (3, 10, 2), (1, 70, 70), (2, 64, 70), (1, 4, 2100)],
    ids=str,
)
def test_winograd_gradients_equal_pytorch_gradients(count, height, width, layout, output_layout):
    winograd, conv = layers(5, 3, dtype=torch.float64)
    x = values(count, 5, height + 2, width + 2, layout=layout)
    e = values(count, 3, height, width, layout=output_layout)
    torch.testing.assert_close(gradients(winograd, x, e), gradients(conv, x, e), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(9, 12), (12, 9), (9, 9)], ids=str)
def test_gradients_at_odd_image_sizes_equal_pytorch_gradients(size):
    winograd, conv = layers(4, 6, dtype=torch.float64)
    x, e = values(2, 4, *size), values(2, 6, size[0] - 2, size[1] - 2)
    torch.testing.assert_close(gradients(winograd, x, e), gradients(conv, x, e), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trained", [True, False])
def test_bf16_outputs_equal_pytorch_outputs_bit_for_bit(trained):
    winograd, conv = layers(64, 64, dtype=torch.float32)
    x = values(2, 64, 18, 18, layout=torch.channels_last).float().requires_grad_(trained)
    with torch.set_grad_enabled(trained), torch.autocast("cpu", torch.bfloat16):
        output, expected = winograd(x), conv(x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)


def test_bf16_gradients_are_float32_and_close_to_float64_gradients():
    winograd, conv = layers(64, 48, dtype=torch.float32)
    x, e = values(2, 64, 18, 18, layout=torch.channels_last), values(2, 48, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(winograd, x.float(), e.bfloat16())
    for gradient, exact in zip(rounded, gradients(conv.double(), x, e), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("recompute", [False, True])
def test_bf16_network_gradients_are_as_accurate_as_pytorch_gradients(recompute):
    torch.manual_seed(0)
    pytorch = ResNetGenerator(16, 3).float()
    winograd, double = copy.deepcopy(pytorch), copy.deepcopy(pytorch).double()
    use(winograd)
    winograd.recompute = recompute
    x = nn.functional.interpolate(values(2, 3, 8, 8), size=48, mode="bicubic").clamp(-1, 1)

    def weight_gradients(network: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
            output = network(x)
        (output - x).square().mean().backward()
        return torch.cat([p.grad.flatten() for name, p in network.named_parameters() if name.endswith("weight")])

    exact = weight_gradients(double, x)
    usual, saving = (weight_gradients(network, x.float()) for network in (pytorch, winograd))
    assert not torch.equal(usual, saving)
    assert (saving - exact).norm() <= 1.02 * (usual - exact).norm()


@pytest.mark.parametrize(("count", "is_used"), [(1, False), (2, True)])
def test_winograd_is_used_for_large_layers_only(count, is_used):
    winograd, conv = layers(128, 160, dtype=torch.float32)
    winograd.winograd_from = WinogradConv2d.winograd_from
    x, e = values(count, 128, 34, 34).bfloat16(), values(count, 160, 32, 32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        weights, expected = gradients(winograd, x, e)[1], gradients(conv, x, e)[1]
    assert torch.equal(weights, expected) is not is_used
    assert (weights - expected).norm() < 0.01 * expected.norm()


def test_frozen_weights_pass_gradients_to_input():
    winograd, conv = layers(4, 4, dtype=torch.float64)
    for layer in (winograd, conv):
        layer.requires_grad_(False)
    x, e = values(1, 4, 8, 8).requires_grad_(), values(1, 4, 6, 6)
    gradient, expected = (torch.autograd.grad(layer(x), x, e) for layer in (winograd, conv))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_weight_gradients_are_exact_if_input_needs_no_gradient():
    winograd, conv = layers(4, 4, dtype=torch.float64)
    x, e = values(1, 4, 8, 8), values(1, 4, 6, 6)
    weights, expected = (torch.autograd.grad(layer(x), list(layer.parameters()), e) for layer in (winograd, conv))
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)


def test_use_winograd_keeps_parameters_and_state_dict():
    network = ResNetGenerator(8, 2)
    before, state = dict(network.named_parameters()), network.state_dict()
    use_winograd(network)
    assert sum(isinstance(layer, WinogradConv2d) for layer in network.modules()) == 4
    assert all(after is before[name] for name, after in network.named_parameters())
    assert list(network.state_dict()) == list(state)
