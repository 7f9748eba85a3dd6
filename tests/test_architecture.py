"""Who may import whom: the arrows of the house point down, in functions too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cyclestyle"

# Room -> the modules in it. A package stands for all its modules.
ROOMS: dict[str, set[str]] = {
    "entry": {"__main__", "train", "translate", "evaluate", "export"},
    "launcher": {"launcher"},
    "relaunch": {"relaunch"},
    "config": {"config", "commandline", "binding"},
    "run": {"run", "ending"},
    "trainer": {"trainer"},
    "translation": {"translation"},
    "monitor": {"monitor"},
    "cyclegan": {"cyclegan"},
    "checkpoint": {"checkpoint", "saving"},
    "metrics": {"metrics"},
    "leaf": {
        "darkroom", "data", "distributed", "ema", "errors", "files", "guard", "hardware", "images", "listing",
        "locking", "losses", "networks", "photos", "pool", "record", "replay", "schedule", "seeds", "signals",
        "threads", "thumbnails",
    },
}  # fmt: skip

# Room -> the rooms that it may import from, besides itself.
MAY: dict[str, set[str]] = {
    "entry": set(ROOMS) - {"entry", "launcher"},
    "launcher": {"leaf"},
    "relaunch": {"leaf"},
    "config": {"leaf"},
    "run": {"checkpoint", "leaf"},
    "trainer": {"cyclegan", "leaf"},
    "translation": {"checkpoint", "metrics", "leaf"},
    "monitor": {"metrics", "leaf"},
    "cyclegan": {"leaf"},
    "checkpoint": {"leaf"},
    "metrics": {"leaf"},
    "leaf": set(),
}
ALONE = {"entry"}  # rooms whose modules may not even import one another

CONFIG_LIBRARIES = {"hydra", "omegaconf"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(source: str, module: str) -> Iterator[str]:
    """The dotted names that a module imports, wherever it does: `from x import y` gives x.y."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def own(file: Path) -> set[str]:
    """The modules and packages directly below cyclestyle that a file imports from."""
    names = imported(file.read_text(), name_of(file))
    return {name.split(".")[1] for name in names if name.startswith("cyclestyle.")}


def foreign(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(file.read_text(), name_of(file))} - {"cyclestyle"}


def room(module: str) -> str:
    return next(name for name, modules in ROOMS.items() if module in modules)


def level(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import os.path, cyclestyle.pool as p
from cyclestyle import images, errors
from cyclestyle.data.draws import Batch
if TYPE_CHECKING:
    from omegaconf import DictConfig
def late():
    import torch
    from . import seeds
    from ..networks import build
"""
    assert set(imported(source, "cyclestyle.data.x")) == {
        "os.path", "cyclestyle.pool", "cyclestyle.images", "cyclestyle.errors", "cyclestyle.data.draws.Batch",
        "omegaconf.DictConfig", "torch", "cyclestyle.data.seeds", "cyclestyle.networks.build",
    }  # fmt: skip


def test_every_module_has_its_place_in_the_table_and_every_place_a_module() -> None:
    there = {level(file) for file in MODULES} - {"__init__"}
    assert there == set.union(*ROOMS.values())


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_nobody_imports_upwards(file: Path) -> None:
    if level(file) == "__init__":
        assert own(file) == set()
        return
    here = room(level(file))
    for module in own(file) - {level(file)}:
        there = room(module)
        assert there in MAY[here] or (there == here and here not in ALONE), f"{name_of(file)} imports {module}"


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_only_entries_and_config_know_hydra(file: Path) -> None:
    if foreign(file) & CONFIG_LIBRARIES:
        assert room(level(file)) in ("entry", "config")


def test_entries_know_the_config_s_type_and_leave_hydra_to_the_config_module() -> None:
    for file in MODULES:
        if room_is(file, "entry"):
            assert "hydra" not in foreign(file)
    callers = [name_of(file) for file in MODULES if "hydra.utils.instantiate" in file.read_text()]
    assert callers == ["cyclestyle.config"]


def test_what_help_needs_imports_no_torch() -> None:
    for file in MODULES:
        if room_is(file, "config"):
            assert own(file) <= ROOMS["config"] | {"errors"}
            assert not foreign(file) & {"torch", "torchvision", "numpy", "PIL"}


def test_the_objective_knows_nothing_but_torch() -> None:
    assert own(PACKAGE / "cyclegan.py") == set()
    assert foreign(PACKAGE / "cyclegan.py") <= {"torch", "typing", "collections", "contextlib", "functools"}


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_nothing_imports_scripts_or_tests(file: Path) -> None:
    assert not foreign(file) & {"scripts", "tests"}


def test_torchvision_s_image_decoder_is_used_nowhere() -> None:
    for file in MODULES:
        names = set(imported(file.read_text(), name_of(file)))
        assert not any(name.startswith(("torchvision.io", "torchvision.datasets")) for name in names), file


def room_is(file: Path, name: str) -> bool:
    return level(file) != "__init__" and room(level(file)) == name
