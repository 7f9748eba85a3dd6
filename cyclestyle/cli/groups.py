"""Config folders, the options of config groups in them, and config files that the user names by their path."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped, unused-ignore]

from cyclestyle.cli.arguments import Argument, literal, unknown_key_error
from cyclestyle.cli.help import option_files, yaml_entries
from cyclestyle.cli.keys import with_present_names
from cyclestyle.errors import CommandError

SUFFIXES = (".yaml", ".yml")


def search_path(package: Path, chosen: Sequence[str]) -> list[Path]:
    """Return the folders in which options of config groups are searched, in this order.

    The `chosen` folders (`--config-dir`) come first, so that their options replace options of the package. The folder
    `configs` in the working directory comes last: it may belong to another project, and adds options only.

    Raises:
        CommandError: a chosen folder does not exist.
    """
    first = [Path(folder).expanduser() for folder in chosen]
    for folder in first:
        if not folder.is_dir():
            raise CommandError(f"--config-dir {folder}: no such folder")
    folders = [folder.resolve() for folder in (*first, package, Path("configs")) if folder.is_dir()]
    return list(dict.fromkeys(folders))


class Chosen(NamedTuple):
    """Option of a config group that the command line chooses."""

    group: str
    option: str  # name for Hydra
    file: Path

    @property
    def override(self) -> str:
        """Argument `group=option` for Hydra, with a leading plus for `experiment`, which is in no defaults list."""
        return f"{'+' if self.group == 'experiment' else ''}{self.group}={self.option}"


def choose(argument: Argument, folders: Sequence[Path]) -> Chosen:
    """Find the option that an argument `group=option` chooses by its name, or by the path of a YAML file.

    Raises:
        CommandError: there is no such option or file.
    """
    group, option = argument
    available = option_files(folders, group)
    if option in available and group != "experiment":
        return Chosen(group, option, available[option])
    if option in available:
        file = available[option]
    elif option.endswith(SUFFIXES):
        file = Path(literal(argument._replace(key="input")) or "")
        if not file.is_file():
            raise CommandError(f"{group}={option}: no such file")
    else:
        if "," in option or option.startswith("glob("):
            raise CommandError(f"{group}={option} has several values: add --multirun to train once for each")
        raise unknown_key_error(group, option, available)
    return Chosen(group, _store(group, file), file)


def _store(group: str, file: Path) -> str:
    """Register a YAML file in Hydra as an option of `group`; return the option's name.

    The keys of an experiment go to the root of the config, even if the file lacks the comment `@package _global_`.
    """
    name = re.sub(r"\W", "_", file.stem, flags=re.ASCII) + "_file"
    package = "_global_" if group == "experiment" else group
    ConfigStore.instance().store(group=group, name=name, node=load(file), package=package)
    return name


def load(file: Path) -> DictConfig:
    """Read a YAML file whose content is a mapping.

    Raises:
        CommandError: the file cannot be read, is no YAML, or holds no keys.
    """
    try:
        content = OmegaConf.load(file)
    except (OSError, UnicodeError, YAMLError, OmegaConfBaseException) as error:
        raise CommandError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise CommandError(f"{file} holds no keys: expected lines such as `seed: 1`")
    return content


def merge(command: str, chosen: Sequence[Chosen], folders: Sequence[Path]) -> DictConfig:
    """Let Hydra merge the command's YAML file with the chosen options.

    The caller must first store the content of the command's YAML file in Hydra's ConfigStore: for the command `train`,
    under the name `train_root`.

    Args:
        folders: folders in which Hydra searches the options; the first one has precedence.

    Raises:
        CommandError: a file has an unknown key, a value of the wrong type or an invalid defaults list.
    """
    first, *others = [str(folder) for folder in folders]
    more = [json.dumps(f"file://{folder}", ensure_ascii=False) for folder in others]
    search = [f"hydra.searchpath=[{','.join(more)}]"] if more else []
    try:
        with hydra.initialize_config_dir(first, version_base="1.3"):
            return hydra.compose(f"{command}_root", overrides=[*(option.override for option in chosen), *search])
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        message = " ".join(str(error).split())
        for option in chosen:
            message = message.replace(f"{option.group}/{option.option}'", f"{option.file}'")
        raise CommandError(message) from error


def whole_config(file: Path, groups: Sequence[str]) -> dict[str, Any] | None:
    """Return the content of a YAML file that is a whole config; None if it is an experiment with some of the keys.

    A whole config is the `config.yaml` of a run, or the output of `--cfg job`. It is recognized by the keys `name`,
    `seed` and `run_dir`, a key for each of the `groups`, and the absence of a defaults list. Keys that an earlier
    version named differently get their present names.
    """
    content = cast(dict[str, Any], OmegaConf.to_container(load(file), resolve=False))
    if "defaults" in content or not {"name", "seed", "run_dir", *groups} <= content.keys():
        return None
    return with_present_names(content)


def replace_nodes(cfg: DictConfig, content: Mapping[str, Any], *, file: Path, kept: Sequence[str]) -> None:
    """Replace root keys of `cfg`, in place, by the keys in `content`, except the keys in `kept`.

    Args:
        file: file from which `content` was read, for error messages.

    Raises:
        CommandError: `cfg` does not accept a key or a value.
    """
    for key, value in content.items():
        if key not in kept:
            try:
                cfg[key] = value
            except OmegaConfBaseException as error:
                raise CommandError(f"{file}: {' '.join(str(error).split())}") from error


def written_nodes(path: str, folders: Sequence[Path], root: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield (`_target_`, keys of the node) for each YAML file that sets the `_target_` of the root node `path`.

    The files are the options of the config group with the same name, and the command's own YAML file.

    Args:
        path: name of the root node and its config group, such as `generator`.
        folders: folders that contain the options of config groups.
        root: the command's own YAML file.
    """
    for file, prefix in [*((file, "") for file in option_files(folders, path).values()), (root, f"{path}.")]:
        entries = {
            entry.key.removeprefix(prefix): entry.value for entry in yaml_entries(file) if entry.key.startswith(prefix)
        }
        if target := entries.get("_target_"):
            yield target, {key.partition(".")[0] for key in entries}
