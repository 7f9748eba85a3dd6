"""Weights with which a new run starts (`init=`): model files with any of the four networks, and what is reported."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cyclestyle.checkpoints.model import write_model
from cyclestyle.errors import CheckpointError
from cyclestyle.export import export
from cyclestyle.model_files.original_weights import to_reference
from cyclestyle.networks import PatchDiscriminator
from cyclestyle.training.state import restore_or_init, snapshot_model
from cyclestyle.training.trainer import Trainer
from tests.factories import tiny_terms, tiny_trainer
from tests.reference_networks import ReferenceResNet, ReferenceUNet, randomized

DOMAINS = ("photo", "monet")
NETWORKS = {"generator ab": "generators.ab.", "generator ba": "generators.ba.",
            "discriminator a": "discriminators.a.", "discriminator b": "discriminators.b."}  # fmt: skip


@pytest.fixture(scope="module")
def source() -> Trainer:
    """Trainer whose networks and moving average differ from those of `start`."""
    trainer = tiny_trainer(seed=5, ema=0.9)
    assert trainer.average is not None
    for parameter in trainer.average.module.parameters():
        parameter.add_(1.0)
    return trainer


def start(path: Path, domains: tuple[str, str] = DOMAINS, **settings: object) -> tuple[Trainer, list[str]]:
    """Start a new run with the weights at `path`; return its trainer and the printed lines."""
    trainer = tiny_trainer(seed=0, ema=0.9, **settings)
    lines: list[str] = []
    restore_or_init(trainer, domains, None, init=str(path), report=lines.append)
    return trainer, [line.removeprefix(f"init={path}: ") for line in lines]


def tensors_of(trainer: Trainer, prefix: str) -> dict[str, Tensor]:
    return snapshot_model(trainer, DOMAINS).weights_under(prefix)


def fresh_networks(trainer: Trainer) -> set[str]:
    """Return the networks that have their weights of before `init`."""
    untouched = tiny_trainer(seed=0)
    return {name for name, prefix in NETWORKS.items() if equal(trainer, untouched, prefix)}


def equal(trainer: Trainer, other: Trainer, prefix: str, other_prefix: str | None = None) -> bool:
    first, second = tensors_of(trainer, prefix), tensors_of(other, other_prefix or prefix)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def saved(source: Trainer, folder: Path) -> Path:
    write_model(snapshot_model(source, DOMAINS), folder / "model.safetensors")
    return folder / "model.safetensors"


def test_training_from_a_model_file_starts_with_weights_of_its_last_step(source: Trainer, tmp_path: Path) -> None:
    trainer, lines = start(saved(source, tmp_path))
    assert lines == [f"starts with its {', '.join(NETWORKS)} (weights of the last step, not their moving average)"]
    assert all(equal(trainer, source, prefix) for prefix in NETWORKS.values())
    assert equal(trainer, source, "ema.", "generators.")


def test_training_from_one_exported_generator_reports_networks_with_random_weights(
    source: Trainer, tmp_path: Path
) -> None:
    export(saved(source, tmp_path), output=tmp_path / "out")
    trainer, lines = start(tmp_path / "out" / "monet2photo.safetensors")
    assert lines == [
        "starts with its generator ba (moving average of the weights)",
        "not in it, with fresh random weights: generator ab, discriminator a, discriminator b",
    ]
    assert equal(trainer, source, "generators.ba.", "ema.ba.")
    assert equal(trainer, trainer, "ema.", "generators.")
    assert fresh_networks(trainer) == {"generator ab", "discriminator a", "discriminator b"}


def test_training_from_a_folder_of_exported_files_starts_with_both_generators(source: Trainer, tmp_path: Path) -> None:
    export(saved(source, tmp_path), output=tmp_path / "out", weights="raw")
    trainer, lines = start(tmp_path / "out")
    assert lines == [
        "starts with its generator ab, generator ba",
        "not in it, with fresh random weights: discriminator a, discriminator b",
    ]
    assert equal(trainer, source, "generators.")

    (tmp_path / "out" / "more.safetensors").write_bytes((tmp_path / "out/monet2photo.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"out holds several files of network ba: give one of the files$"):
        start(tmp_path / "out")
    with pytest.raises(CheckpointError, match="it was trained on photo and monet, here they are the other way round"):
        start(tmp_path / "out" / "monet2photo.safetensors", ("monet", "photo"))


def write_reference(folder: Path) -> dict[str, nn.Module]:
    """Write all networks of the reference at two epochs; return those of `latest` by file name."""
    networks = {
        **{f"latest_net_G_{letter}.pth": ReferenceResNet(4, 2) for letter in "AB"},
        **{f"latest_net_D_{letter}.pth": PatchDiscriminator(4, 2) for letter in "AB"},
    }
    for seed, (name, network) in enumerate(networks.items()):
        randomized(network, seed=seed)
        weights = network.state_dict() if "_G_" in name else to_reference(network)
        torch.save(weights, folder / name)
        torch.save({key: tensor + 1 for key, tensor in weights.items()}, folder / name.replace("latest", "200"))
    return networks


def test_training_from_a_folder_of_original_weights_starts_with_all_four_networks(tmp_path: Path) -> None:
    networks = write_reference(tmp_path)
    trainer, lines = start(tmp_path)
    assert lines == [f"starts with its {', '.join(NETWORKS)}"]
    ab = torch.cat([tensor.flatten() for tensor in tensors_of(trainer, "generators.ab.").values()])
    assert torch.equal(ab, torch.cat([p.flatten() for p in networks["latest_net_G_A.pth"].state_dict().values()]))
    # The reference's discriminator A judges the outputs of generator A, which are images of domain b.
    for domain, letter in (("b", "A"), ("a", "B")):
        weights = networks[f"latest_net_D_{letter}.pth"].state_dict()
        assert all(torch.equal(tensors_of(trainer, f"discriminators.{domain}.")[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("latest_net_G_A.pth", "generator ab"),
        ("latest_net_G_B.pth", "generator ba"),
        ("200_net_D_A.pth", "discriminator b"),
        ("latest_net_D_B.pth", "discriminator a"),
    ],
)
def test_training_from_one_file_of_original_weights_starts_with_its_network(
    tmp_path: Path, name: str, network: str
) -> None:
    write_reference(tmp_path)
    trainer, lines = start(tmp_path / name, ("b", "a"))  # a .pth file states no domains, also not these two
    others = [other for other in NETWORKS if other != network]
    assert lines == [f"starts with its {network}", f"not in it, with fresh random weights: {', '.join(others)}"]
    assert fresh_networks(trainer) == set(others)


@pytest.mark.parametrize(
    ("name", "network", "note"),
    [
        ("monet2photo.pth", "generator ba", "direction monet2photo by the name of monet2photo.pth"),
        ("style_photo2monet.pth", "generator ab", "direction photo2monet by the name of style_photo2monet.pth"),
        ("style.pth", "generator ab", "style.pth states no direction: used for photo2monet"),
    ],
)
def test_training_from_a_weight_file_reports_assumed_direction(
    tmp_path: Path, name: str, network: str, note: str
) -> None:
    torch.save(randomized(ReferenceResNet(4, 2)).state_dict(), tmp_path / name)
    trainer, lines = start(tmp_path / name)
    assert lines[0] == f"starts with its {network} ({note})"
    assert network not in fresh_networks(trainer)


def test_training_from_a_weight_file_ignores_dropout_if_file_does_not_record_it(tmp_path: Path) -> None:
    torch.save(randomized(ReferenceResNet(4, 2, dropout=True)).state_dict(), tmp_path / "latest_net_G_A.pth")
    trainer, _ = start(tmp_path / "latest_net_G_A.pth")
    assert "generator ab" not in fresh_networks(trainer)


def test_training_from_a_model_file_reports_loss_terms_with_random_weights(source: Trainer, tmp_path: Path) -> None:
    trainer = tiny_trainer(seed=0, **tiny_terms())
    lines: list[str] = []
    restore_or_init(trainer, DOMAINS, None, init=str(saved(source, tmp_path)), report=lines.append)
    terms = "objective.terms.distance, objective.discriminator_terms.calibration"
    assert lines[1].endswith(f"not in it, with fresh random weights: {terms}")


def channels(folder: Path) -> Path:
    torch.save(randomized(ReferenceResNet(4, 2, colours=(1, 3))).state_dict(), folder / "latest_net_G_A.pth")
    return folder / "latest_net_G_A.pth"


def onnx(folder: Path) -> Path:
    (folder / "model.pth").write_bytes(b"\x08\x0a\x12\x07pytorch" + bytes(50))
    return folder / "model.pth"


def plugin(folder: Path) -> Path:
    model = snapshot_model(tiny_trainer(), DOMAINS)
    path = folder / "plugin.safetensors"
    write_model(model._replace(generators={side: {"name": "mine"} for side in model.generators}), path)
    return path


def unet(folder: Path) -> Path:
    torch.save(randomized(ReferenceUNet(2, 7)).state_dict(), folder / "latest_net_G_B.pth")
    return folder / "latest_net_G_B.pth"


def nothing(folder: Path) -> Path:
    save_file({"x": torch.zeros(1)}, folder / "x.safetensors")
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            channels,
            "init=latest_net_G_A.pth: its generator ab is in_channels=1 where the config has 3: set data.channels_a to "
            "its values, or choose another init=",
        ),
        (plugin, "plugin.safetensors: its generator ab: unknown architecture 'mine': expected one of resnet, unet"),
        (plugin, "if a package or module of yours defines it, give plugins=[module]"),
        (
            unet,
            "init=latest_net_G_B.pth: its generator ba is name=unet where the config has resnet: choose the same "
            "generator in the config, or another init=",
        ),
        (onnx, "model.pth is an ONNX file, whose weights cannot be trained: give the run folder"),
        (nothing, "x.safetensors: it is not a generator of the reference (its first layer is x): expected a ResNet or"),
    ],
)
def test_unusable_file_of_initial_weights_is_rejected_with_one_line_error(
    tmp_path: Path, write: object, reason: str
) -> None:
    path = write(tmp_path)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=re.escape(reason.replace("init=l", f"init={tmp_path}/l", 1))) as caught:
        start(path)
    assert "\n" not in str(caught.value)
