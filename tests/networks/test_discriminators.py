"""Discriminators: parameter counts, scores and receptive fields."""

import itertools
import math

import pytest
import torch
from torch import nn

from cyclestyle.errors import CommandError
from cyclestyle.networks import PatchDiscriminator, PixelDiscriminator, TextureDiscriminator, receptive_field
from cyclestyle.networks.texture import texture


def test_default_patchgan_has_2_764_737_parameters():
    assert sum(parameter.numel() for parameter in PatchDiscriminator().parameters()) == 2_764_737


def test_default_patchgan_gives_30x30_scores_at_256_px():
    with torch.device("meta"):
        assert PatchDiscriminator()(torch.empty(2, 3, 256, 256)).shape == (2, 1, 30, 30)


def test_pixelgan_gives_one_score_per_pixel():
    assert PixelDiscriminator(2, in_channels=4)(torch.rand(2, 4, 5, 7)).shape == (2, 1, 5, 7)


def test_texture_discriminator_adds_a_score_channel():
    network = TextureDiscriminator(4, 2, 3)
    x = torch.rand(2, 3, 40, 52) * 2 - 1
    scores = network(x)
    assert scores.shape == (2, 2, 8, 11)
    assert torch.equal(scores[:, :1], network.patch(x))


def test_texture_filter_output_equals_difference_of_gaussian_blurs():
    x = torch.rand(2, 3, 20, 17, dtype=torch.float64) * 2 - 1
    light = x.mean(dim=1)
    output = texture(x)
    assert output.shape == (2, 1, 20, 17)
    for row, column in ((0, 0), (0, 9), (7, 16), (19, 16), (10, 8)):
        means = []
        for deviation, radius in ((0.7, 2), (4.0, 12)):
            total, weights = torch.zeros(2, dtype=torch.float64), 0.0
            for dy, dx in itertools.product(range(-radius, radius + 1), repeat=2):
                weight = math.exp(-(dx**2 + dy**2) / (2 * deviation**2))
                total += weight * light[:, min(max(row + dy, 0), 19), min(max(column + dx, 0), 16)]
                weights += weight
            means.append(total / weights)
        torch.testing.assert_close(output[:, 0, row, column], 12 * (means[0] - means[1]), rtol=0, atol=1e-12)


def test_texture_filter_under_bf16_autocast_equals_float32_result():
    gray = torch.rand(1, 1, 40, 40).bfloat16().expand(1, 3, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(texture(gray).float(), texture(gray.float()).float())


def test_texture_scores_ignore_colour_and_large_shapes():
    network = TextureDiscriminator(2, 2, 8).double()
    x = 0.2 * (torch.rand(1, 3, 96, 96, dtype=torch.float64) * 2 - 1)
    colour = torch.tensor([0.3, -0.2, -0.1], dtype=torch.float64)[:, None, None] * torch.rand(96, 96)
    slope = torch.linspace(-0.3, 0.3, 96, dtype=torch.float64)[:, None].expand(96, 96)
    inner = slice(6, -6)  # without margins, where repeated edges flatten the slope

    def scores(image):
        return network(image)[:, 1:, inner, inner]

    torch.testing.assert_close(scores(x + colour), scores(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(scores(x + slope), scores(x), rtol=0, atol=1e-9)
    assert (scores(2 * x) - scores(x)).abs().mean() > 0.3 * (scores(x) - scores(0 * x)).abs().mean()


def test_patchgan_with_norm_gives_same_scores_at_double_contrast():
    network = PatchDiscriminator(8, 2, in_channels=1).double()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)
    x = 100 * (torch.rand(1, 1, 64, 64, dtype=torch.float64) * 2 - 1)  # makes the norm's epsilon of 1e-5 negligible
    torch.testing.assert_close(network(2 * x), network(x), rtol=0, atol=1e-6)


def test_patchgan_channels_double_up_to_eightfold():
    with torch.device("meta"):
        convs = [m for m in PatchDiscriminator(2, 5).modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [2, 4, 8, 16, 16, 16, 1]
    assert [conv.stride[0] for conv in convs] == [2, 2, 2, 2, 2, 1, 1]


def without_norms(network):
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm2d):
                setattr(module, name, nn.Identity())
    return network


@pytest.mark.parametrize(
    ("network", "side"),
    [
        (PatchDiscriminator(2, 1), 16),
        (PatchDiscriminator(2, 2), 34),
        (PatchDiscriminator(2, 3), 70),
        (PixelDiscriminator(2), 1),
    ],
)
def test_receptive_field_matches_gradient_support(network, side):
    x = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    scores = without_norms(network).double()(x)
    (gradient,) = torch.autograd.grad(scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2], x)

    is_seen = gradient.abs().sum(dim=(0, 1)) > 0
    assert is_seen.any(dim=1).sum() == is_seen.any(dim=0).sum() == side
    assert network.receptive_field == receptive_field(network) == side


@pytest.mark.parametrize(("layers", "side"), [(1, 40), (2, 58)])
def test_texture_receptive_field_includes_blur(layers, side):
    network = TextureDiscriminator(2, layers, 2)
    x = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    scores = without_norms(network).double()(x)
    (gradient,) = torch.autograd.grad(scores[0, :, scores.shape[2] // 2, scores.shape[3] // 2].sum(), x)

    is_seen = gradient.abs().sum(dim=(0, 1)) > 0
    assert is_seen.any(dim=1).sum() == is_seen.any(dim=0).sum() == side == network.receptive_field


@pytest.mark.parametrize(
    "network",
    [
        *(PatchDiscriminator(1, layers) for layers in range(1, 6)),
        PatchDiscriminator(1, 2, norm=False),
        PixelDiscriminator(1),
        TextureDiscriminator(1, 2, 1),
    ],
    ids=lambda network: "-".join(map(str, network.architecture.values())),
)
def test_minimum_size_is_smallest_size_without_error(network):
    size = network.minimum_size
    assert network(torch.rand(1, 3, size, size)).isfinite().all()
    with pytest.raises((ValueError, RuntimeError)):
        network(torch.rand(1, 3, size - 1, size - 1))


def test_default_patchgan_minimum_size_is_24_px():
    with torch.device("meta"):
        assert PatchDiscriminator().minimum_size == 24


@pytest.mark.parametrize(
    ("network", "wrong"),
    [
        (PatchDiscriminator, {"channels": 0}),
        (PatchDiscriminator, {"layers": 0}),
        (PatchDiscriminator, {"layers": 9}),
        (PatchDiscriminator, {"layers": 3.0}),
        (PatchDiscriminator, {"in_channels": 0}),
        (PatchDiscriminator, {"norm": 0}),
        (PixelDiscriminator, {"channels": "64"}),
        (TextureDiscriminator, {"texture_channels": 0}),
        (TextureDiscriminator, {"layers": 9}),
        (PixelDiscriminator, {"in_channels": 0}),
    ],
)
def test_bad_argument_is_named_in_error(network, wrong):
    with pytest.raises(CommandError, match=rf"^discriminator\.{next(iter(wrong))} is .*: expected .*$"):
        network(**wrong)
