"""Networks from plugin modules and installed packages: lookup, errors, weights with spectral norm."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.networks import initialize, registry
from cyclestyle.networks.registry import build, load_plugins, require_rebuildable, with_defaults
from tests.plugins import NETWORKS, TABLES, on_path, write_installed_package, write_module


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    with on_path(tmp_path):
        yield tmp_path


def load(folder: Path, source: str = NETWORKS + TABLES, name: str = "my_networks") -> None:
    load_plugins([write_module(folder, name, source=source)])


def test_networks_of_plugin_module_are_built_by_name(folder: Path) -> None:
    load(folder)

    generator = build({"name": "mine", "width": 5, "in_channels": 1}, kind="generator")
    assert generator(torch.zeros(1, 1, 7, 9)).shape == (1, 3, 7, 9)
    assert registry.channels_of(generator) == (1, 3)
    assert type(build({"name": "spectral"}, kind="discriminator")).__name__ == "SpectralDiscriminator"
    assert with_defaults({"name": "mine"}) == {"name": "mine", "width": 4, "in_channels": 3, "out_channels": 3}
    with pytest.raises(CheckpointError, match=r"^unknown architecture 'spectral': expected one of resnet, unet, mine;"):
        build({"name": "spectral"}, kind="generator")


def test_plugin_module_is_not_imported_unless_requested(folder: Path) -> None:
    write_module(folder, source="raise SystemExit('imported')")

    expected = r"^unknown architecture 'mine': expected one of resnet, .*; .* give plugins=\[module\]$"
    with pytest.raises(CheckpointError, match=expected):
        build({"name": "mine"})
    assert "my_networks" not in sys.modules


def test_entry_point_of_installed_package_is_found_by_name(folder: Path) -> None:
    write_module(folder, source=NETWORKS)
    points = {"mine": "my_networks:MyGenerator", "spectral": "my_networks:SpectralDiscriminator"}
    write_installed_package(folder, points)

    assert "my_networks" not in sys.modules
    assert type(build({"name": "resnet", "channels": 1})).__name__ == "ResNetGenerator"
    assert "my_networks" not in sys.modules  # a name in the table needs no entry point
    assert type(build({"name": "mine"}, kind="generator")).__name__ == "MyGenerator"
    assert type(build({"name": "spectral"}, kind="discriminator")).__name__ == "SpectralDiscriminator"
    for name, kind in (("spectral", "generator"), ("mine", "discriminator")):
        with pytest.raises(CheckpointError, match=f"^unknown architecture '{name}'"):
            build({"name": name}, kind=kind)


def test_built_in_network_takes_precedence_over_entry_point_of_same_name(folder: Path) -> None:
    write_module(folder, source=NETWORKS)
    write_installed_package(folder, {"resnet": "my_networks:MyGenerator"})
    with torch.device("meta"):
        assert type(build({"name": "resnet"})) is registry.GENERATORS["resnet"]


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("my_networks:Gone", "my_networks:Gone cannot be loaded: AttributeError: .*'Gone'"),
        ("gone:MyGenerator", "gone:MyGenerator cannot be loaded: ModuleNotFoundError: No module named 'gone'"),
        ("my_networks:nn", "my_networks:nn is not a class derived from torch.nn.Module"),
    ],
)
def test_broken_entry_point_is_a_one_line_error(folder: Path, entry_point: str, message: str) -> None:
    write_module(folder, source=NETWORKS)
    write_installed_package(folder, {"mine": entry_point})
    with pytest.raises(CheckpointError, match=f"^architecture mine: {message}$"):
        build({"name": "mine"})


def test_entry_point_in_two_packages_is_rejected(folder: Path) -> None:
    for package in ("first", "second"):
        write_module(folder, package, source=NETWORKS)
        write_installed_package(folder, {"mine": f"{package}:MyGenerator"}, package)
    with pytest.raises(CheckpointError, match=r"^architecture mine is defined by several installed packages: "):
        build({"name": "mine"})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import gone_library", r"cannot be imported: ModuleNotFoundError: No module named 'gone_library'"),
        ("x = 1 +", r"cannot be imported: SyntaxError: .*"),
        ("raise ValueError('first\\nsecond')", r"cannot be imported: ValueError: first"),
        (NETWORKS, r"has no networks: give it a table such as GENERATORS = \{\"mine\": MyGenerator\} or .*"),
        (
            NETWORKS + "GENERATORS = MyGenerator",
            r"GENERATORS of my_networks is \(type\): expected a mapping such as .*",
        ),
        (NETWORKS + "GENERATORS = {1: MyGenerator}", r"GENERATORS of my_networks has the name 1: expected a word .*"),
        (NETWORKS + "GENERATORS = {'mine': nn}", r".*: mine is \(module\): expected a class derived from torch\.nn.*"),
        (NETWORKS + "GENERATORS = {'mine': lambda: 1}", r".*: mine is \(function\): expected a class .*"),
        (
            NETWORKS + "GENERATORS = {'patch': MyGenerator}",
            r".*: the name patch of my_networks\.MyGenerator belongs to cyclestyle\.networks\.patchgan\.Patch.*: "
            r"choose another name",
        ),
    ],
)
def test_bad_plugin_module_is_a_one_line_error(folder: Path, source: str, message: str) -> None:
    with pytest.raises(CommandError, match=f"^plugins: (module my_networks )?{message}$"):
        load(folder, source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "no module gone: start the command in its folder, or put that folder into PYTHONPATH"),
        ("gone.inner", "no module gone.inner: "),
        ("my_networks.py", r"no module my_networks\.py: "),
        ("./my_networks", r"'\./my_networks' is not the name of a module: expected one such as my\.module"),
        (3, "3 is not the name of a module"),
    ],
)
def test_missing_plugin_module_is_a_one_line_error(name: object, message: str) -> None:
    with pytest.raises(CommandError, match=f"^plugins: {message}"):
        load_plugins([name])  # type: ignore[list-item]


def test_two_plugins_with_the_same_name_are_rejected(folder: Path) -> None:
    load(folder)
    load_plugins(["my_networks"])  # the same module again
    message = r"the name mine of other\.MyGenerator belongs to my_networks\.MyGenerator: choose another name$"
    with pytest.raises(CommandError, match=message):
        load(folder, NETWORKS + "GENERATORS = {'mine': MyGenerator}", "other")


GENERATOR = "class Mine(nn.Module):\n    def __init__(self, width: int = 4):\n        super().__init__()\n        "


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "has no architecture: give it the property architecture"),
        ("self.architecture = 'mine'", "has no architecture: "),
        ("self.architecture = {'name': 'other', 'width': width}", "has the architecture .*: expected "),
        ("self.architecture = {'name': 'mine', 'width': 3}", "has the architecture .*: expected "),
        ("self.architecture = {'name': 'mine', 'width': width, 'list': [1]}", "with more than numbers and words"),
        ("self.architecture = {'name': 'mine', 'width': width, 'depth': 1}", "impossible architecture mine: .*depth"),
        ("raise RuntimeError('no\\nwidth')", r"impossible architecture mine: my_networks\.Mine: RuntimeError: no$"),
        ("self.x = nn.Parameter(torch.empty(2**30))", "architecture mine would have 1,073,741,824 parameters"),
        ("self.architecture = {'name': 'mine', 'width': width, 'id': id(self) % 10**9}", "impossible|rebuilt"),
    ],
)
def test_plugin_network_that_violates_contract_is_rejected(folder: Path, body: str, message: str) -> None:
    load(folder, f"import torch\nfrom torch import nn\n{GENERATOR}{body}\nGENERATORS = {{'mine': Mine}}")
    with pytest.raises(CheckpointError, match=message) as caught:
        build({"name": "mine", "width": 5})
    assert "\n" not in str(caught.value)


def test_architecture_that_changes_when_rebuilt_is_rejected(folder: Path) -> None:
    body = "self.architecture = {'name': 'mine', 'width': 2 * width if width < 9 else width}"
    load(folder, f"from torch import nn\n{GENERATOR}{body}\nGENERATORS = {{'mine': Mine}}")
    with pytest.raises(
        CheckpointError, match=r"network mine of my_networks\.Mine is not rebuilt from its architecture"
    ):
        build({"name": "mine"})


def test_networks_that_can_be_rebuilt_from_a_model_file_are_accepted(folder: Path) -> None:
    load(folder)
    require_rebuildable(build({"name": "mine", "width": 3}), kind="generator")
    require_rebuildable(build({"name": "spectral", "width": 3}), kind="discriminator")
    require_rebuildable(build({"name": "unet", "channels": 1, "levels": 2}), kind="generator")


def test_networks_that_cannot_be_rebuilt_from_a_model_file_are_rejected(folder: Path) -> None:
    load(folder)
    mine, spectral = (sys.modules["my_networks"].__dict__[name] for name in ("MyGenerator", "SpectralDiscriminator"))

    with pytest.raises(CommandError, match=r"^generator: Conv2d has no architecture, without which"):
        require_rebuildable(torch.nn.Conv2d(3, 3, 1), kind="generator")
    with pytest.raises(CommandError, match=r"^generator: SpectralDiscriminator is not in the table of networks under"):
        require_rebuildable(spectral(), kind="generator")
    with pytest.raises(CommandError, match=r"^discriminator: MyGenerator needs the properties minimum_size and recep"):
        require_rebuildable(mine(), kind="discriminator")
    subclass = type("Derived", (mine,), {})
    with pytest.raises(CommandError, match=r"^generator: Derived is not in the table .* give plugins=\[module\]$"):
        require_rebuildable(subclass(), kind="generator")


def test_discriminator_with_spectral_norm_is_restored_bit_exactly(folder: Path) -> None:
    load(folder)
    network = build({"name": "spectral", "width": 3}, kind="discriminator")
    initialize(network, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        network(images).mean().backward()
        optimizer.step()

    rebuilt = build(network.architecture, kind="discriminator")
    rebuilt.load_state_dict(network.state_dict())

    assert "layers.0.parametrizations.weight.0._u" in network.state_dict()
    for _ in range(2):  # in training mode, each call changes the singular vectors
        assert torch.equal(rebuilt(images), network(images))
    assert torch.equal(rebuilt.eval()(images), network.eval()(images))


def test_unusual_network_names_raise_only_checkpoint_error() -> None:
    for name in ("", " ", "a b", "[x]", "x" * 40, "x" * 41, "\n", "cyclestyle.networks", "../x", "é", None, 3, ["x"]):
        with contextlib.suppress(CheckpointError):
            build({"name": name})
            raise AssertionError(name)


def test_plugin_example_in_documentation_works(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    load(folder, page.partition("```python\n")[2].partition("```")[0])
    generator = build({"name": "mine", "width": 2}, kind="generator")
    require_rebuildable(generator, kind="generator")
    assert generator(torch.zeros(1, 3, 5, 6)).shape == (1, 3, 5, 6)
