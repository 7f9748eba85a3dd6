"""The reference's names of weights, and its first training step."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from cyclestyle.errors import CheckpointError
from cyclestyle.losses import LeastSquares
from cyclestyle.networks import PatchDiscriminator, PixelDiscriminator, ResNetGenerator, UNetGenerator
from cyclestyle.networks.reference import from_reference, reference_names

GOLDEN = Path(__file__).parents[1] / "golden"


def load(network, name):
    steps = np.load(GOLDEN / "reference_steps.npz")
    prefix = f"init/{name}/"
    weights = {key.removeprefix(prefix): torch.from_numpy(steps[key]) for key in steps.files if key.startswith(prefix)}
    network.load_state_dict(from_reference(weights, network))
    return network.double()


@pytest.fixture(scope="module")
def steps():
    return np.load(GOLDEN / "reference_steps.npz")


def test_the_first_translation_and_its_way_back_are_the_references(steps):
    ab, ba = load(ResNetGenerator(4, 2), "G_A"), load(ResNetGenerator(4, 2), "G_B")
    with torch.no_grad():
        fake_b = ab(torch.from_numpy(steps["real_A"][0]).double())
        np.testing.assert_allclose(fake_b.numpy(), steps["fake_B_step0"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(ba(fake_b).numpy(), steps["rec_A_step0"], rtol=0, atol=1e-6)


def test_the_losses_of_the_first_step_are_the_references_to_1e_9(steps):
    ab, ba = load(ResNetGenerator(4, 2), "G_A"), load(ResNetGenerator(4, 2), "G_B")
    judge_a, judge_b = load(PatchDiscriminator(4), "D_B"), load(PatchDiscriminator(4), "D_A")
    a, b = (torch.from_numpy(steps[name][0]).double() for name in ("real_A", "real_B"))
    loss = LeastSquares()

    with torch.no_grad():
        fake_b, fake_a = ab(a), ba(b)
        losses = {
            "G_A": loss.fool(judge_b(fake_b)),
            "G_B": loss.fool(judge_a(fake_a)),
            "cycle_A": 10 * F.l1_loss(ba(fake_b), a),
            "cycle_B": 10 * F.l1_loss(ab(fake_a), b),
            "idt_A": 5 * F.l1_loss(ab(b), b),
            "idt_B": 5 * F.l1_loss(ba(a), a),
            "D_A": 0.5 * (loss.real(judge_b(b)) + loss.fake(judge_b(fake_b))),
            "D_B": 0.5 * (loss.real(judge_a(a)) + loss.fake(judge_a(fake_a))),
        }

    for name, value in losses.items():
        np.testing.assert_allclose(value.item(), steps[f"loss/{name}"][0], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (ResNetGenerator(1, 9), {"trunk.8.second.conv": "model.18.conv_block.5", "up.0.conv": "model.19"}),
        (ResNetGenerator(1, 9), {"up.1.conv": "model.22", "head.conv": "model.26"}),
        (ResNetGenerator(1, 6), {"up.0.conv": "model.16", "up.1.conv": "model.19", "head.conv": "model.23"}),
        (ResNetGenerator(1, 2, dropout=0.5), {"trunk.1.second.conv": "model.11.conv_block.6"}),
        (PatchDiscriminator(1), {"stem.conv": "model.0", "body.0.conv": "model.2", "head": "model.11"}),
    ],
)
def test_layers_have_the_numbers_of_the_reference(network, layers):
    names = reference_names(network)
    assert set(names) == set(network.state_dict())
    assert len(set(names.values())) == len(names)
    for ours, theirs in layers.items():
        assert names[f"{ours}.weight"] == f"{theirs}.weight"
        assert names[f"{ours}.bias"] == f"{theirs}.bias"


def test_a_file_of_another_network_is_an_error_that_names_the_difference():
    weights = torch.load(GOLDEN / "weights" / "resnet6_zip.pth", weights_only=True)
    difference = "missing model.16.conv_block.1.weight and 15 more; unknown model.16.bias and 3 more"
    with pytest.raises(CheckpointError, match=re.escape(difference)):
        from_reference(weights, ResNetGenerator(4, 9))


@pytest.mark.parametrize(
    "network", [ResNetGenerator(1, 1, upsample="resize"), UNetGenerator(1, 2), PixelDiscriminator(1)]
)
def test_a_network_that_the_reference_does_not_save_is_an_error(network):
    with pytest.raises(CheckpointError, match="no reference file fits"):
        reference_names(network)
