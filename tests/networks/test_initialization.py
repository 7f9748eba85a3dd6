"""Initial weights: distribution, seeds and order."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from cyclestyle.networks import PatchDiscriminator, ResNetGenerator, UNetGenerator, initialize


def seeded(network, seed):
    initialize(network, generator=torch.Generator().manual_seed(seed))
    return network.state_dict()


def test_weights_are_normal_and_biases_zero():
    network = ResNetGenerator(32, 2)
    seeded(network, 0)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            # Standard error of the mean; the standard error of the deviation is smaller by sqrt(2).
            error = 0.02 / parameter.numel() ** 0.5
            assert abs(parameter.mean()) < 5 * error
            assert abs(parameter.std() - 0.02) < 5 * error


def test_initial_weights_depend_on_seed_only():
    torch.manual_seed(1)
    first = seeded(PatchDiscriminator(4), 7)
    torch.manual_seed(2)
    again, other = seeded(PatchDiscriminator(4), 7), seeded(PatchDiscriminator(4), 8)

    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if key.endswith("weight"))


def test_initialize_with_given_random_generator_keeps_global_random_state():
    state = torch.get_rng_state()
    initialize(nn.Conv2d(1, 1, 1, device="meta"), generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_weights_in_float64_equal_those_in_float32():
    single, double = seeded(UNetGenerator(2, 3), 3), seeded(UNetGenerator(2, 3).double(), 3)
    assert all(torch.equal(single[key].double(), double[key]) for key in single)


def test_weights_are_drawn_in_registration_order():
    network = ResNetGenerator(2, 1)
    weights = seeded(network, 5)
    generator = torch.Generator().manual_seed(5)
    stages = ["stem", "down.0", "down.1", "trunk.0.first", "trunk.0.second", "up.0", "up.1", "head"]
    for stage in stages:
        weight = weights[f"{stage}.conv.weight"]
        assert torch.equal(weight, torch.empty(weight.shape).normal_(0, 0.02, generator=generator))


class SpectralDiscriminator(nn.Sequential):
    """Two convolutions with spectral norm, as a user might write them."""

    def __init__(self):
        convolutions = nn.Conv2d(3, 4, 4, stride=2), nn.Conv2d(4, 1, 3)
        super().__init__(*(spectral_norm(convolution) for convolution in convolutions))


def test_initial_weights_with_spectral_norm_depend_on_seed_only():
    torch.manual_seed(1)
    first = seeded(SpectralDiscriminator(), 7)
    torch.manual_seed(2)
    again, other = seeded(SpectralDiscriminator(), 7), seeded(SpectralDiscriminator(), 8)

    assert any(key.endswith("_u") for key in first)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if not key.endswith("bias"))
    weight = torch.empty(4, 3, 4, 4).normal_(0, 0.02, generator=torch.Generator().manual_seed(7))
    assert torch.equal(first["0.parametrizations.weight.original"], weight)


def test_spectral_norm_is_1_after_initialization():
    network = SpectralDiscriminator()
    seeded(network, 3)
    network.eval()
    assert network[0].parametrizations.weight.training is False
    for layer in network:
        singular_values = torch.linalg.svdvals(layer.weight.detach().flatten(1))
        assert abs(singular_values.max() - 1) < 0.02  # the power iteration approaches 1


def test_initialize_keeps_training_mode_of_parametrizations():
    network = SpectralDiscriminator().eval()
    seeded(network, 3)
    assert not any(module.training for module in network.modules())
