"""Tests of the table of config keys with special roles, and of configs saved by earlier versions."""

import pkgutil

import pytest

from cyclestyle.cli import compose
from cyclestyle.cli.arguments import unknown_key_error
from cyclestyle.cli.keys import ADDED, KEYS, RENAMED, RENAMED_TARGETS, with_present_names
from cyclestyle.cli.signatures import resolve_target
from cyclestyle.errors import CommandError

COMMANDS = ("train", "translate", "evaluate", "export", "download")


def known_keys() -> set[str]:
    return {key for command in COMMANDS for key, _ in compose.walk(compose.to_plain(compose.compose(command, [])))}


def test_every_key_listed_in_keys_module_is_a_config_key() -> None:
    only_in_folders = {"data.a", "data.b", "data.test_a", "data.test_b", "data.homepage"}
    assert KEYS.keys() - only_in_folders <= known_keys()


def test_new_names_of_renamed_keys_exist() -> None:
    assert {renamed.key for renamed in RENAMED.values()} <= known_keys()
    assert not RENAMED.keys() & known_keys()


def test_new_names_of_renamed_targets_exist() -> None:
    for target in RENAMED_TARGETS.values():
        assert callable(pkgutil.resolve_name(target))


def test_former_names_in_saved_config_are_replaced() -> None:
    saved = {
        "adversarial": {"_target_": "cyclestyle.losses.Hinge"},
        "checkpoint": {"background": True, "keep": 3},
        "data": {"_target_": "cyclestyle.data.drawn_scenes", "small": "skip", "background": "white"},
        "trainer": {"memory": "lean", "steps": 5},
    }
    assert with_present_names(saved) == {
        "adversarial": {"_target_": "cyclestyle.objectives.adversarial.Hinge"},
        "checkpoint": {"asynchronous": True, "keep": 3},
        "data": {
            "_target_": "cyclestyle.data.drawn_scenes",
            "small_images": "skip",
            "transparent_as": "white",
            "colour": "raw",
            "channels_a": 3,
            "channels_b": 3,
            "tolerance": 0.01,
            "decoder": "earlier",
            "range": "full",
        },
        "trainer": {"backward": "split", "steps": 5},
    }
    assert with_present_names({"trainer": {"memory": "joint"}}) == {"trainer": {"backward": "joint"}}
    odd = {"trainer": {"memory": ["lean"]}, "adversarial": {"_target_": ["x"]}}
    assert with_present_names(odd) == {"trainer": {"backward": ["lean"]}, "adversarial": {"_target_": ["x"]}}


def test_config_of_earlier_version_gets_missing_keys_with_former_behaviour() -> None:
    old = {
        "objective": {"cycle_a": 10.0, "cycle_b": 10.0, "identity": 0.5},
        "schedule": {"constant_epochs": 100, "decay_epochs": 100},
        "pool": {"size": 50},
        "ema": {"decay": 0.0},
        "trainer": {"steps": 5},
        "checkpoint": {"keep": 3},
    }
    present, usual = with_present_names(old), compose.to_plain(compose.compose("train", []))
    for name in ("objective", "schedule", "pool", "ema", "tasks", "plugins"):
        assert present[name] == usual[name]
    assert (present["trainer"]["clip_norm"], present["checkpoint"]["mode"]) == (None, "min")
    assert "ema" not in with_present_names({"objective": {}})


def test_config_of_this_version_gets_no_missing_keys() -> None:
    saved = {"objective": {"_target_": "my.Objective"}, "ema": {"decay": 0.5}}
    assert with_present_names(saved) == saved


def test_keys_added_to_old_configs_exist() -> None:
    assert ADDED.keys() <= known_keys()


def test_keys_of_custom_data_class_are_not_renamed() -> None:
    saved = {"data": {"_target_": "mine.Data", "background": "black", "small": 3}}
    assert with_present_names(saved) == saved


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("trainer.memory=lean", "trainer.memory was renamed to trainer.backward; its value lean is now split"),
        ("checkpoint.background=true", "checkpoint.background was renamed to checkpoint.asynchronous"),
        ("data.small=skip", "data.small was renamed to data.small_images"),
        ("data.background=white", "data.background was renamed to data.transparent_as"),
    ],
)
def test_renamed_key_error_has_present_name(typed: str, answer: str) -> None:
    with pytest.raises(CommandError) as caught:
        compose.check(compose.compose("train", [typed]))
    assert str(caught.value) == answer


def test_renamed_target_error_has_present_name() -> None:
    with pytest.raises(
        CommandError, match=r"adversarial\._target_=cyclestyle\.losses\.Hinge was renamed to cyclestyle\."
    ):
        resolve_target("cyclestyle.losses.Hinge", "adversarial")
    assert str(unknown_key_error("key", "trainer.memory", [])).startswith("trainer.memory was renamed")
