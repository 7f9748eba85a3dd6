"""U-Net generator: comparison with its published number of parameters and with a nested implementation."""

import itertools

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from cyclestyle.errors import CommandError
from cyclestyle.networks import UNetGenerator, initialize


def test_default_parameter_count_matches_pix2pix():
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in UNetGenerator().parameters())

    # pix2pix has 54,413,955 parameters. The 2 x 4,928 weights of its batch norms are absent here. Convolutions
    # before the norms, and two more, have 5,504 biases here and no bias in pix2pix.
    assert size == 54_413_955 - 2 * 4_928 + 5_504


def test_default_network_preserves_size_of_256_px_image():
    with torch.device("meta"):
        assert UNetGenerator()(torch.empty(1, 3, 256, 256)).shape == (1, 3, 256, 256)


def test_image_channels_are_configurable():
    assert UNetGenerator(2, 2, in_channels=1, out_channels=5)(torch.zeros(1, 1, 8, 8)).shape == (1, 5, 8, 8)


@pytest.mark.parametrize(
    ("levels", "upsample", "detail"), [(3, "transposed", 0), (5, "transposed", 0), (3, "resize", 0), (3, "resize", 2)]
)
def test_every_image_size_is_preserved(levels, upsample, detail):
    network = UNetGenerator(1, levels, upsample=upsample, detail=detail)
    sizes = range(1, 41)
    selected = {1, 2, 7, 40}  # axes are padded independently: every size on both axes, but not all pairs
    with torch.no_grad():
        for height, width in itertools.product(sizes, sizes):
            if selected.isdisjoint((height, width)) and height != width:
                continue
            y = network(torch.rand(1, 3, height, width))
            assert y.shape == (1, 3, height, width)
            assert y.isfinite().all()
            assert y.abs().max() <= 1


def nested_unet(x, weights, levels, i=0):
    """Compute level `i` of a U-Net and all levels inside it; all levels but the outermost have skip connections."""
    down = weights[f"down.{i}.conv.weight"], weights[f"down.{i}.conv.bias"]
    name = "head" if i == 0 else f"up.{levels - 1 - i}"
    up = weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"]

    y = F.conv2d(x if i == 0 else torch.where(x > 0, x, 0.2 * x), *down, stride=2, padding=1)
    if 0 < i < levels - 1:
        y = normalize(y)
    if i < levels - 1:
        y = nested_unet(y, weights, levels, i + 1)
    y = F.conv_transpose2d(y.clamp(min=0), *up, stride=2, padding=1)
    return y.tanh() if i == 0 else torch.cat([x, normalize(y)], dim=1)


def normalize(x):
    mean = x.mean(dim=(2, 3), keepdim=True)
    variance = (x - mean).square().mean(dim=(2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize("levels", [2, 3, 6])
def test_outputs_equal_recursive_implementation(levels):
    network = UNetGenerator(2, levels).double()
    x = torch.rand(2, 3, 2**levels, 2 ** (levels + 1), dtype=torch.float64) * 2 - 1
    expected = nested_unet(x, network.state_dict(), levels)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


def test_resize_upsampling_equals_plain_implementation():
    network = UNetGenerator(2, 2, upsample="resize").double()
    x = torch.rand(1, 3, 8, 12, dtype=torch.float64) * 2 - 1
    weights = network.state_dict()

    def double(x, name):
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = torch.cat([x[:, :, 1:2], x, x[:, :, -2:-1]], dim=2)
        x = torch.cat([x[..., 1:2], x, x[..., -2:-1]], dim=3)
        return F.conv2d(x, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"])

    outer = F.conv2d(x, weights["down.0.conv.weight"], weights["down.0.conv.bias"], stride=2, padding=1)
    down = weights["down.1.conv.weight"], weights["down.1.conv.bias"]
    inner = F.conv2d(F.leaky_relu(outer, 0.2), *down, stride=2, padding=1)
    y = torch.cat([outer, normalize(double(inner.relu(), "up.0.conv"))], dim=1)
    expected = double(y.relu(), "head.conv").tanh()
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("upsample", ["transposed", "resize"])
def test_unet_detail_layers_add_their_output_before_final_tanh(upsample):
    network = UNetGenerator(2, 2, upsample=upsample, detail=5).double()
    x = torch.rand(1, 3, 8, 12, dtype=torch.float64) * 2 - 1
    outputs = []
    network.head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    actual = network(x)

    def convolve(x, name):
        x = torch.cat([x[:, :, 1:2], x, x[:, :, -2:-1]], dim=2)
        x = torch.cat([x[..., 1:2], x, x[..., -2:-1]], dim=3)
        return F.conv2d(x, network.state_dict()[f"fine.{name}.weight"], network.state_dict()[f"fine.{name}.bias"])

    assert outputs[0].shape == (1, 5, 8, 12)
    y = convolve(torch.cat([outputs[0], x], dim=1), "conv")
    y = convolve(torch.where(y > 0, y, 0.2 * y), "conv_out")
    inverse = 0.5 * ((1 + 0.95 * x) / (1 - 0.95 * x)).log()
    torch.testing.assert_close(actual, (y + inverse).tanh(), rtol=0, atol=1e-12)


def test_untrained_unet_with_detail_option_nearly_returns_its_input():
    network = UNetGenerator(8, 3, upsample="resize", detail=4)
    initialize(network, generator=torch.Generator().manual_seed(0))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    assert (network(x) - x).abs().max() < 0.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unet_with_detail_option_is_finite_for_black_and_white_pixels(dtype):
    network = UNetGenerator(4, 2, detail=4).to(dtype)
    x = torch.tensor([-1.0, 1.0], dtype=dtype).repeat_interleave(32).repeat(1, 3, 64, 1).requires_grad_()
    y = network(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert gradient.isfinite().all()


def test_dropout_is_in_same_levels_as_original():
    # With 8 levels, the 2017 implementation has 8 - 5 = 3 blocks with dropout, next to the innermost one.
    network = UNetGenerator(1, 8, dropout=0.5)
    assert [up.dropout.p for up in network.up] == [0, 0.5, 0.5, 0.5, 0, 0, 0]

    x = torch.rand(1, 3, 256, 256)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 0},
        {"levels": 1},
        {"levels": 11},
        {"levels": 8.0},
        {"dropout": 1},
        {"upsample": "nearest"},
        {"detail": -1},
        {"detail": True},
        {"detail": 4, "in_channels": 1},
        {"in_channels": 0},
    ],
)
def test_bad_argument_is_named_in_error(wrong):
    with pytest.raises(CommandError, match=rf"^generator\.{next(iter(wrong))} is .*: expected .*$"):
        UNetGenerator(**wrong)
