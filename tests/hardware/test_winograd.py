"""The 3x3 convolution with Winograd's backward pass, against PyTorch's own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cyclestyle.hardware.winograd import WinogradConv2d, use_winograd
from cyclestyle.networks import ResNetGenerator

LAYOUTS = {"default": torch.contiguous_format, "channels last": torch.channels_last}


def layers(inputs: int, outputs: int, **kind: torch.dtype) -> tuple[WinogradConv2d, nn.Conv2d]:
    """Winograd's layer, for any size, and PyTorch's, with equal parameters of their own."""
    random = torch.Generator().manual_seed(0)
    theirs = nn.Conv2d(inputs, outputs, 3).to(**kind)
    for parameter in theirs.parameters():
        parameter.data.normal_(generator=random)
    ours = WinogradConv2d(copy.deepcopy(theirs))
    ours.winograd_from = 0
    return ours, theirs


def use(network: nn.Module) -> None:
    """Exchange the layers of a network, whatever their size."""
    use_winograd(network)
    for layer in network.modules():
        if isinstance(layer, WinogradConv2d):
            layer.winograd_from = 0


def gradients(layer: nn.Module, x: Tensor, e: Tensor) -> list[Tensor]:
    """Of the picture, the weights and the biases, where the result's is e."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    made = torch.autograd.grad(layer(x), [x, *layer.parameters()], e)
    return list(made)


def values(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=random).contiguous(memory_format=layout)


@pytest.mark.parametrize("of_result", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("pictures", "height", "width"),
    [(1, 2, 2), (2, 4, 6), (3, 10, 2), (1, 70, 70), (2, 64, 70), (1, 4, 2100)],
    ids=str,
)
def test_gradients_are_those_of_the_convolution(pictures, height, width, layout, of_result):
    ours, theirs = layers(5, 3, dtype=torch.float64)
    x = values(pictures, 5, height + 2, width + 2, layout=layout)
    e = values(pictures, 3, height, width, layout=of_result)
    torch.testing.assert_close(gradients(ours, x, e), gradients(theirs, x, e), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(9, 12), (12, 9), (9, 9)], ids=str)
def test_odd_sizes_have_the_same_gradients(size):
    ours, theirs = layers(4, 6, dtype=torch.float64)
    x, e = values(2, 4, *size), values(2, 6, size[0] - 2, size[1] - 2)
    torch.testing.assert_close(gradients(ours, x, e), gradients(theirs, x, e), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trained", [True, False])
def test_results_in_bf16_are_bit_for_bit_those_of_the_convolution(trained):
    ours, theirs = layers(64, 64, dtype=torch.float32)
    x = values(2, 64, 18, 18, layout=torch.channels_last).float().requires_grad_(trained)
    with torch.set_grad_enabled(trained), torch.autocast("cpu", torch.bfloat16):
        made, expected = ours(x), theirs(x)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, expected)


def test_gradients_in_bf16_are_float32_and_near_the_exact_ones():
    ours, exact = layers(64, 48, dtype=torch.float32)
    x, e = values(2, 64, 18, 18, layout=torch.channels_last), values(2, 48, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        made = gradients(ours, x.float(), e.bfloat16())
    for ours_, theirs in zip(made, gradients(exact.double(), x, e), strict=True):
        assert ours_.dtype == torch.float32
        assert (ours_ - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("recompute", [False, True])
def test_a_network_s_gradients_in_bf16_are_as_near_the_exact_ones_as_with_pytorch_s(recompute):
    torch.manual_seed(0)
    usual = ResNetGenerator(16, 3).float()
    quick, exact = copy.deepcopy(usual), copy.deepcopy(usual).double()
    use(quick)
    quick.recompute = recompute
    x = nn.functional.interpolate(values(2, 3, 8, 8), size=48, mode="bicubic").clamp(-1, 1)

    def taken(network: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
            made = network(x)
        (made - x).square().mean().backward()
        return torch.cat([p.grad.flatten() for name, p in network.named_parameters() if name.endswith("weight")])

    wanted = taken(exact, x)
    near, far = (taken(network, x.float()) for network in (usual, quick))
    assert not torch.equal(near, far)
    assert (far - wanted).norm() <= 1.02 * (near - wanted).norm()


@pytest.mark.parametrize(("pictures", "taken"), [(1, False), (2, True)])
def test_only_large_layers_take_their_gradients_so(pictures, taken):
    ours, theirs = layers(128, 160, dtype=torch.float32)
    ours.winograd_from = WinogradConv2d.winograd_from
    x, e = values(pictures, 128, 34, 34).bfloat16(), values(pictures, 160, 32, 32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        made, usual = gradients(ours, x, e), gradients(theirs, x, e)
    assert torch.equal(made[1], usual[1]) is not taken
    assert (made[1] - usual[1]).norm() < 0.01 * usual[1].norm()


def test_weights_that_stand_still_let_the_gradient_through():
    ours, theirs = layers(4, 4, dtype=torch.float64)
    for layer in (ours, theirs):
        layer.requires_grad_(False)
    x, e = values(1, 4, 8, 8).requires_grad_(), values(1, 4, 6, 6)
    made, expected = (torch.autograd.grad(layer(x), x, e) for layer in (ours, theirs))
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)


def test_a_picture_that_needs_no_gradient_leaves_the_weights_theirs():
    ours, theirs = layers(4, 4, dtype=torch.float64)
    x, e = values(1, 4, 8, 8), values(1, 4, 6, 6)
    made, expected = (torch.autograd.grad(layer(x), list(layer.parameters()), e) for layer in (ours, theirs))
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)


def test_exchanged_network_keeps_parameters_and_state_dict():
    network = ResNetGenerator(8, 2)
    before, state = dict(network.named_parameters()), network.state_dict()
    use_winograd(network)
    assert sum(isinstance(layer, WinogradConv2d) for layer in network.modules()) == 4
    assert all(after is before[name] for name, after in network.named_parameters())
    assert list(network.state_dict()) == list(state)
