"""Tests of configs: composition from arguments, errors, checks against signatures, and launching of commands."""

import copy
import functools
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

import cyclestyle
from cyclestyle.cli import arguments as commandline
from cyclestyle.cli import compose as config
from cyclestyle.cli import dispatch, keys, multirun, signatures
from cyclestyle.cli import help as help_pages
from cyclestyle.errors import CommandError, CyclestyleError, DataError
from cyclestyle.objectives.adversarial import LeastSquares

EXPERIMENTS = list(help_pages.option_files([config.config_dir()], "experiment"))
OPTIONS = [
    [f"{group}={option}" for option in help_pages.option_files([config.config_dir()], group)]
    for group in config.groups("train")
    if group != "experiment"
]
# Combinations in which each option occurs at least once.
CHOICES = [tuple(filter(None, chosen)) for chosen in itertools.zip_longest(*OPTIONS)]

AWKWARD = {
    "umlaut": "/d/Müller/Größe",
    "space": "my photos/summer 2019 ",
    "brackets": "photos (2019)/[a]/x",
    "comma": "a,b.jpg",
    "equals": "a=b=c.jpg",
    "single quote": "it's",
    "double quote": 'the "best"',
    "both quotes": """'"'" """,
    "hash": "a #1",
    "dollar": "$HOME/$x",
    "braces": "{a: 1}",
    "reference": "runs/${name}/${oc.env:HOME}/${",
    "backslash": "C:\\photos\\",
    "backslash and reference": "\\${name}\\\\${x}\\",
    "emoji": "📷👨‍👩‍👧/🌊.jpg",
    "percent and others": "100% @home; a&b|c!*?<>:",
    "number": "2019",
    "word": "true",
    "list": "[1,2]",
    "interpunct": "~~x",
    "leading plus": "+x",
}


def message_of(call: Callable[[], object]) -> str:
    """Return the message of the CommandError that `call` raises; the message must be one line."""
    with pytest.raises(CommandError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def composing(*overrides: str, command: str = "train") -> str:
    return message_of(lambda: config.compose(command, overrides))


# Composing


@pytest.mark.parametrize("typed", ["experiment=monet", "+experiment=monet", "++experiment=monet"])
def test_experiment_is_chosen_with_or_without_leading_plus(typed: str) -> None:
    cfg = config.compose("train", [typed])
    assert (cfg.name, cfg.run_dir, cfg.data.root, cfg.data.domain_a) == (
        "monet",
        "runs/monet",
        "data/monet2photo",
        "monet",
    )


@pytest.mark.parametrize("typed", ["trainer.steps=7", "+trainer.steps=7", "++trainer.steps=7"])
def test_command_line_key_overrides_experiment(typed: str) -> None:
    assert config.compose("train", [typed, "experiment=demo"]).trainer.steps == 7


@pytest.mark.parametrize("typed", ["generator=unet", "+generator=unet"])
def test_option_of_config_group_is_chosen_on_command_line(typed: str) -> None:
    assert config.compose("train", [typed]).generator._target_ == "cyclestyle.networks.UNetGenerator"


def test_default_config_equals_recipe_of_the_paper() -> None:
    cfg = config.compose("train", [])
    assert config.to_plain(cfg)["objective"] == {
        "_target_": "cyclestyle.objectives.cyclegan.CycleGAN",
        "cycle_a": 10.0,
        "cycle_b": 10.0,
        "identity": 0.5,
        "terms": {},
        "discriminator_terms": {},
    }
    assert (cfg.generator.channels, cfg.generator.blocks, cfg.discriminator.channels) == (64, 9, 64)
    assert (cfg.data.load_size, cfg.data.crop_size, cfg.data.resize) == (286, 256, "stretch")
    assert (cfg.optimizer.lr, list(cfg.optimizer.betas), cfg.pool.size, cfg.ema.decay) == (2e-4, [0.5, 0.999], 50, 0)
    assert (cfg.schedule.constant_epochs, cfg.schedule.decay_epochs, cfg.trainer.batch_size) == (100, 100, 1)


@pytest.mark.parametrize("experiment", sorted(set(EXPERIMENTS) - {"demo", "smoke"}))
def test_experiments_of_the_paper_change_only_data_keys(experiment: str) -> None:
    usual, cfg = config.to_plain(composed(None)), config.to_plain(composed(experiment))
    changed = {key for key in usual if usual[key] != cfg[key]}
    assert changed == {"name", "run_dir", "data"}
    assert {key for key in usual["data"] if usual["data"][key] != cfg["data"][key]} == {
        "root",
        "domain_a",
        "domain_b",
        "homepage",
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_name_key_of_experiment_equals_its_file_name(experiment: str) -> None:
    assert composed(experiment).name == experiment


@functools.cache
def composed(experiment: str | None) -> DictConfig:
    return config.compose("train", [f"experiment={experiment}"] if experiment else [])


# Paths and names as typed


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD.keys())
def test_every_path_key_is_taken_as_typed(text: str) -> None:
    for command, plus in itertools.product(config.SCHEMAS, ("", "+", "++")):
        cfg = copy.deepcopy(defaults(command))  # same steps as in `compose`, but without Hydra, which is slow
        for key in literal_keys(command):
            config.set_key(cfg, commandline.split(f"{plus}{key}={text}"), command)
        plain = dict(config.walk(config.to_plain(cfg)))
        takes_list = ["checkpoint"] if command == "evaluate" and text == AWKWARD["list"] else []  # several models
        assert [k for k in literal_keys(command) if OmegaConf.select(cfg, k) != text or plain[k] != text] == takes_list


@functools.cache
def defaults(command: str) -> DictConfig:
    return config.compose(command, [])


@functools.cache
def literal_keys(command: str) -> list[str]:
    """Path and text keys of a command, except `name` and `run_dir`, in which interpolations are resolved."""
    known = dict(config.walk(config.to_plain(defaults(command))))
    return sorted(key for key in keys.TAKEN_AS_TYPED - keys.INTERPOLATED if not isinstance(known.get(key, {}), dict))


def test_each_command_takes_only_expected_keys_as_typed() -> None:
    data = ["data.a", "data.b", "data.domain_a", "data.domain_b", "data.root", "data.test_a", "data.test_b"]
    assert literal_keys("train") == [*data, "init", "scores.path"]
    assert literal_keys("translate") == ["checkpoint", "direction", "input", "output"]
    folders = [key for key in data if "domain" not in key]
    assert literal_keys("evaluate") == [
        "checkpoint", *folders, "direction", "features.path", "input", "output", "target", "truth"
    ]  # fmt: skip
    assert literal_keys("export") == ["checkpoint", "direction", "output"]
    assert literal_keys("download") == ["path"]


PLAIN = {name: text.replace("/", "-") for name, text in AWKWARD.items() if "${" not in text}


@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN.keys())
def test_name_and_run_dir_without_interpolations_are_taken_as_typed(text: str) -> None:
    cfg = config.compose("train", [f"name={text}", f"data.root={text}"])
    assert (cfg.name, cfg.data.root, cfg.run_dir) == (text, text, f"runs/{text}")
    assert config.to_plain(cfg)["run_dir"] == f"runs/{text}"


def test_escaped_interpolation_is_read_back_as_typed() -> None:
    rng = random.Random(0)
    for _ in range(1000):
        text = "".join(rng.choice("\\${}a:,'\" ") for _ in range(rng.randrange(9)))
        cfg = OmegaConf.create({"p": commandline.escape_interpolation(text), "q": "x/${p}"})
        assert (cfg.p, cfg.q) == (text, f"x/{text}")


def test_tilde_expands_to_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/käthe")
    cfg = config.compose("train", ["data.a=~/x", "+data.b=~", "++run_dir=~/runs (old)"])
    assert (cfg.data.a, cfg.data.b, cfg.run_dir) == ("/home/käthe/x", "/home/käthe", "/home/käthe/runs (old)")


def test_path_key_set_to_null_becomes_none() -> None:
    cfg = config.compose("train", ["experiment=monet", "data.root=null", "init=null"])
    assert cfg.data.root is None
    assert cfg.init is None


@pytest.mark.parametrize("name", ["a/b", "..", ".", "/x"])
def test_invalid_folder_name_is_rejected(name: str) -> None:
    assert composing(f"name={name}").startswith(f"name={name} is no name for a folder")


def test_build_keeps_paths_as_typed_and_passes_extra_arguments() -> None:
    text = AWKWARD["backslash and reference"]
    cfg = config.compose("train", [f"data.root={text}"])
    network = object()
    node = OmegaConf.create({"_target_": f"{__name__}.Part", "size": 3})
    node.root = cfg.data._get_node("root")
    part = config.build(node, network=network)
    assert (part.root, part.network, part.size) == (text, network, 3)


# Errors


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("trainer.stesp=3", "no key trainer.stesp: did you mean trainer.steps?"),
        ("+trainer.stesp=3", "no key trainer.stesp: did you mean trainer.steps?"),
        ("steps=3", "no key steps: did you mean trainer.steps?"),
        ("sed=3", "no key sed: did you mean seed?"),
        ("genrator=unet", "no key genrator: did you mean generator?"),
        ("genrator.channels=3", "no key genrator.channels: did you mean generator.channels?"),
        ("generator=resnet5", "no generator resnet5: did you mean resnet?"),
        ("generator=vit", "no generator vit: there are resnet, unet, unet_small"),
        ("experiment=mone", "no experiment mone: did you mean monet?"),
        ("zzz.qqq=x", "no key zzz.qqq: --help lists the keys"),
        ("foo", "foo: expected key=value, such as name=mine or trainer.steps=2000"),
        ("seed=abc", "seed=abc: expected a whole number"),
        ("seed=1.5", "seed=1.5: expected a whole number"),
        ("seed=true", "seed=true: expected a whole number"),
        ("name=null", "name=null: expected text"),
        (
            "objective=3",
            "objective=3: objective holds keys, set one of them: "
            "_target_, cycle_a, cycle_b, identity, terms, discriminator_terms",
        ),
        (
            "objective=null",
            "objective=null: objective holds keys, set one of them: "
            "_target_, cycle_a, cycle_b, identity, terms, discriminator_terms",
        ),
        ("trainer.steps=1,2", "trainer.steps=1,2 has several values: add --multirun to train once for each"),
        ("generator=unet,resnet", "generator=unet,resnet has several values: add --multirun to train once for each"),
        ("experiment=monet,maps", "experiment=monet,maps has several values: add --multirun to train once for each"),
    ],
)
def test_mistyped_argument_error_suggests_closest(typed: str, message: str) -> None:
    assert composing(typed) == message


def test_unparsable_value_error_names_key_and_value() -> None:
    assert composing("trainer.steps=(3").startswith("trainer.steps=(3 cannot be read: ")


@pytest.mark.parametrize("key", ["data.root", "trainer.steps", "generator", "experiment", "name"])
def test_empty_value_error_names_key(key: str) -> None:
    assert composing(f"{key}=").startswith(f"{key}= has no value")


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of the program's YAML files, to which a test can add files."""
    folder = tmp_path / "cönfigs (copy)"
    shutil.copytree(config.config_dir(), folder)
    monkeypatch.setattr(config, "config_dir", lambda: folder)
    return folder


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("schedul:\n  decay_epochs: 3\n", "schedul"),
        ("seed: abc\n", "abc"),
        ("a: [\n", "own.yaml"),
        ("name: ${x}\n", "x"),
    ],
)
def test_mistake_in_experiment_file_is_an_error(own_configs: Path, content: str, word: str) -> None:
    (own_configs / "experiment" / "own.yaml").write_text(f"# @package _global_\n# Own.\n{content}")
    assert word in composing("experiment=own")


def test_interpolation_of_unknown_key_is_an_error() -> None:
    assert "nothing" in composing("ema.decay=${nothing}")


def test_interpolation_on_command_line_is_resolved() -> None:
    cfg = config.compose("train", ["schedule.decay_epochs=${schedule.constant_epochs}", "schedule.constant_epochs=7"])
    assert cfg.schedule.decay_epochs == 7


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        (["name=${data.domain_a}2x", "data.domain_a=photo"], "name", "photo2x"),
        (["name=${oc.env:OWN}"], "run_dir", "runs/own value"),
        (["run_dir=${oc.env:OWN}/${name}/${seed}", "name=x"], "run_dir", "own value/x/0"),
        (["name=a\\${b}"], "name", "a${b}"),
        (["experiment=own"], "run_dir", "own value/7"),
        (["experiment=own"], "data.root", "own value/photo"),
    ],
)
def test_interpolations_are_resolved_in_yaml_name_and_run_dir(
    own_configs: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], key: str, value: str
) -> None:
    monkeypatch.setenv("OWN", "own value")
    (own_configs / "experiment" / "own.yaml").write_text(
        "name: ${seed}\nseed: 7\nrun_dir: ${oc.env:OWN}/${name}\n"
        "data:\n  root: ${oc.env:OWN}/${.domain_a}\n  domain_a: photo\n"
    )
    assert OmegaConf.select(config.compose("train", typed), key) == value


@pytest.mark.parametrize(
    "typed",
    [
        ["name=${now:%Y-%m-%d}"],
        ["name=x_${ now:%H}"],
        ["run_dir=runs/${now:%H}"],
        ["name=${data.homepage}", "data.homepage=${now:%H}"],
        ["experiment=own"],
    ],
)
def test_time_in_name_or_run_dir_is_rejected(own_configs: Path, typed: list[str]) -> None:
    (own_configs / "experiment" / "own.yaml").write_text("name: own\nrun_dir: runs/${now:%H}\n")
    assert "the same command must find its run again" in composing(*typed)


@pytest.mark.parametrize("name", ["a${", "${", "${nothing}", "${oc.env:NO_SUCH_VARIABLE_}", "${name}", "${run_dir}"])
def test_name_with_unresolvable_interpolation_is_an_error(name: str) -> None:
    composing(f"name={name}")


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        ("train", ["data.root=${oc.env:HOME}"]),
        ("train", ["init=runs/${name}"]),
        ("translate", ["checkpoint=x", "input=y", "output=${oc.env:HOME}/out"]),
        ("evaluate", ["checkpoint=x", "input=${", "target=z"]),
    ],
)
def test_nonexistent_path_with_interpolation_is_rejected(command: str, typed: list[str]) -> None:
    assert "does not exist: paths on the command line are taken as typed" in checking(*typed, command=command)


def test_existing_path_that_looks_like_an_interpolation_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "${x}").mkdir()
    cfg = config.compose("train", [f"data.root={tmp_path}/${{x}}"])
    config.check(cfg)
    assert cfg.data.root == f"{tmp_path}/${{x}}"


class Folders:
    """A data class whose key `a` takes several folders, and whose key `b` takes one."""

    def __init__(self, a: str | list[str], b: str) -> None: ...


def test_path_in_brackets_is_a_list_for_a_key_that_takes_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    own = f"data._target_={__name__}.Folders"
    assert config.compose("train", [own, "data.a=[x,~/y]", "data.b=[x,y]"]).data.a == ["x", "/home/ada/y"]
    assert config.compose("train", [own, "data.b=[x,y]"]).data.b == "[x,y]"
    assert config.compose("train", ["data.a=[x]"]).data.a == "[x]"
    assert config.compose("train", [own, "data.a=[a].jpg"]).data.a == "[a].jpg"
    assert config.compose("translate", ["input=[a]"]).input == "[a]"
    assert config.compose("train", [own, 'data.a=["x, y", Müller (2019)]']).data.a == ["x, y", "Müller (2019)"]
    assert "does not exist: paths" in checking(own, "data.a=[${x}]", "data.b=y")
    (tmp_path / "[x,y]").mkdir()
    assert config.compose("train", [own, "data.a=[x,y]"]).data.a == "[x,y]"


# Adding and removing keys


@pytest.mark.parametrize(
    ("typed", "remaining"), [("~logger.console", {"tensorboard", "metrics"}), ("~logger", set[str]())]
)
def test_tilde_removes_one_logger_or_all_loggers(typed: str, remaining: set[str]) -> None:
    cfg = config.compose("train", [typed])
    config.check(cfg)
    assert set(cfg.logger) == remaining


@pytest.mark.parametrize("typed", ["~optimizer.betas", "~optimizer.betas=[0.5,0.999]"])
def test_tilde_removes_key_of_component(typed: str) -> None:
    cfg = config.compose("train", [typed])
    config.check(cfg)
    assert set(cfg.optimizer) == {"_target_", "lr"}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("~trainer.steps", "~trainer.steps: trainer.steps cannot be removed, only set to another value"),
        ("~generator", "~generator: generator cannot be removed, only set to another value"),
        ("~generator._target_", "~generator._target_: generator._target_ cannot be removed, only set to another value"),
        ("~data.crop_size", "~data.crop_size: data.crop_size cannot be removed, only set to another value"),
        ("~optimizer.beta", "no key optimizer.beta: did you mean optimizer.betas?"),
        ("~optimizer.lr=3", "~optimizer.lr=3: the value of optimizer.lr is 0.0002, not 3"),
        ("~", "~: expected ~key or ~key=value, such as ~logger.tensorboard"),
        ("~seed=", "~seed=: expected ~key or ~key=value, such as ~logger.tensorboard"),
        ("logger.consle=null", "no key logger.consle: did you mean logger.console?"),
        ("logger.consle.x=3", "no key logger.consle: did you mean logger.console?"),
    ],
)
def test_impossible_removal_or_addition_is_an_error(typed: str, message: str) -> None:
    assert composing(typed) == message


@pytest.mark.parametrize(
    ("path", "own"),
    [("objective.terms", "weight=0.5"), ("objective.discriminator_terms", "weight=0"), ("tasks", "every=500")],
)
def test_loss_term_or_periodic_task_is_added_on_command_line(path: str, own: str) -> None:
    target = f"+{path}.mine._target_={__name__}.Part"
    cfg = config.compose("train", [target, f"{path}.mine.{own}", f"{path}.mine.size=3"])
    config.check(cfg)
    assert OmegaConf.select(cfg, f"{path}.mine.size") == 3
    key, _, value = own.partition("=")
    assert checking(target, f"{path}.mine.{key}=-{value}1").startswith(f"{path}.mine.{key}=-{value}1: expected ")
    assert checking(target, f"{path}.mine.{own}", f"{path}.mine.sizes=3").startswith(f"no key {path}.mine.sizes: ")
    removed = config.compose("train", [target, f"{path}.mine.{own}", f"~{path}.mine"])
    config.check(removed)
    assert OmegaConf.select(removed, path) == {}


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_custom_logger_is_added_on_command_line(plus: str) -> None:
    target = f"{plus}logger.mine._target_={__name__}.Part"
    for typed in ([target, f"{plus}logger.mine.size=3"], [f"{plus}logger.mine.size=3", target]):
        cfg = config.compose("train", typed)
        config.check(cfg)
        assert config.to_plain(cfg)["logger"]["mine"] == {"_target_": f"{__name__}.Part", "size": 3}
    cfg = config.compose("train", [f"{plus}logger.mine={{_target_: {__name__}.Part, size: 3}}"])
    config.check(cfg)
    assert config.to_plain(cfg)["logger"]["mine"] == {"_target_": f"{__name__}.Part", "size": 3}
    assert checking(target, "logger.mine.sizes=3") == "no key logger.mine.sizes: did you mean logger.mine.size?"


# Checking keys against signatures


class Part:
    """An example of a component."""

    def __init__(
        self,
        size: int,
        *,
        rate: float = 1.0,
        betas: tuple[float, float] = (0.5, 0.9),
        root: Path | None = None,
        level: Literal[1, 2] = 1,
        flip: bool = True,
        mode: Literal["auto", "never"] = "auto",
        devices: int | Literal["auto"] = 1,
        names: list[str] | None = None,
        network: Any = None,
    ) -> None:
        self.size, self.root, self.network = size, root, network


class Other:
    def __init__(self, size: str, depth: int) -> None: ...


class Rest:
    def __init__(self, depth: int, **rest: object) -> None: ...


def binds(node: dict[str, Any], *targets: Callable[..., Any]) -> None:
    signatures.bind("part", node, targets or [Part])


@pytest.mark.parametrize(
    "node",
    [
        {"size": 3, "rate": 1, "betas": [0, 0.9], "root": "x", "flip": False, "mode": "never", "devices": "auto"},
        {"rate": 1e-3, "root": None, "devices": 2, "names": ["a"], "network": 3},
        {},
    ],
)
def test_values_matching_their_annotations_are_accepted(node: dict[str, Any]) -> None:
    binds(node)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("size", "abc", "part.size=abc: expected a whole number"),
        ("size", 1.5, "part.size=1.5: expected a whole number"),
        ("size", 1.0, "part.size=1.0: expected a whole number"),
        ("size", True, "part.size=true: expected a whole number"),
        ("size", None, "part.size=null: expected a whole number"),
        ("rate", "fast", "part.rate=fast: expected a number"),
        ("rate", True, "part.rate=true: expected a number"),
        ("betas", [0.5], "part.betas=[0.5]: expected a list of 2"),
        ("betas", [0.5, "x"], 'part.betas=[0.5, "x"]: expected a list of 2'),
        ("betas", 0.5, "part.betas=0.5: expected a list of 2"),
        ("root", 3, "part.root=3: expected a path or null"),
        ("level", True, "part.level=true: expected 1 or 2"),
        ("flip", "yes", "part.flip=yes: expected true or false"),
        ("flip", 1, "part.flip=1: expected true or false"),
        ("mode", "maybe", "part.mode=maybe: expected auto or never"),
        ("devices", "all", "part.devices=all: expected a whole number or auto"),
        ("names", [3], "part.names=[3]: expected a list or null"),
        ("names", "abc", "part.names=abc: expected a list or null"),
        ("siez", 3, "no key part.siez: did you mean part.size?"),
    ],
)
def test_type_error_names_value_and_expected_type(key: str, value: object, expected: str) -> None:
    assert message_of(lambda: binds({key: value})) == expected


def test_key_is_accepted_if_any_target_has_the_parameter() -> None:
    binds({"size": 3, "depth": 4}, Part, Other)
    binds({"size": "large", "depth": 4}, Part, Other)
    assert message_of(lambda: binds({"depht": 4}, Part, Other)) == "no key part.depht: did you mean part.depth?"


def test_keys_that_a_target_takes_by_kwargs_are_checked_against_next_target() -> None:
    binds({"depth": 3, "anything": 4}, Rest)
    binds({"depth": 3, "size": 4}, Rest, Part)
    assert "no key part.anything" in message_of(lambda: binds({"depth": 3, "anything": 4}, Rest, Part))


def test_values_are_accepted_if_annotations_cannot_be_resolved() -> None:
    def target(size: "Unknown") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    binds({"size": 3}, target)
    assert "no key part.sizes" in message_of(lambda: binds({"sizes": 3}, target))


def test_arguments_for_a_target_are_the_keys_that_it_accepts() -> None:
    node = OmegaConf.create({"size": 3, "names": ["a"], "depth": 2})
    assert config.arguments_for(node, Part) == {"size": 3, "names": ["a"]}
    assert type(config.arguments_for(node, Part)["names"]) is list


def test_config_key_for_argument_that_the_program_sets_is_rejected() -> None:
    node = OmegaConf.create({"_target_": f"{__name__}.Part", "size": 3, "network": 1})
    assert message_of(lambda: config.build(node, network=2)).startswith(
        f"network of {__name__}.Part is the program's own"
    )


# Checking complete configs against the program's components


def checking(*overrides: str, command: str = "train") -> str:
    cfg = config.compose(command, overrides)
    return message_of(lambda: config.check(cfg))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_matches_signatures(experiment: str) -> None:
    config.check(composed(experiment))


@pytest.mark.parametrize("chosen", CHOICES, ids=" ".join)
def test_every_group_option_matches_signatures(chosen: tuple[str, ...]) -> None:
    config.check(config.compose("train", chosen))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("generator.chanels=3", "no key generator.chanels: did you mean generator.channels?"),
        ("optimizer.lrr=3", "no key optimizer.lrr: did you mean optimizer.lr?"),
        ("data.crop_size=abc", "data.crop_size=abc: expected a whole number"),
        ("trainer.steps=abc", "trainer.steps=abc: expected a whole number or null"),
        ("trainer.batch_size=1.5", "trainer.batch_size=1.5: expected a whole number"),
        ("trainer.threads=many", "trainer.threads=many: expected a whole number or auto"),
        ("trainer.precision=bf61", "trainer.precision=bf61: expected auto, fp32, bf16 or fp16"),
        ("resume.mode=maybe", "resume.mode=maybe: expected auto or never"),
        ("generator._target_=torch.nn.Nothing", "generator._target_=torch.nn.Nothing cannot be found: "),
        ("generator._target_=nowhere.Net", "generator._target_=nowhere.Net cannot be found: No module named 'nowhere'"),
        ("generator._target_=torch.pi", "generator._target_=torch.pi is neither a class nor a function"),
        ("logger.console.colour=3", "no key logger.console.colour: "),
    ],
)
def test_nested_keys_and_values_are_checked_against_signatures(typed: str, message: str) -> None:
    assert checking(typed).startswith(message)


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        ("translate", ["checkpoint=x", "input=y", "output=z"]),
        ("evaluate", ["checkpoint=x", "input=y"]),
        ("export", ["checkpoint=x"]),
    ],
)
def test_keys_of_commands_other_than_train_are_checked_against_signatures(command: str, typed: list[str]) -> None:
    config.check(config.compose(command, typed))
    assert checking(*typed, "weights=best", command=command) == "weights=best: expected ema or raw"


def test_key_absent_from_yaml_is_accepted_if_it_is_a_parameter() -> None:
    cfg = config.compose("train", ["optimizer.weight_decay=0.01"])
    config.check(cfg)
    assert cfg.optimizer.weight_decay == 0.01


def test_synthetic_data_accepts_keys_of_unpaired_folders() -> None:
    config.check(config.compose("train", ["data=scenes", "data.flip=false"]))
    assert checking("data=scenes", "data.filp=false") == "no key data.filp: did you mean data.flip?"


def test_logger_set_to_null_passes_check_and_stays_null() -> None:
    cfg = config.compose("train", ["logger.tensorboard=null"])
    config.check(cfg)
    assert cfg.logger.tensorboard is None


class OwnLoss(LeastSquares):
    """An adversarial loss with an argument."""

    def __init__(self, size: int) -> None:
        self.size = size


def test_custom_component_is_checked_and_built() -> None:
    cfg = config.compose("train", [f"adversarial._target_={__name__}.OwnLoss", "adversarial.size=3"])
    config.check(cfg)
    assert config.build(cfg.adversarial).size == 3


def test_node_without_target_is_rejected(own_configs: Path) -> None:
    (own_configs / "generator" / "own.yaml").write_text("# Own.\nchannels: 3\n")
    assert checking("generator=own").startswith("generator.channels=3 is no component")


@pytest.mark.parametrize(
    ("command", "typed", "missing"),
    [
        ("translate", ["input=x"], ["checkpoint", "output"]),
        ("translate", ["checkpoint=x", "output=y"], ["input"]),
        ("evaluate", ["truth=x"], ["checkpoint"]),
        ("export", ["format=onnx"], ["checkpoint"]),
        ("download", ["path=x"], ["features"]),
    ],
)
def test_missing_config_values_are_named_in_one_line_error(command: str, typed: list[str], missing: list[str]) -> None:
    message = checking(*typed, command=command)
    assert message.startswith(f"{command} needs {missing[0]}=... (")
    assert [word.removesuffix("=...") for word in message.split() if word.endswith("=...")] == missing


# Launching


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Function that launches a command with the arguments `words` and returns exit code, stdout and stderr."""

    def launched(*words: str, command: str = "train", run: Callable[[DictConfig], int | None] | None = None) -> Any:
        monkeypatch.setattr(sys, "argv", [command, *words])
        with pytest.raises(SystemExit) as caught:
            dispatch.launch(command, run or (lambda cfg: None))
        return caught.value.code, *capsys.readouterr()

    return launched


Launch = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", ["train", "translate", "evaluate", "export", "download"])
def test_command_without_arguments_prints_usage(launch: Launch, command: str) -> None:
    code, _, err = launch(command=command, run=lambda cfg: pytest.fail("ran"))
    assert code == 2
    assert 2 <= sum(line.startswith(f"  python -m cyclestyle.{command} ") for line in err.splitlines()) <= 5
    assert "--help" in err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_exits_0_without_running(launch: Launch, flag: str) -> None:
    code, out, err = launch("experiment=monet", flag, run=lambda cfg: pytest.fail("ran"))
    assert (code, err) == (0, "")
    assert out.startswith("Usage: ")


def test_launched_command_gets_config_and_its_return_value_is_the_exit_code(launch: Launch) -> None:
    ran: list[DictConfig] = []
    assert launch("experiment=smoke", "seed=7", run=lambda cfg: ran.append(cfg))[0] == 0
    assert (ran[0].name, ran[0].seed) == ("smoke", 7)
    assert launch("experiment=smoke", run=lambda cfg: 75)[0] == 75


def test_user_error_gives_one_line_and_exit_code(launch: Launch) -> None:
    assert launch("trainer.stesp=3") == (2, "", "cyclestyle train: no key trainer.stesp: did you mean trainer.steps?\n")
    assert launch("generator.chanels=3")[::2] == (
        2,
        "cyclestyle train: no key generator.chanels: did you mean generator.channels?\n",
    )

    def run(cfg: DictConfig) -> int:
        raise DataError("no images in x")

    assert launch("experiment=smoke", run=run) == (3, "", "cyclestyle train: no images in x\n")


def test_ctrl_c_exits_130(launch: Launch) -> None:
    def run(cfg: DictConfig) -> int:
        raise KeyboardInterrupt

    assert launch("experiment=smoke", run=run) == (130, "", "")


def test_unexpected_error_keeps_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cfg: DictConfig) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["train", "experiment=smoke"])
    with pytest.raises(ZeroDivisionError):
        dispatch.launch("train", run)


def test_cfg_job_flag_prints_resolved_config(launch: Launch) -> None:
    code, out, _ = launch("--cfg", "job", "experiment=demo", "data.root=a ${b} ü", run=lambda cfg: pytest.fail("ran"))
    assert code == 0
    assert "run_dir: runs/demo\n" in out
    assert "  root: a \\${b} ü\n" in out  # escaped, so that experiment=FILE reads the path as it was typed


@pytest.mark.parametrize("flags", [["--cfg"], ["--cfg=job"], ["-c", "job"], ["--cfg", "job", "--resolve"]])
def test_all_forms_of_cfg_flag_print_config(launch: Launch, flags: list[str]) -> None:
    assert launch("seed=7", *flags)[1].splitlines()[1] == "seed: 7"
    assert launch(*flags, "seed=7")[1].splitlines()[1] == "seed: 7"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cfg", "hydra"], "--cfg hydra: Hydra's own config has no effect here; --cfg job prints the config of the "),
        (["--cfg=all"], "--cfg all: there is --cfg job"),
        (["--config-dir"], "--config-dir needs a value: a folder such as --config-dir configs"),
        (["-cd", "nowhere", "seed=1"], "--config-dir nowhere: no such folder"),
        (["--shell-completion", "fish"], "no completion for fish: there are bash and zsh"),
    ],
)
def test_mistake_in_flag_is_an_error(launch: Launch, words: list[str], message: str) -> None:
    code, _, err = launch(*words)
    assert code == 2
    assert err.startswith(f"cyclestyle train: {message}")


def test_keys_dropped_for_a_new_target_are_reported_once_by_the_first_process(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["optimizer._target_=torch.optim.SGD"], ["-m", "seed=1,2", "optimizer._target_=torch.optim.SGD"]):
        assert launch(*words)[2] == "cyclestyle: optimizer: betas is not a key of torch.optim.SGD, left out\n"
    for name, value in (("RANK", "1"), ("CYCLESTYLE_PROCESSES", "x")):
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            assert launch("optimizer._target_=torch.optim.SGD")[2] == ""


@pytest.mark.parametrize("command", ["train", "translate"])
def test_version_and_info_flags_print_version_and_environment(launch: Launch, command: str) -> None:
    assert launch("--version", command=command)[1] == f"cyclestyle {cyclestyle.__version__}\n"
    out = launch("--info", command=command)[1]
    for text in (torch.__version__, str(config.config_dir()), "CUDA", "cpu", "Python"):
        assert text in out


def test_printed_config_shows_chosen_values_in_place_of_auto() -> None:
    cfg = config.compose("train", [])
    text = config.yaml(cfg, auto={"trainer.device": "cpu", "trainer.precision": "bf16"})
    assert "  device: cpu\n" in text
    assert "  precision: bf16\n" in text
    assert cfg.trainer.device == "auto"


# Several runs


def test_multirun_runs_every_combination_in_own_folder(launch: Launch) -> None:
    ran: list[tuple[str, str, int, list[str]]] = []

    def run(cfg: DictConfig) -> None:
        ran.append((cfg.run_dir, cfg.generator._target_.rpartition(".")[2], cfg.seed, sys.argv[1:]))

    name = "name=a,b \\${c}"
    code, out, _ = launch("-m", "generator=resnet,unet", "seed=1,2", name, "trainer.steps=3", run=run)
    assert code == 0
    assert [job[:3] for job in ran] == [
        ("runs/a,b ${c}/generator=resnet,seed=1", "ResNetGenerator", 1),
        ("runs/a,b ${c}/generator=resnet,seed=2", "ResNetGenerator", 2),
        ("runs/a,b ${c}/generator=unet,seed=1", "UNetGenerator", 1),
        ("runs/a,b ${c}/generator=unet,seed=2", "UNetGenerator", 2),
    ]
    run_dir = "run_dir=runs/a,b \\${c}/generator=unet,seed=2"
    assert ran[3][3] == ["generator=unet", "seed=2", name, "trainer.steps=3", run_dir]
    assert config.compose("train", ran[3][3]).run_dir == ran[3][0]
    assert sum(line.startswith("cyclestyle train: job ") for line in out.splitlines()) == 4


def test_multirun_runs_several_experiments(launch: Launch) -> None:
    ran: list[str] = []
    launch("-m", "experiment=monet,smoke", run=lambda cfg: ran.append(cfg.run_dir))
    assert ran == ["runs/monet/experiment=monet", "runs/smoke/experiment=smoke"]


def test_multirun_folder_names_contain_only_keys_with_several_values(launch: Launch) -> None:
    ran: list[str] = []
    sweep = ["optimizer.lr=1e-4,2e-4", "optimizer.betas=[0.5,0.9],[0.9,0.999]", "ema.decay=0.9"]
    launch("-m", *sweep, "~logger.console", run=lambda cfg: ran.append(cfg.run_dir))
    assert ran == [
        "runs/own/lr=0.0001,betas=0.5_0.9", "runs/own/lr=0.0001,betas=0.9_0.999",
        "runs/own/lr=0.0002,betas=0.5_0.9", "runs/own/lr=0.0002,betas=0.9_0.999",
    ]  # fmt: skip
    assert launch("-m", "seed=1", run=lambda cfg: ran.append(cfg.run_dir))[0] == 0
    assert ran[-1] == "runs/own/0"


def test_folder_names_of_a_sweep_are_unique_and_short() -> None:
    assert multirun.folder_name(["a.x", "b.x"], ["1", "2"], taken=set()) == "a.x=1,b.x=2"
    assert multirun.folder_name(["experiment"], ["my/files/x.yaml"], taken=set()) == "experiment=x"
    first = multirun.folder_name(["x"], ["a/b"], taken=set())
    assert (first, multirun.folder_name(["x"], ["a b"], taken={first})[:6]) == ("x=a_b", "x=a_b,")
    names = {multirun.folder_name(["x"], ["ü" * 300 + end], taken=set()) for end in "ab"}
    assert len(names) == 2
    assert max(len(name.encode()) for name in names) < 255


def test_multirun_chooses_all_options_by_glob(launch: Launch) -> None:
    ran: list[str] = []
    launch("-m", "adversarial=glob(*)", "generator=glob(unet*)", run=lambda cfg: ran.append(cfg.run_dir))
    assert len(ran) == 6
    assert ran[0] == "runs/own/adversarial=bce,generator=unet"
    assert composing("adversarial=glob(*)").startswith("adversarial=glob(*) has several values: add --multirun")
    assert launch("-m", "generator=glob(vit*)")[::2] == (
        2, "cyclestyle train: generator=glob(vit*): no option of a config group matches\n"
    )  # fmt: skip


def test_multirun_resumes_numbered_folders_of_earlier_versions_with_the_same_values(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, seed in enumerate((1, 5)):
        folder = tmp_path / "runs/smoke" / str(number)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config.yaml(config.compose("train", ["experiment=smoke", f"seed={seed}"])))
    ran: list[str] = []
    launch("-m", "experiment=smoke", "seed=1,2", run=lambda cfg: ran.append(cfg.run_dir))
    assert ran == ["runs/smoke/0", "runs/smoke/seed=2"]


def test_multirun_ends_with_a_table_of_jobs(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(cfg: DictConfig) -> int:
        Path(cfg.run_dir).mkdir(parents=True)
        lines = ['{"step": 1, "loss/cycle_a": 9}', '{"step": 2, "loss/cycle_a": 0.5, "speed": 3}']
        (Path(cfg.run_dir) / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return 75 if cfg.seed == 2 else 0

    code, out, _ = launch("-m", "seed=1,2,3", run=run)
    assert code == 75
    assert [line.split() for line in out.splitlines()[-4:]] == [
        ["job", "exit", "folder", "last", "losses"],
        ["1", "0", "runs/own/seed=1", "step", "2:", "cycle_a", "0.5"],
        ["2", "75", "runs/own/seed=2", "step", "2:", "cycle_a", "0.5"],
        ["3", "-", "runs/own/seed=3"],
    ]


def test_multirun_passes_config_dir_on_to_jobs(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("name: mine\n")
    lines: list[list[str]] = []
    launch("-m", "-cd", str(tmp_path), "experiment=mine", "seed=1,2", run=lambda cfg: lines.append(sys.argv[1:]))
    assert [line[:3] for line in lines] == [["--config-dir", str(tmp_path), "experiment=mine"]] * 2


def test_multirun_checks_all_configs_before_first_run(launch: Launch) -> None:
    code, _, err = launch("-m", "trainer.steps=1,abc", run=lambda cfg: pytest.fail("ran"))
    assert (code, err) == (2, "cyclestyle train: trainer.steps=abc: expected a whole number or null\n")


def test_multirun_stops_at_first_failed_run(launch: Launch) -> None:
    ran: list[int] = []

    def run(cfg: DictConfig) -> int:
        ran.append(cfg.seed)
        return 75 if cfg.seed == 2 else 0

    assert launch("-m", "seed=1,2,3", run=run)[0] == 75
    assert ran == [1, 2]


@pytest.mark.parametrize(
    ("words", "command", "world", "message"),
    [
        (["-m", "batch_size=1,2"], "translate", "1", "translate has no --multirun"),
        (["-m", "seed=1,2"], "train", "2", "instead of torchrun"),
        (["-m", "optimizer.lr=interval(0,1)"], "train", "1", "takes lists of values such as optimizer.lr=1,2,3"),
    ],
)
def test_unsupported_multirun_is_rejected(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, words: list[str], command: str, world: str, message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    code, _, err = launch(*words, command=command, run=lambda cfg: pytest.fail("ran"))
    assert code == 2
    assert message in err


# In a separate process


SCRIPT = """
import sys
from cyclestyle.cli import dispatch
try:
    dispatch.launch(sys.argv.pop(1), lambda cfg: None)
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def test_help_and_mistyped_keys_do_not_import_torch() -> None:
    for words in (["train", "--help"], ["train", "trainer.stesp=3"], ["translate", "-h"], ["export", "-h"], ["train"]):
        done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1] == "False"


def test_dispatch_writes_nothing_in_any_working_directory(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(config.__file__).parents[2])}
    for words in (["train", "-m", "experiment=smoke", "seed=1,2"], ["train", "--cfg", "job"]):
        subprocess.run(
            [sys.executable, "-c", SCRIPT, *words], cwd=tmp_path, env=environment, check=True, capture_output=True
        )
    assert list(tmp_path.iterdir()) == []


def test_installed_package_reads_its_own_configs(tmp_path: Path) -> None:
    package = tmp_path / "site" / "cyclestyle"
    shutil.copytree(Path(config.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__", "configs"))
    shutil.copytree(config.config_dir(), package / "configs")
    (package / "configs" / "experiment" / "own.yaml").write_text("# @package _global_\n# Own.\nname: installed\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "train", "--cfg", "job", "experiment=own"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("name: installed\n")


KEYS = [
    "name", "seed", "run_dir", "init", "data.root", "data.a", "data.crop_size", "data", "generator", "generator.blocks",
    "generator.channels", "generator._target_", "optimizer.lr", "optimizer.betas", "trainer.steps", "trainer.device",
    "trainer.precision", "checkpoint.keep", "checkpoint.asynchronous", "logger", "logger.tensorboard", "experiment",
    "ema.decay", "nonsense", "trainer.nonsense", "hydra.run.dir", "",
]  # fmt: skip
STRANGE = [
    "null", "1", "-1", "1e400", "nan", "true", "[1,2", "{a:b}", "${oc.env:HOME}", "${name}", "${", "a=b", "demo",
    "monet", "unet", "os.fspath", "builtins.dict", "'", '"', "\\", "~", "1_000", "0x1", "[[]]", "\ud800",
]  # fmt: skip
VALUES = st.text(max_size=12) | st.sampled_from(STRANGE) | st.integers().map(str) | st.floats().map(str)
ARGUMENTS = st.text(max_size=20) | st.builds(
    "{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), st.sampled_from(KEYS), VALUES
)


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking would take minutes
@given(st.lists(ARGUMENTS, max_size=3))
@example(["generator._target_=null"])
@example(["generator._target_=builtins.dict"])
@example(["++nonsense.a=1"])
def test_arbitrary_arguments_compose_or_give_short_user_error(arguments: list[str]) -> None:
    def compose() -> str:
        try:
            cfg = config.compose("train", arguments)
            config.check(cfg)
            config.to_plain(cfg)
        except CyclestyleError as error:
            return commandline.report("train", error)
        return "composed"

    assert 1 <= len(compose().splitlines()) <= 6
