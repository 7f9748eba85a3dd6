"""The commands translate, evaluate and export with a generator from a plugin module or an installed package."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cyclestyle import evaluate, export, translate
from cyclestyle.checkpoints.directory import read_model
from cyclestyle.checkpoints.model import write_model as write
from cyclestyle.networks import load_plugins
from tests.faults.test_model_files import exit_code
from tests.plugins import NETWORKS, TABLES, on_path, write_installed_package, write_module
from tests.translation.models import RESNET, pixels_of, write_model, write_picture

MINE = {"name": "mine", "width": 5}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, on Python's path: the module my_networks, eight photos, and a model with its generators."""
    monkeypatch.chdir(tmp_path)
    write_module(tmp_path)
    for seed in range(8):
        write_picture(tmp_path / "photos" / f"{seed}.png", size=(30, 25), seed=seed)
    with on_path(tmp_path):
        load_plugins(["my_networks"])
        write_model(tmp_path / "model", architecture=MINE)
    with on_path(tmp_path):  # without the module just imported
        yield tmp_path


def started(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(folder)])
    line = [sys.executable, "-m", f"cyclestyle.{name}", *arguments]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


TRANSLATE = ("checkpoint=model", "input=photos", "output=out", "direction=photo2monet", "device=cpu")


@pytest.mark.parametrize("workers", [0, 2])
def test_translate_runs_generator_from_plugin(folder: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    assert exit_code(translate, *TRANSLATE, "plugins=[my_networks]", f"workers={workers}") == 0

    assert "8 ok, 0 failed" in capsys.readouterr().out
    for seed in range(8):
        assert not np.array_equal(pixels_of(folder / f"out/{seed}.png"), pixels_of(folder / f"photos/{seed}.png"))


def test_translate_error_without_plugin_names_the_remedy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(translate, *TRANSLATE) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "networks.safetensors: unknown architecture 'mine': expected one of resnet, unet; if a package" in line
    assert line.endswith("give plugins=[module]")


@pytest.mark.parametrize("key", ["plugins", "plugin", "module", "_target_"])
def test_module_named_by_model_file_or_run_folder_is_not_imported(
    folder: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    """Only the user names modules: neither the header of a model file nor the config of a run does."""
    model = folder / "run" / "checkpoints" / "step_00000042" / "networks.safetensors"
    model.parent.mkdir(parents=True)
    architectures = {side: MINE | {key: "my_networks"} for side in ("ab", "ba")}
    write(read_model(folder / "model")._replace(generators=architectures), model)
    config = f"{key}: [my_networks]\ngenerator: {{_target_: my_networks.MyGenerator}}"
    (folder / "run" / "config.yaml").write_text(config)

    assert exit_code(translate, *TRANSLATE[1:], f"checkpoint={model}") == 4
    assert exit_code(export, f"checkpoint={model}") == 4
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert "my_networks" not in sys.modules


def test_plugins_are_not_imported_for_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (translate, evaluate, export):
        assert exit_code(command, "plugins=[my_networks]", "--help") == 0
        assert "plugins" in capsys.readouterr().out
    assert "my_networks" not in sys.modules


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(translate, ("output=out",)), (evaluate, ("target=photos",))],
    ids=["translate", "evaluate"],
)
def test_bad_plugins_are_one_line_errors(
    folder: Path, capsys: pytest.CaptureFixture[str], command: ModuleType, arguments: tuple[str, ...]
) -> None:
    for value, message in {
        "[gone]": "plugins: no module gone: start the command in its folder, or put that folder into PYTHONPATH",
        "[json]": "plugins: module json has no networks: give it a table such as",
        "gone": "plugins=gone: expected a list",
    }.items():
        assert exit_code(command, *TRANSLATE[:2], *arguments, f"plugins={value}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not (folder / "out").exists()


def test_installed_plugin_package_needs_no_plugins_option(folder: Path) -> None:
    write_module(folder, source=NETWORKS)
    write_installed_package(folder, {"mine": "my_networks:MyGenerator"})

    assert exit_code(evaluate, *TRANSLATE[:2], "direction=b2a", "device=cpu") == 0
    assert exit_code(export, "checkpoint=model", "output=exported") == 0
    assert exit_code(translate, "checkpoint=exported/photo2monet.safetensors", *TRANSLATE[1:3]) == 0


def test_generator_of_plugin_is_exported_as_onnx(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="needs the extra `export`")
    options = ("checkpoint=model", "output=.", "format=onnx", "direction=a2b", "plugins=[my_networks]")

    assert exit_code(export, *options) == 0

    assert "multiples of 1 px and at least 16 px" in capsys.readouterr().out
    assert exit_code(translate, *TRANSLATE, "plugins=[my_networks]") == 0
    assert exit_code(translate, "checkpoint=photo2monet.onnx", "input=photos", "output=onnx") == 0
    one, other = (pixels_of(folder / output / "3.png").astype(int) for output in ("out", "onnx"))
    assert np.abs(one - other).max() <= 1


def test_generator_that_torch_cannot_export_is_a_one_line_error(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    source = (NETWORKS + TABLES).replace("return self.layers(x)", "return self.layers(x) if x.mean() > 0 else x")
    write_module(folder, source=source)

    assert exit_code(export, "checkpoint=model", "output=.", "format=onnx", "plugins=[my_networks]") == 4

    (line,) = capfd.readouterr().err.splitlines()
    assert "torch cannot export its generator as onnx (" in line
    assert not list(folder.glob("*.onnx"))


def test_export_in_reference_format_rejects_plugin_networks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(export, "checkpoint=model", "output=.", "format=reference", "plugins=[my_networks]") == 4
    expected = "no reference file fits MyGenerator: expected a resnet, a unet or a patch with norm"
    assert expected in capsys.readouterr().err


def test_plugin_generators_cannot_be_tiled(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(translate, *TRANSLATE, "plugins=[my_networks]", "tile=8") == 2
    assert "tile=8: this model cannot be tiled, only the built-in ResNets and U-Nets can" in capsys.readouterr().err
    assert exit_code(translate, *TRANSLATE, "plugins=[my_networks]", "memory=100KB") == 6
    assert "more than memory= allows, and this model cannot be tiled" in capsys.readouterr().out


def test_entry_point_does_not_replace_built_in_network(folder: Path) -> None:
    write_model(folder / "model", architecture=RESNET)
    write_installed_package(folder, {"resnet": "my_networks:MyGenerator"})
    assert exit_code(translate, *TRANSLATE) == 0
    assert "my_networks" not in sys.modules


def test_command_finds_plugin_module_in_working_folder(folder: Path) -> None:
    completed = started(folder, "translate", *TRANSLATE, "plugins=[my_networks]", "workers=2")
    assert completed.returncode == 0, completed.stderr
    assert "8 ok, 0 failed" in completed.stdout


@pytest.mark.slow  # Ray takes twenty seconds to start
def test_ray_actors_load_plugins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    with tempfile.TemporaryDirectory(prefix="ray") as name:  # short, as socket paths are limited
        monkeypatch.setenv("RAY_TMPDIR", name)
        completed = started(folder, "translate", *TRANSLATE, "plugins=[my_networks]", "engine=ray", "workers=1")
    assert completed.returncode == 0, completed.stderr
    assert "8 ok, 0 failed" in completed.stdout
    assert exit_code(translate, *TRANSLATE[:2], "output=local", *TRANSLATE[3:], "plugins=[my_networks]") == 0
    for seed in range(8):
        assert np.array_equal(pixels_of(folder / f"out/{seed}.png"), pixels_of(folder / f"local/{seed}.png"))
