"""Detection of the pretrained networks that losses use, and their names in the header of model files."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor, nn

from cyclestyle.checkpoints.directory import Checkpoints, read_model
from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError
from cyclestyle.model_files import export_formats, generator_file, weights
from cyclestyle.objectives.adversarial import LeastSquares
from cyclestyle.objectives.cyclegan import CycleGAN
from cyclestyle.objectives.sees import networks_seen
from cyclestyle.objectives.terms import Direction, Weighted
from cyclestyle.training.state import snapshot_model
from tests.evaluation.random_weights import write_random_weights
from tests.factories import GradientPenalty, tiny_objective, tiny_trainer


class Extractor(nn.Conv2d):
    """Frozen network that names itself, like those that `model_files.weights.load` returns."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.requires_grad_(False)
        self.sees = ("vgg19",)


class Perceptual(nn.Module):
    """Term with a pretrained network as a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Extractor(), nn.ReLU())

    def forward(self, direction: Direction) -> Tensor:
        return (self.features(direction.fake) - self.features(direction.source)).square().mean()


class PlainPerceptual:
    """Term that is no module, with a pretrained network in an attribute."""

    def __init__(self) -> None:
        self.features = Extractor()

    def __call__(self, direction: Direction) -> Tensor:
        return self.features(direction.fake).mean()


class Declares(GradientPenalty):
    """Term of the discriminators that names the networks that it uses."""

    sees = ("vgg16_hed", "efficientnet_lite0")


@pytest.mark.parametrize("term", [Perceptual(), PlainPerceptual()], ids=["module", "object"])
def test_network_in_a_term_is_seen(term: Any) -> None:
    assert networks_seen(tiny_objective(terms=[Weighted("content", term)])) == {"vgg19": "objective.terms.content"}


def test_network_of_weights_file_names_itself(tmp_path: Path) -> None:
    folder = write_random_weights(tmp_path, "efficientnet_lite0")
    term = nn.Sequential(weights.load("efficientnet_lite0", path=folder))
    assert networks_seen(tiny_objective(terms=[Weighted("content", term)])) == {
        "efficientnet_lite0": "objective.terms.content"
    }


def test_declared_networks_are_seen_and_sorted() -> None:
    objective = tiny_objective(discriminator_terms=[Weighted("r", Declares())], terms=[Weighted("p", Perceptual())])
    assert list(networks_seen(objective).items()) == [
        ("efficientnet_lite0", "objective.discriminator_terms.r"),
        ("vgg16_hed", "objective.discriminator_terms.r"),
        ("vgg19", "objective.terms.p"),
    ]


def test_networks_of_adversarial_loss_discriminators_and_objective_are_seen() -> None:
    class Loss(LeastSquares):
        sees = ("lpips_alex",)

    class Own(CycleGAN):
        sees = ("lpips_vgg",)

    objective = tiny_objective(adversarial=Loss())
    objective.discriminators.b.add_module("extractor", Extractor())
    objective.__class__ = Own
    assert networks_seen(objective) == {
        "lpips_alex": "adversarial", "lpips_vgg": "objective", "vgg19": "discriminator b"
    }  # fmt: skip


def test_term_of_weight_0_sees_nothing() -> None:
    assert networks_seen(tiny_objective(terms=[Weighted("content", Perceptual(), 0.0)])) == {}


def test_attribute_sees_that_is_a_text_is_rejected() -> None:
    term = GradientPenalty()
    term.sees = "vgg19"
    with pytest.raises(CommandError, match=r"^GradientPenalty\.sees is the text 'vgg19': expected a tuple of names$"):
        networks_seen(tiny_objective(discriminator_terms=[Weighted("r1", term)]))


def saved(folder: Path, **settings: Any) -> Path:
    trainer = tiny_trainer(**settings)
    return Checkpoints(folder).save(
        snapshot_model(trainer, ("a", "b")), trainer.state_dict(), trainer.rank_state_dict(), world=World()
    )


def header(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["cyclestyle"])


def test_model_file_and_exported_file_name_the_networks_that_losses_saw(tmp_path: Path) -> None:
    path = saved(tmp_path, terms=[Weighted("content", Perceptual())])
    assert header(path / "networks.safetensors")["losses_see"] == ["vgg19"]
    assert read_model(path).losses_see == ("vgg19",)
    sources = generator_file.read(path)
    assert [source.losses_see for source in sources.by_side.values()] == [("vgg19",)] * 2
    (exported,) = export_formats.files(sources, format="safetensors", direction="a2b")
    (tmp_path / exported.name).write_bytes(exported.content)
    assert generator_file.read(tmp_path / exported.name).by_side["ab"].losses_see == ("vgg19",)


def test_header_of_a_run_without_such_networks_is_unchanged(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert header(path / "networks.safetensors").keys() == {
        "version", "step", "domains", "generators", "discriminators"
    }  # fmt: skip
    assert read_model(path).losses_see == ()
