"""The weights that training starts from."""

import torch
from torch import nn

from cyclestyle.networks import PatchDiscriminator, ResNetGenerator, UNetGenerator, initialize


def seeded(network, seed):
    initialize(network, generator=torch.Generator().manual_seed(seed))
    return network.state_dict()


def test_weights_have_mean_0_and_deviation_0_02_and_biases_are_0():
    network = ResNetGenerator(32, 2)
    seeded(network, 0)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            error = 0.02 / parameter.numel() ** 0.5  # of the mean; that of the deviation is smaller by sqrt 2
            assert abs(parameter.mean()) < 5 * error
            assert abs(parameter.std() - 0.02) < 5 * error


def test_the_generator_alone_decides():
    torch.manual_seed(1)
    one = seeded(PatchDiscriminator(4), 7)
    torch.manual_seed(2)
    two, other = seeded(PatchDiscriminator(4), 7), seeded(PatchDiscriminator(4), 8)

    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith("weight"))


def test_the_global_generator_is_left_alone_when_another_is_given():
    state = torch.get_rng_state()
    initialize(nn.Conv2d(1, 1, 1, device="meta"), generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_in_float64_gets_the_numbers_of_one_in_float32():
    single, double = seeded(UNetGenerator(2, 3), 3), seeded(UNetGenerator(2, 3).double(), 3)
    assert all(torch.equal(single[key].double(), double[key]) for key in single)


def test_convolutions_are_drawn_in_the_order_of_registration():
    network = ResNetGenerator(2, 1)
    weights = seeded(network, 5)
    generator = torch.Generator().manual_seed(5)
    stages = ["stem", "down.0", "down.1", "trunk.0.first", "trunk.0.second", "up.0", "up.1", "head"]
    for stage in stages:
        weight = weights[f"{stage}.conv.weight"]
        assert torch.equal(weight, torch.empty(weight.shape).normal_(0, 0.02, generator=generator))
