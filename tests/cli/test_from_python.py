"""Tests of configs from Python: values, precedence, errors, and a caller that uses Hydra itself."""

import threading
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cyclestyle.cli.arguments import split
from cyclestyle.cli.compose import parsed, to_plain
from cyclestyle.cli.from_python import as_words, config, in_hydra_grammar
from cyclestyle.errors import CommandError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(SCALARS | st.lists(SCALARS, min_size=1))
def test_python_value_survives_round_trip_through_hydra_grammar(value: object) -> None:
    assert parsed(split(f"key={in_hydra_grammar(value, 'key')}")) == value


def test_python_mapping_sets_config_values_of_all_types() -> None:
    cfg = config(
        "train",
        [
            "data=scenes",
            {"generator": "unet", "name": "a=b, (c)", "run_dir": Path("runs/x y"), "trainer": {"steps": np.int64(7)}},
            {"optimizer.lr": np.float64(1e-5), "optimizer.betas": (0.5, torch.tensor(0.75)), "logger.console": None},
        ],
    )
    plain = to_plain(cfg)
    assert (plain["name"], plain["run_dir"]) == ("a=b, (c)", "runs/x y")
    assert plain["generator"]["_target_"] == "cyclestyle.networks.UNetGenerator"
    assert plain["trainer"]["steps"] == 7
    assert plain["optimizer"]["lr"] == 1e-5
    assert plain["optimizer"]["betas"] == [0.5, 0.75]
    assert plain["logger"]["console"] is None


def test_later_overrides_take_precedence() -> None:
    assert config("train", ["seed=1", {"seed": 2}]).seed == 2
    assert config("train", [{"seed": 2}, "seed=1"]).seed == 1


def test_nested_mapping_yields_arguments_with_dotted_keys() -> None:
    words = list(as_words("train", {"+logger.mine": {"_target_": "my.Logger", "every": 5}}))
    assert words == ["+logger.mine._target_=my.Logger", "+logger.mine.every=5"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--multirun", "--multirun is a flag of the command"),
        ({"trainer.stepps": 3}, "no key trainer.stepps: did you mean trainer.steps?"),
        ({"trainer.steps": "many"}, "trainer.steps=many: expected a whole number"),
        ({"trainer.steps": object()}, "trainer.steps: object is no value of a config"),
        ({"trainer.steps": torch.zeros(2)}, "trainer.steps: Tensor is no value of a config"),
        ({"generator": "resnets"}, "no generator resnets: did you mean resnet?"),
    ],
)
def test_invalid_override_is_a_command_error_of_one_line(override: str | dict, message: str) -> None:
    with pytest.raises(CommandError) as caught:
        config("train", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hydra_state_of_caller_is_restored(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("x: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        before = hydra.version.getbase()
        assert config("train", ["experiment=smoke"]).name == "smoke"
        assert hydra.version.getbase() == before
        assert OmegaConf.to_container(hydra.compose("mine")) == {"x": 1}
    assert not GlobalHydra.instance().is_initialized()


def test_configs_can_be_composed_in_concurrent_threads() -> None:
    seeds: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda n=n: seeds.update({n: config("train", [f"seed={n}"]).seed})) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seeds == {number: number for number in range(8)}
