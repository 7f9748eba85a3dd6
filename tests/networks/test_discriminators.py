"""The patch and pixel discriminators: size, scores, and what a score sees."""

import pytest
import torch
from torch import nn

from cyclestyle.errors import CommandError
from cyclestyle.networks import PatchDiscriminator, PixelDiscriminator, receptive_field


def test_default_patch_has_the_parameters_of_the_paper():
    assert sum(parameter.numel() for parameter in PatchDiscriminator().parameters()) == 2_764_737


def test_default_patch_gives_30_by_30_scores_at_256_px():
    with torch.device("meta"):
        assert PatchDiscriminator()(torch.empty(2, 3, 256, 256)).shape == (2, 1, 30, 30)


def test_pixel_gives_a_score_a_pixel():
    assert PixelDiscriminator(2, in_channels=4)(torch.rand(2, 4, 5, 7)).shape == (2, 1, 5, 7)


def test_widths_double_up_to_eight_times():
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
def test_receptive_field_is_where_the_gradient_of_one_score_reaches(network, side):
    x = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    scores = without_norms(network).double()(x)
    (gradient,) = torch.autograd.grad(scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2], x)

    is_seen = gradient.abs().sum(dim=(0, 1)) > 0
    assert is_seen.any(dim=1).sum() == is_seen.any(dim=0).sum() == side
    assert network.receptive_field == receptive_field(network) == side


@pytest.mark.parametrize(
    "network",
    [*(PatchDiscriminator(1, layers) for layers in range(1, 6)), PixelDiscriminator(1)],
    ids=lambda network: "-".join(map(str, network.architecture.values())),
)
def test_minimum_size_is_the_smallest_that_works(network):
    size = network.minimum_size
    assert network(torch.rand(1, 3, size, size)).isfinite().all()
    with pytest.raises((ValueError, RuntimeError)):
        network(torch.rand(1, 3, size - 1, size - 1))


def test_the_default_needs_24_px():
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
        (PixelDiscriminator, {"channels": "64"}),
        (PixelDiscriminator, {"in_channels": 0}),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(network, wrong):
    with pytest.raises(CommandError, match=rf"^discriminator\.{next(iter(wrong))} is .*: expected .*$"):
        network(**wrong)
