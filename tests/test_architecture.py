"""Tests of the import rules between the rooms (folders) of the package, including imports in functions."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cyclestyle"

# Rooms by level, from the top level to the bottom level. A room is a folder of the package, or a module beside these
# folders. Rooms of the same level do not import each other.
LEVELS: list[set[str]] = [
    {"api"},
    {"__main__", "train", "translate", "evaluate", "export", "download"},
    {"assembly"},
    {"evaluation"},
    {"photoset"},
    {"training", "translation"},
    {"run", "monitor", "model_files", "data"},
    {"objectives", "checkpoints", "hardware", "images"},
    {"networks", "distributed", "cli", "filesystem"},
    {"metrics", "calls", "progress", "rng", "signals"},
    {"errors"},
]
ENTRIES = LEVELS[1] | {"assembly"}
ROOT_INIT = PACKAGE / "__init__.py"  # imports the public names on first use
CONFIG_LIBRARIES = {"hydra", "omegaconf"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(source: str, module: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, also inside functions; `from x import y` yields x.y."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def rooms_imported(file: Path) -> set[str]:
    """The rooms of the package that a file imports from."""
    names = imported(file.read_text(), name_of(file))
    return {name.split(".")[1] for name in names if name.startswith("cyclestyle.")}


def libraries(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(file.read_text(), name_of(file))} - {"cyclestyle"}


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if name in rooms)


def test_imports_are_found_in_functions_and_type_checking_blocks() -> None:
    source = """
import os.path, cyclestyle.rng as r
from cyclestyle import images, errors
from cyclestyle.data.dataset import Batch
if TYPE_CHECKING:
    from omegaconf import DictConfig
def late():
    import torch
    from . import crop
    from ..networks import build
"""
    assert set(imported(source, "cyclestyle.data.x")) == {
        "os.path", "cyclestyle.rng", "cyclestyle.images", "cyclestyle.errors", "cyclestyle.data.dataset.Batch",
        "omegaconf.DictConfig", "torch", "cyclestyle.data.crop", "cyclestyle.networks.build",
    }  # fmt: skip


def test_every_subpackage_has_an_import_level() -> None:
    assert {room(file) for file in MODULES} - {"__init__"} == set.union(*LEVELS)


def test_docs_list_every_subpackage() -> None:
    rows = re.findall(r"^\| (`.+?) \| ", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)
    listed = [room for row in rows for room in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(set.union(*LEVELS) - {"__main__"})
    levels = (ROOT / "CONTRIBUTING.md").read_text().partition("## Import rule")[2].split("```")[1]
    for rooms in LEVELS:
        assert any(rooms - {"__main__"} <= set(line.split()) for line in levels.splitlines()), rooms


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_subpackages_import_only_lower_levels(file: Path) -> None:
    if room(file) == "__init__":
        assert rooms_imported(file) <= {"api", "translation"}
        return
    for other in rooms_imported(file) - {room(file)}:
        assert level(other) > level(room(file)), f"{name_of(file)} imports {other}"


@pytest.mark.parametrize("file", [file for file in MODULES if file.name == "__init__.py"], ids=name_of)
def test_init_files_define_nothing(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "one sentence on what the room is for"
    body = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.If) or file != ROOT_INIT]
    assert all(isinstance(node, ast.ImportFrom | ast.Expr | ast.Assign) for node in body)
    assigned = {ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)}
    assert assigned <= {"__all__", "__version__"} | ({"TYPE_CHECKING"} if file == ROOT_INIT else set())


def test_package_imports_public_names_on_first_use() -> None:
    tree = ast.parse(ROOT_INIT.read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions == {"__getattr__", "__dir__"}
    assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_only_command_modules_and_cli_import_hydra(file: Path) -> None:
    if libraries(file) & CONFIG_LIBRARIES:
        assert room(file) in ENTRIES | {"api", "cli"}


def test_only_compose_module_calls_hydra_instantiate() -> None:
    for file in MODULES:
        if room(file) in ENTRIES:
            assert "hydra" not in libraries(file)
    callers = [name_of(file) for file in MODULES if "hydra.utils.instantiate" in file.read_text()]
    assert callers == ["cyclestyle.cli.compose"]


def test_cli_imports_no_torch() -> None:
    for file in MODULES:
        if room(file) == "cli":
            assert rooms_imported(file) <= {"cli", "calls", "errors"}
            assert not libraries(file) & {"torch", "torchvision", "numpy", "PIL"}


def test_torchmetrics_is_imported_only_in_functions() -> None:
    """The import takes seconds, since it imports scipy and matplotlib if they are installed."""
    users = [file for file in MODULES if "torchmetrics" in libraries(file)]
    assert users
    for file in users:
        body = [node for node in ast.parse(file.read_text()).body if not isinstance(node, ast.FunctionDef)]
        names = imported(ast.unparse(ast.Module(body=body, type_ignores=[])), name_of(file))
        assert not any(name.startswith("torchmetrics") for name in names), name_of(file)


def test_cyclegan_objective_imports_only_torch() -> None:
    file = PACKAGE / "objectives" / "cyclegan.py"
    assert rooms_imported(file) <= {"objectives", "networks", "calls", "errors"}
    assert libraries(file) <= {"torch", "typing", "collections", "contextlib", "functools"}


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_package_imports_no_scripts_or_tests(file: Path) -> None:
    assert not libraries(file) & {"scripts", "tests"}


def test_torchvision_image_decoder_is_not_used() -> None:
    for file in MODULES:
        names = set(imported(file.read_text(), name_of(file)))
        assert not any(name.startswith(("torchvision.io", "torchvision.datasets")) for name in names), file
