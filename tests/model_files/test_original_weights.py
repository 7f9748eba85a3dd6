"""Weights of the reference, the 2017 implementation: names of layers, detected architectures, outputs, first losses."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from cyclestyle.errors import CheckpointError
from cyclestyle.model_files.original_weights import (
    detect_architecture,
    from_reference,
    reference_names,
    reference_options,
    to_reference,
)
from cyclestyle.networks import PatchDiscriminator, PixelDiscriminator, ResNetGenerator, UNetGenerator
from cyclestyle.networks.registry import build
from cyclestyle.objectives.adversarial import LeastSquares
from tests.reference_networks import BATCH, RUNNING, ReferenceResNet, ReferenceUNet, randomized

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


def test_first_translation_matches_the_reference(steps):
    ab, ba = load(ResNetGenerator(4, 2), "G_A"), load(ResNetGenerator(4, 2), "G_B")
    with torch.no_grad():
        fake_b = ab(torch.from_numpy(steps["real_A"][0]).double())
        np.testing.assert_allclose(fake_b.numpy(), steps["fake_B_step0"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(ba(fake_b).numpy(), steps["rec_A_step0"], rtol=0, atol=1e-6)


def test_losses_of_first_step_match_the_reference_to_1e_9(steps):
    ab, ba = load(ResNetGenerator(4, 2), "G_A"), load(ResNetGenerator(4, 2), "G_B")
    discriminator_a, discriminator_b = load(PatchDiscriminator(4), "D_B"), load(PatchDiscriminator(4), "D_A")
    a, b = (torch.from_numpy(steps[name][0]).double() for name in ("real_A", "real_B"))
    loss = LeastSquares()

    with torch.no_grad():
        fake_b, fake_a = ab(a), ba(b)
        losses = {
            "G_A": loss.generator(discriminator_b(fake_b)),
            "G_B": loss.generator(discriminator_a(fake_a)),
            "cycle_A": 10 * F.l1_loss(ba(fake_b), a),
            "cycle_B": 10 * F.l1_loss(ab(fake_a), b),
            "idt_A": 5 * F.l1_loss(ab(b), b),
            "idt_B": 5 * F.l1_loss(ba(a), a),
            "D_A": 0.5 * (loss.real(discriminator_b(b)) + loss.fake(discriminator_b(fake_b))),
            "D_B": 0.5 * (loss.real(discriminator_a(a)) + loss.fake(discriminator_a(fake_a))),
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
def test_layer_names_match_the_reference(network, layers):
    names = reference_names(network)
    assert set(names) == set(network.state_dict())
    assert len(set(names.values())) == len(names)
    for ours, theirs in layers.items():
        assert names[f"{ours}.weight"] == f"{theirs}.weight"
        assert names[f"{ours}.bias"] == f"{theirs}.bias"


def test_error_for_weights_of_another_network_lists_missing_and_unknown_names():
    weights = torch.load(GOLDEN / "weights" / "resnet6_zip.pth", weights_only=True)
    difference = "missing model.16.conv_block.1.weight and 15 more; unknown model.16.bias and 3 more"
    with pytest.raises(CheckpointError, match=re.escape(difference)):
        from_reference(weights, ResNetGenerator(4, 9))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (ResNetGenerator(1, 1, upsample="resize"), "the reference has no resnet with upsample=resize, "),
        (UNetGenerator(1, 7, upsample="resize"), "the reference has no unet with upsample=resize, "),
        (UNetGenerator(1, 7, detail=2), "the reference has no unet with detail=2, "),
        (PatchDiscriminator(1, norm=False), "no reference file fits PatchDiscriminator: "),
        (PixelDiscriminator(1), "no reference file fits PixelDiscriminator: "),
    ],
)
def test_networks_that_the_reference_lacks_are_rejected(network, reason):
    with pytest.raises(CheckpointError, match=f"^{reason}"):
        reference_names(network)


# Detection by names and shapes


FILES = {
    "resnet9_zip": ("resnet9", {"name": "resnet", "blocks": 9, "dropout": 0}),
    "resnet9_legacy": ("resnet9", {"name": "resnet", "blocks": 9, "dropout": 0}),
    "resnet9_dataparallel": ("resnet9", {"name": "resnet", "blocks": 9, "dropout": 0}),
    "resnet9_runstats_legacy": ("resnet9", {"name": "resnet", "blocks": 9, "dropout": 0}),
    "resnet9_dropout_zip": ("resnet9_dropout_eval", {"name": "resnet", "blocks": 9, "dropout": 0.5}),
    "resnet6_zip": ("resnet6", {"name": "resnet", "blocks": 6, "dropout": 0}),
}


@pytest.mark.parametrize("name", FILES)
def test_original_pth_files_give_the_outputs_of_the_reference(name):
    output, expected = FILES[name]
    detected = detect_architecture(torch.load(GOLDEN / "weights" / f"{name}.pth", weights_only=True))
    assert expected.items() <= detected.architecture.items()
    assert detected.architecture["channels"] == 4

    golden = np.load(GOLDEN / "weights" / "io.npz")
    y = load_detected(detected)(torch.from_numpy(golden["x"]))
    np.testing.assert_allclose(y.numpy(), golden[output], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (ReferenceUNet(3, 7), (128, 256)),
        (ReferenceUNet(2, 8), (256, 256)),
        (ReferenceUNet(5, 6), (64, 128)),
        (ReferenceUNet(4, 7, norm=RUNNING), (128, 128)),
        (ReferenceResNet(5, 9), (24, 20)),
        (ReferenceResNet(2, 6, dropout=True), (20, 24)),
        (ReferenceResNet(3, 1, norm=RUNNING), (16, 32)),
        (ReferenceResNet(3, 0), (16, 16)),
        (ReferenceUNet(3, 7, colours=(1, 3)), (128, 128)),
        (ReferenceUNet(3, 7, colours=(3, 1)), (128, 128)),
        (ReferenceResNet(3, 6, colours=(1, 3)), (16, 24)),
        (ReferenceResNet(3, 6, colours=(3, 1)), (16, 24)),
    ],
    ids=str,
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_width_and_depth_are_detected_from_reference_weights(network, size, wrapped):
    state = randomized(network).state_dict()
    detected = detect_architecture({f"module.{name}": tensor for name, tensor in state.items()} if wrapped else state)
    channels = int(detected.architecture["in_channels"])
    x = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for layer in network.modules():  # the reference never used the running statistics in old files
        if isinstance(layer, torch.nn.InstanceNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None

    with torch.no_grad():
        expected = network(x)
    assert expected.std() > 0.05
    torch.testing.assert_close(load_detected(detected)(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (ReferenceUNet(norm=BATCH), "it has batch norm (model.model.1.model.2 has weights of its own)"),
        (ReferenceResNet(norm=BATCH), "it has batch norm (model.2 has weights of its own)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_of_unsupported_generators_are_rejected(network, reason):
    with pytest.raises(CheckpointError) as caught:
        detect_architecture(network.state_dict())
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        ("model.26.", "it looks like a ResNetGenerator with missing layers"),
        ("model.13.", "it looks like a ResNetGenerator with missing layers"),
        ("model.22.", "missing model.22.weight and 1 more; unknown nothing"),
        ("model.18.conv_block.5", "missing model.18.conv_block.5.weight and 1 more"),
        ("model.", "it is not a generator of the reference"),
    ],
)
def test_weights_with_missing_layers_are_rejected(without, reason):
    state = {name: value for name, value in ReferenceResNet().state_dict().items() if not name.startswith(without)}
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        detect_architecture(state)


def test_discriminator_weights_are_rejected():
    names = reference_names(PatchDiscriminator(2))
    state = {names[name]: tensor for name, tensor in PatchDiscriminator(2).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"^it is a discriminator: "):
        detect_architecture(state)


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "size"),
    [
        (
            ResNetGenerator(3, 9),
            ReferenceResNet(3, 9),
            "--netG resnet_9blocks --ngf 3 --norm instance --no_dropout",
            16,
        ),
        (
            ResNetGenerator(4, 6, dropout=0.5),
            ReferenceResNet(4, 6, dropout=True),
            "--netG resnet_6blocks --ngf 4 --norm instance",
            16,
        ),
        (UNetGenerator(2, 8), ReferenceUNet(2, 8), "--netG unet_256 --ngf 2 --norm instance --no_dropout", 256),
        (UNetGenerator(3, 7), ReferenceUNet(3, 7), "--netG unet_128 --ngf 3 --norm instance --no_dropout", 128),
        (
            ResNetGenerator(3, 6, in_channels=1),
            ReferenceResNet(3, 6, colours=(1, 3)),
            "--netG resnet_6blocks --ngf 3 --norm instance --no_dropout --input_nc 1",
            16,
        ),
        (
            UNetGenerator(3, 7, out_channels=1),
            ReferenceUNet(3, 7, colours=(3, 1)),
            "--netG unet_128 --ngf 3 --norm instance --no_dropout --output_nc 1",
            128,
        ),
    ],
    ids=["resnet9", "resnet6 with dropout", "unet_256", "unet_128", "grey input", "grey output"],
)
def test_reference_networks_load_converted_weights(ours, theirs, options, size):
    randomized(ours, seed=2)
    theirs.load_state_dict(to_reference(ours), strict=True)
    assert reference_options(ours) == options
    x = torch.rand(1, ours.in_channels, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), ours(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (ResNetGenerator(2, 4), "a resnet with 9 and 6 blocks, this one has 4"),
        (UNetGenerator(2, 5), "a unet with 8 and 7 levels, this one has 5"),
        (ResNetGenerator(2, 9, upsample="resize"), "no resnet with upsample=resize"),
    ],
)
def test_generators_that_the_reference_cannot_build_are_rejected(network, reason):
    with pytest.raises(CheckpointError, match=reason):
        reference_options(network)


def load_detected(detected):
    network = build(detected.architecture)
    network.load_state_dict(detected.weights, strict=True)
    return network.eval().requires_grad_(False)
