"""Tests of the wheel, which is installed without the checkout and used from another folder."""

import os
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.pictures import picture

REPOSITORY = Path(__file__).parent.parent
QUICK = [
    "trainer.steps=2", "trainer.device=cpu", "data.train=4", "data.test=2", "data.size=32", "data.load_size=32",
    "data.crop_size=32", "data.workers=0", "generator.channels=4", "generator.levels=2", "discriminator.channels=4",
    "logger.tensorboard=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, without build isolation, which would download hatchling."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts folder of a new environment, which contains the wheel and the present environment's other packages."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)

    # Folders named in a .pth file come after the environment's own packages, and .pth files inside them are ignored,
    # so the editable install of the checkout, which is a .pth file, cannot be imported.
    variables = {"base": str(environment), "platbase": str(environment)}
    own_packages = Path(sysconfig.get_path("purelib", "venv", variables))
    (own_packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return scripts


@pytest.fixture(scope="module")
def trained(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `cyclestyle-train +experiment=demo` in a new folder; return the folder."""
    folder = tmp_path_factory.mktemp("anywhere")
    run(folder, installed / "cyclestyle-train", "+experiment=demo", *QUICK)
    return folder


def run(folder: Path, *command: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_wheel_holds_exactly_the_package_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    configs = {f"cyclestyle/{file.relative_to(REPOSITORY)}" for file in (REPOSITORY / "configs").rglob("*.yaml")}
    modules = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "cyclestyle").rglob("*.py")}
    assets = {f"cyclestyle/photoset/contact_sheet/page.{kind}" for kind in ("html", "css", "js")}
    assert configs | modules | assets <= names
    assert names - configs - modules - assets == {"cyclestyle/py.typed"}


def test_installed_package_reads_its_own_configs(installed: Path, tmp_path: Path) -> None:
    code = "import cyclestyle, cyclestyle.cli.compose as c; print(cyclestyle.__file__, c.config_dir(), sep='\\n')"
    package, configs = run(tmp_path, installed / "python", "-c", code).splitlines()
    assert Path(package).resolve().is_relative_to(installed.parent.resolve())
    assert Path(configs) == Path(package).resolve().parent / "configs"


def test_training_writes_to_current_folder_only(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {"data", "runs"}
    assert (trained / "runs/demo/checkpoints/step_00000002/manifest.json").is_file()
    assert len(list((trained / "data/scenes/trainA").iterdir())) == 4


def test_help_lists_experiments_of_wheel(installed: Path, tmp_path: Path) -> None:
    text = run(tmp_path, installed / "python", "-m", "cyclestyle.train", "--help")
    assert "horse2zebra" in text
    assert "trainer.batch_size" in text
    assert list(tmp_path.iterdir()) == []


def test_installed_command_reads_configs_of_the_user(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    (tmp_path / "configs" / "experiment" / "mine.yaml").write_text("defaults:\n  - smoke\nname: mine\n")
    first = run(tmp_path, installed / "cyclestyle-train", "experiment=mine", "--cfg", "job")
    assert first.startswith("name: mine\n")
    assert "train: 8\n" in first
    (tmp_path / "my.yaml").write_text(first)
    assert run(tmp_path, installed / "cyclestyle-train", "experiment=my.yaml", "--cfg", "job") == first


def test_installed_command_translates_with_trained_run(installed: Path, trained: Path, tmp_path: Path) -> None:
    picture(0, 30, 21).save(tmp_path / "photo.png")
    run(
        tmp_path, installed / "cyclestyle-translate", f"checkpoint={trained}/runs/demo", "input=photo.png",
        "output=painting.png", "direction=photo2painting", "device=cpu",
    )  # fmt: skip
    with Image.open(tmp_path / "painting.png") as painting:
        assert painting.size == (30, 21)
        assert painting.convert("RGB").tobytes() != picture(0, 30, 21).tobytes()
