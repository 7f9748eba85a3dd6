"""Tests of variants of components, and of nodes that map names to components."""

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from cyclestyle.cli import compose, nodes
from cyclestyle.errors import CommandError


class Term:
    """An example of a term."""

    def __init__(self, layers: int = 1) -> None:
        self.layers = layers

    def __call__(self, direction: object) -> float:
        return 0.0


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(CommandError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def composed(*arguments: str) -> DictConfig:
    cfg = compose.compose("train", arguments)
    compose.check(cfg)
    return cfg


# Variants


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_variant_overrides_keys_of_its_component(plus: str) -> None:
    cfg = composed(f"{plus}generator.ba.blocks=6", "discriminator.b.layers=2", "optimizer.discriminators.lr=4e-4")
    assert (compose.variant(cfg.generator, "ab").blocks, compose.variant(cfg.generator, "ba").blocks) == (9, 6)
    assert (compose.variant(cfg.discriminator, "a").layers, compose.variant(cfg.discriminator, "b").layers) == (3, 2)
    sides = [compose.variant(cfg.optimizer, side) for side in ("generators", "discriminators")]
    assert [side.lr for side in sides] == [2e-4, 4e-4]
    assert [list(side.betas) for side in sides] == [[0.5, 0.999]] * 2
    assert set(sides[0]) == set(sides[1]) == {"_target_", "lr", "betas"}


def test_variant_with_another_target_lacks_keys_that_only_the_component_target_accepts() -> None:
    cfg = composed("generator.ba._target_=cyclestyle.networks.UNetGenerator", "generator.ba.levels=2")
    assert set(compose.variant(cfg.generator, "ab")) == {"_target_", "channels", "blocks", "dropout", "upsample"}
    assert set(compose.variant(cfg.generator, "ba")) == {"_target_", "channels", "levels", "dropout", "upsample"}


@pytest.mark.parametrize("name", ["all", "lr"])
def test_unknown_variant_name_gives_keys_of_the_component(name: str) -> None:
    variant = compose.variant(composed("optimizer.discriminators.lr=4e-4").optimizer, name)
    assert dict(variant) == {"_target_": "torch.optim.Adam", "lr": 2e-4, "betas": [0.5, 0.999]}


def test_network_built_from_variant_has_values_of_that_variant() -> None:
    cfg = composed("generator.ba.blocks=1", "generator.channels=4", "generator.ba.channels=${seed}", "seed=5")
    assert compose.build(compose.variant(cfg.generator, "ba")).architecture["channels"] == 5
    assert compose.build(compose.variant(cfg.generator, "ab")).architecture["channels"] == 4


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("generator.ba.bloks=6", "no key generator.ba.bloks: did you mean generator.ba.blocks?"),
        ("generator.ba.blocks=six", "generator.ba.blocks=six: expected a whole number"),
        ("optimizer.generators.betas=[1]", "optimizer.generators.betas=[1]: expected a list of 2"),
        ("generator.ba=3", "generator.ba=3: generator.ba holds the keys that differ from generator"),
        ("generator.ba._target_=torch.nn.No", "generator.ba._target_=torch.nn.No cannot be found: "),
    ],
)
def test_mistake_in_variant_is_an_error(typed: str, message: str) -> None:
    assert message_of(lambda: composed(typed)).startswith(message)


def test_typed_key_that_the_variant_target_does_not_accept_is_an_error() -> None:
    typed = ["generator.ba._target_=cyclestyle.networks.UNetGenerator", "generator.ba.blocks=3"]
    assert message_of(lambda: composed(*typed)).startswith("no key generator.ba.blocks: ")


def test_variant_that_a_component_does_not_have_is_an_error() -> None:
    assert message_of(lambda: composed("trainer.ba.blocks=6")).startswith("no key trainer.ba.blocks")
    assert message_of(lambda: composed("generator.a.blocks=6")).startswith("no key generator.a.blocks")


# Keys that the program uses itself


def node(path: str, **values: Any) -> DictConfig:
    """Return the node at `path` in a config that holds nothing else but a seed."""
    cfg = OmegaConf.create({"seed": 3})
    OmegaConf.update(cfg, path, {"_target_": f"{__name__}.Term", **values}, force_add=True)
    selected = OmegaConf.select(cfg, path)
    assert isinstance(selected, DictConfig)
    return selected


def test_weight_and_interval_keys_are_split_from_component() -> None:
    own, rest = compose.split_program_keys(
        "objective.terms.nce", node("objective.terms.nce", weight="${seed}", layers=2)
    )
    assert (own, rest) == ({"weight": 3}, {"_target_": f"{__name__}.Term", "layers": 2})
    assert compose.build(rest).layers == 2
    assert compose.split_program_keys("objective.discriminator_terms.r1", node("objective.discriminator_terms.r1"))[
        0
    ] == {"weight": 1.0}
    assert compose.split_program_keys("tasks.kid", node("tasks.kid", every=500))[0] == {"every": 500}


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 10**400, True, "1", None])
def test_invalid_weight_of_loss_term_is_rejected(weight: object) -> None:
    message = message_of(
        lambda: compose.split_program_keys("objective.terms.x", node("objective.terms.x", weight=weight))
    )
    assert message == f"objective.terms.x.weight={weight}: expected a finite number, 0 or more"


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
def test_invalid_interval_of_task_is_rejected(every: object) -> None:
    message = message_of(lambda: compose.split_program_keys("tasks.x", node("tasks.x", every=every)))
    assert message == f"tasks.x.every={every}: expected a number of steps, 1 or more"


def test_task_without_interval_is_rejected() -> None:
    assert message_of(lambda: compose.split_program_keys("tasks.x", node("tasks.x"))).startswith(
        "tasks.x has no key every: set tasks.x.every to a number of steps"
    )


@pytest.mark.parametrize("name", ["my.term", "my term", "a/b", "ü", ""])
def test_component_name_with_other_characters_than_letters_and_digits_is_rejected(name: str) -> None:
    component = {"_target_": "torch.nn.Identity", "weight": 1.0}
    with pytest.raises(CommandError, match=r"^objective\.terms: the name .* of a component must consist of letters"):
        nodes.check_node("objective.terms", {name: component})
    nodes.check_node("objective.terms", {"my-term_2": component})
