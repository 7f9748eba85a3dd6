"""ResNet generator: comparison with the paper, with outputs of the 2017 implementation, and with a plain sequence."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cyclestyle.errors import CommandError
from cyclestyle.model_files.original_weights import from_reference, reference_names
from cyclestyle.networks import ResNetGenerator
from cyclestyle.networks.padding import pad_to_multiple

GOLDEN = Path(__file__).parents[1] / "golden"


def test_default_network_has_11_378_179_parameters():
    assert sum(parameter.numel() for parameter in ResNetGenerator().parameters()) == 11_378_179


def test_default_network_preserves_size_of_256_px_image():
    with torch.device("meta"):
        assert ResNetGenerator()(torch.empty(2, 3, 256, 256)).shape == (2, 3, 256, 256)


def test_image_channels_are_configurable():
    assert ResNetGenerator(2, 1, in_channels=1, out_channels=5)(torch.zeros(1, 1, 8, 8)).shape == (1, 5, 8, 8)


@pytest.mark.parametrize("upsample", ["transposed", "resize"])
def test_every_image_size_is_preserved(upsample):
    network = ResNetGenerator(1, 1, upsample=upsample)
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


def test_output_for_odd_size_equals_crop_of_padded_output():
    network = ResNetGenerator(2, 1)
    x = torch.rand(1, 3, 13, 6)
    padded, crop = pad_to_multiple(x, 4, minimum=8)
    assert torch.equal(network(x), network(padded)[crop])


@pytest.mark.parametrize("upsample", ["transposed", "resize"])
def test_forward_equals_running_stages_in_order(upsample):
    network = ResNetGenerator(2, 2, upsample=upsample)
    x = torch.rand(1, 3, 12, 8)
    y = x
    for stage in (network.stem, network.down, network.trunk, network.up, network.head):
        y = stage(y)

    assert torch.equal(network(x), y)
    assert [len(network.down), len(network.trunk), len(network.up)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("file", "output", "network"),
    [
        ("resnet9_zip.pth", "resnet9", ResNetGenerator(4, 9)),
        ("resnet6_zip.pth", "resnet6", ResNetGenerator(4, 6)),
        ("resnet9_dropout_zip.pth", "resnet9_dropout_eval", ResNetGenerator(4, 9, dropout=0.5).eval()),
    ],
)
def test_original_weights_give_original_outputs(file, output, network):
    weights = torch.load(GOLDEN / "weights" / file, weights_only=True)
    network.load_state_dict(from_reference(weights, network))
    arrays = np.load(GOLDEN / "weights" / "io.npz")

    with torch.no_grad():
        y = network(torch.from_numpy(arrays["x"]))
    np.testing.assert_allclose(y.numpy(), arrays[output], rtol=0, atol=1e-5)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv_block = nn.Sequential(
            *(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU()),
            *(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)),
        )

    def forward(self, x):
        return x + self.conv_block(x)


def plain_resnet(channels, blocks):
    """Build the network as one flat sequence, independently of `ResNetGenerator`, for comparison."""
    c = channels
    layers = nn.Sequential(
        *(nn.ReflectionPad2d(3), nn.Conv2d(3, c, 7), nn.InstanceNorm2d(c), nn.ReLU()),
        *(nn.Conv2d(c, 2 * c, 3, 2, 1), nn.InstanceNorm2d(2 * c), nn.ReLU()),
        *(nn.Conv2d(2 * c, 4 * c, 3, 2, 1), nn.InstanceNorm2d(4 * c), nn.ReLU()),
        *(Residual(4 * c) for _ in range(blocks)),
        *(nn.ConvTranspose2d(4 * c, 2 * c, 3, 2, 1, 1), nn.InstanceNorm2d(2 * c), nn.ReLU()),
        *(nn.ConvTranspose2d(2 * c, c, 3, 2, 1, 1), nn.InstanceNorm2d(c), nn.ReLU()),
        *(nn.ReflectionPad2d(3), nn.Conv2d(c, 3, 7), nn.Tanh()),
    )
    return nn.ModuleDict({"model": layers})


@pytest.mark.parametrize("blocks", [0, 1, 9])
def test_outputs_and_gradients_equal_those_of_plain_nn_sequential(blocks):
    network, plain = ResNetGenerator(3, blocks).double(), plain_resnet(3, blocks).double()
    names = reference_names(network)
    plain.load_state_dict({names[key]: tensor for key, tensor in network.state_dict().items()})
    x = torch.rand(2, 3, 16, 20, dtype=torch.float64) * 2 - 1

    output, expected = network(x), plain["model"](x)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)

    output.square().sum().backward()
    expected.square().sum().backward()
    for name, plain_name in names.items():
        torch.testing.assert_close(
            network.get_parameter(name).grad, plain.get_parameter(plain_name).grad, rtol=1e-9, atol=1e-9
        )


def test_only_resize_upsampling_keeps_constant_map_constant():
    flat = torch.ones(1, 8, 6, 6)
    deviation = {}
    for upsample in ("transposed", "resize"):
        double = ResNetGenerator(2, 0, upsample=upsample).up[0]
        y = double[: list(dict(double.named_children())).index("conv") + 1](flat)
        deviation[upsample] = y.std(dim=(2, 3)).max().item()

    assert deviation["resize"] < 1e-6 < 1e-3 < deviation["transposed"]


def test_dropout_is_active_in_training_only():
    network = ResNetGenerator(4, 2, dropout=0.5)
    x = torch.rand(1, 3, 16, 16)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_forward_without_dropout_draws_no_random_numbers():
    network = ResNetGenerator(2, 2)
    state = torch.get_rng_state()
    network(torch.zeros(1, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 0},
        {"channels": 64.0},
        {"channels": "64"},
        {"channels": True},
        {"channels": 1025},
        {"blocks": -1},
        {"blocks": 65},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": float("nan")},
        {"dropout": "much"},
        {"upsample": "bilinear"},
        {"upsample": None},
        {"in_channels": 0},
        {"out_channels": 0},
    ],
)
def test_bad_argument_is_named_in_error(wrong):
    with pytest.raises(CommandError, match=rf"^generator\.{next(iter(wrong))} is .*: expected .*$"):
        ResNetGenerator(**wrong)
