"""Tests of config folders of the user's own, of files named by their path, and of changed targets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from cyclestyle.cli import compose
from cyclestyle.cli import help as help_pages
from cyclestyle.errors import CommandError

UNET = "cyclestyle.networks.UNetGenerator"


class Loss:
    """An example of a loss."""

    def __init__(self, margin: float = 1.0) -> None: ...


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(CommandError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: str, text: str) -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


class Composed:
    """Composed and checked config of a command line, with the reported lines."""

    def __init__(self, *arguments: str, config_dirs: tuple[str, ...] = ()) -> None:
        self.lines: list[str] = []
        self.cfg: DictConfig = compose.compose("train", arguments, config_dirs=config_dirs, report=self.lines.append)
        self.values: dict[str, Any] = compose.to_plain(self.cfg)
        compose.check(self.cfg)


# Folders and files


@pytest.mark.parametrize("header", ["", "# @package _global_\n"])
def test_experiment_in_configs_of_working_directory_is_found(header: str) -> None:
    write("configs/experiment/mine.yaml", f"{header}# Mine.\ndefaults:\n  - override /generator: unet\nname: mine\n")
    cfg = Composed("experiment=mine").cfg
    assert (cfg.name, cfg.generator._target_) == ("mine", UNET)


def test_configs_in_working_directory_add_options_but_replace_none() -> None:
    write("configs/optimizer/adam.yaml", "# Foreign.\n_target_: torch.optim.SGD\n")
    write("configs/optimizer/sgd.yaml", "# Mine.\n_target_: torch.optim.SGD\nlr: 0.5\n")
    write("configs/train.yaml", "# Foreign.\nlearning: true\n")
    assert Composed().cfg.optimizer._target_ == "torch.optim.Adam"
    assert Composed("optimizer=sgd").values["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.5}


@pytest.mark.parametrize("name", ["own", 'Größe (2) [x], "y"', "it's"])
def test_options_in_config_dir_take_precedence_over_built_in_options(name: str) -> None:
    write(f"{name}/optimizer/adam.yaml", "# Mine.\n_target_: torch.optim.Adam\nlr: 0.5\n")
    write(f"{name}/experiment/mine.yaml", "name: mine\n")
    composed = Composed("experiment=mine", config_dirs=(name,))
    assert (composed.cfg.name, composed.cfg.optimizer.lr) == ("mine", 0.5)


def test_missing_config_dir_is_an_error() -> None:
    assert message_of(lambda: Composed(config_dirs=("nowhere",))) == "--config-dir nowhere: no such folder"


def test_experiment_is_chosen_by_path_of_its_file() -> None:
    write("my files/mine, too.yaml", "defaults:\n  - override /data: scenes\nname: mine\nseed: 7\n")
    cfg = Composed("experiment=my files/mine, too.yaml", "seed=8").cfg
    assert (cfg.name, cfg.seed, cfg.data._target_) == ("mine", 8, "cyclestyle.data.drawn_scenes")


def test_option_is_chosen_by_path_of_its_file() -> None:
    write("net.yaml", f"_target_: {UNET}\nlevels: 3\n")
    assert Composed("generator=net.yaml").values["generator"] == {"_target_": UNET, "levels": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("schedul:\n  decay_epochs: 3\n", "In 'mine.yaml': "),
        ("seed: abc\n", "In 'mine.yaml': "),
        ("a: [\n", "mine.yaml cannot be read: "),
        ("- 1\n", "mine.yaml holds no keys"),
        ("\x00", "mine.yaml cannot be read: "),
    ],
)
def test_error_in_experiment_file_chosen_by_path_names_the_file(content: str, message: str) -> None:
    write("mine.yaml", content)
    assert message_of(lambda: Composed("experiment=mine.yaml")).startswith(message)


def test_experiment_file_that_does_not_exist_is_an_error() -> None:
    assert message_of(lambda: Composed("experiment=no/mine.yaml")) == "experiment=no/mine.yaml: no such file"


def test_help_lists_own_experiments_with_their_folder() -> None:
    write("configs/experiment/mine.yaml", "# Mine.\nname: mine\n")
    write("own/optimizer/sgd.yaml", "# Descent.\n_target_: torch.optim.SGD\n")
    folders = compose.config_folders(["own"])
    text = help_pages.help_text(compose.config_dir(), "train", compose.groups("train"), folders=folders)
    squeezed = "".join(text.split())  # long paths are wrapped
    assert f"mineMine.(from{Path('configs').resolve()})" in squeezed
    assert f"optimizer=sgdDescent.(from{Path('own').resolve()})" in squeezed
    assert squeezed.count("(from") == 2


# Keys of a former target


def test_new_target_drops_keys_that_only_the_replaced_target_accepts() -> None:
    composed = Composed("optimizer._target_=torch.optim.SGD", "optimizer.momentum=0.9")
    assert composed.values["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 2e-4, "momentum": 0.9}
    assert composed.lines == ["optimizer: betas is not a key of torch.optim.SGD, left out"]


def test_new_target_in_experiment_drops_keys_of_the_replaced_target() -> None:
    write("mine.yaml", "optimizer:\n  _target_: torch.optim.SGD\n  momentum: 0.9\n")
    composed = Composed("experiment=mine.yaml")
    assert composed.values["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 2e-4, "momentum": 0.9}
    assert composed.lines == ["optimizer: betas is not a key of torch.optim.SGD, left out"]


def test_group_option_overrides_target_of_experiment_and_drops_keys_of_that_target() -> None:
    composed = Composed("experiment=smoke", "generator=unet")
    assert set(composed.values["generator"]) == {"_target_", "channels", "levels", "dropout", "upsample", "detail"}
    assert composed.lines == [f"generator: blocks is not a key of {UNET}, left out"]
    write("sgd.yaml", "optimizer:\n  _target_: torch.optim.SGD\n  momentum: 0.9\n  lr: 0.5\n")
    composed = Composed("experiment=sgd.yaml", "optimizer=adam")
    assert composed.values["optimizer"] == {"_target_": "torch.optim.Adam", "lr": 0.5, "betas": [0.5, 0.999]}
    assert composed.lines == ["optimizer: momentum is not a key of torch.optim.Adam, left out"]


def test_other_data_option_drops_data_keys_of_experiment() -> None:
    composed = Composed("+experiment=smoke", "data=folders")
    assert composed.lines == ["data: train, test, size are not keys of cyclestyle.data.UnpairedFolders, left out"]
    assert not {"train", "test", "size", "scene_seed"} & composed.values["data"].keys()


def test_keys_dropped_for_new_target_of_one_optimizer_are_reported() -> None:
    lines = Composed("optimizer.discriminators._target_=torch.optim.SGD").lines
    assert lines == ["optimizer.discriminators: betas is not a key of torch.optim.SGD, left out"]


def test_key_of_replaced_target_on_command_line_is_an_error() -> None:
    typed = ("optimizer._target_=torch.optim.SGD", "optimizer.betas=[0.5,0.9]")
    assert message_of(lambda: Composed(*typed)).startswith("no key optimizer.betas: ")


def test_mistyped_key_in_experiment_is_not_dropped() -> None:
    write("mine.yaml", "generator:\n  bloks: 3\n")
    message = message_of(lambda: Composed("experiment=mine.yaml", "generator=unet"))
    assert message.startswith("no key generator.bloks")


def test_no_dropped_keys_are_reported_if_no_target_changes() -> None:
    for experiment in ("demo", "monet"):
        assert Composed(f"experiment={experiment}").lines == []


# Whole configs


@pytest.mark.parametrize(
    "arguments",
    [
        ("experiment=demo", "name=mine"),
        ("data.a=a ${b} \\${c}", "data.b=y", "optimizer.weight_decay=0.1", "logger.tensorboard=null"),
        ("~optimizer.betas", "generator=unet", "generator.ba.levels=3", "run_dir=/scratch/x", "~logger.console"),
        (f"adversarial._target_={__name__}.Loss", "name=\\${x}"),
    ],
)
def test_saved_config_reproduces_the_config(folder: Path, arguments: tuple[str, ...]) -> None:
    (folder / "a ${b} \\${c}").mkdir()
    first = Composed(*arguments)
    write("runs/x/config.yaml", compose.yaml(first.cfg, auto={"trainer.threads": 2}))
    again = Composed("experiment=runs/x/config.yaml")
    first.values["trainer"]["threads"] = 2
    assert again.values == first.values
    assert again.lines == []


def test_values_and_name_of_saved_config_can_be_overridden() -> None:
    write("my.yaml", compose.yaml(Composed("experiment=demo").cfg))
    cfg = Composed("experiment=my.yaml", "name=other", "generator=resnet", "seed=3").cfg
    assert (cfg.run_dir, cfg.seed, cfg.data._target_) == ("runs/other", 3, "cyclestyle.data.drawn_scenes")
    assert compose.to_plain(cfg)["generator"] == compose.to_plain(Composed().cfg)["generator"]


def test_new_name_for_saved_config_gives_new_run_folder() -> None:
    write("my.yaml", compose.yaml(Composed("experiment=demo", "run_dir=/scratch/x").cfg))
    assert Composed("experiment=my.yaml").cfg.run_dir == "/scratch/x"
    assert Composed("experiment=my.yaml", "name=other").cfg.run_dir == "runs/other"
    assert Composed("experiment=my.yaml", "name=other", "run_dir=/y").cfg.run_dir == "/y"


def test_saved_config_is_found_in_config_dir() -> None:
    write("experiment/my.yaml", compose.yaml(Composed("experiment=smoke", "generator=unet", "name=my").cfg))
    composed = Composed("experiment=my", config_dirs=(".",))
    assert composed.values == Composed("experiment=smoke", "generator=unet", "name=my").values


def test_saved_config_of_an_earlier_version_is_read() -> None:
    text = compose.yaml(Composed("experiment=demo").cfg)
    write("old.yaml", text.replace("  asynchronous:", "  background:").replace("backward: split", "memory: lean"))
    assert Composed("experiment=old.yaml").values == Composed("experiment=demo").values


def test_unknown_key_in_saved_config_is_an_error() -> None:
    write("my.yaml", compose.yaml(Composed().cfg) + "schedul: 3\n")
    assert message_of(lambda: Composed("experiment=my.yaml")).startswith("my.yaml: Key 'schedul' not in 'Train'")


def test_keys_of_replaced_logger_are_left_out_and_reported() -> None:
    lines: list[str] = []
    cfg = compose.compose(
        "train", ["experiment=smoke", "logger.tensorboard._target_=tests.test_calls.Narrow"], report=lines.append
    )
    compose.check(cfg)
    assert "images" not in cfg.logger.tensorboard
    assert lines == ["logger.tensorboard: images is not a key of tests.test_calls.Narrow, left out"]
