"""Colour of training images on the command line: new runs, and runs that began before `data.colour` existed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests import profiles
from tests.checkpoints.test_directory import equal
from tests.pictures import two_domains
from tests.test_train import newest, rewrite, run, same

Command = Callable[..., int]


@pytest.fixture
def tagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Function that trains tiny networks on images in Adobe RGB, in this process, and returns the exit code."""
    two_domains(tmp_path / "set")
    for file in (tmp_path / "set").rglob("*.png"):
        Image.open(file).save(file, icc_profile=profiles.adobe())
    monkeypatch.chdir(tmp_path)
    sizes = ("data.resize=none", "data.crop_size=16", "generator.channels=4", "generator.blocks=1")
    discriminator = ("discriminator=pixel", "discriminator.channels=4")

    def command(*arguments: str) -> int:
        return run("data=folders", "data.root=set", "trainer.device=cpu", *sizes, *discriminator, *arguments)

    return command


def forget_new_keys(run_folder: str) -> None:
    """Remove the keys that earlier versions lacked from the config and the newest checkpoint of a run."""
    keys = ("colour", "channels_a", "channels_b", "tolerance", "decoder", "range")

    def older(training: dict[str, Any]) -> None:
        for key in keys:
            del training["recipe"]["data"][key]

    rewrite(run_folder, older)
    config = OmegaConf.load(Path(run_folder) / "config.yaml")
    for key in keys:
        del config.data[key]
    OmegaConf.save(config, Path(run_folder) / "config.yaml")


@pytest.mark.parametrize("has_config", [True, False])
def test_run_of_earlier_version_resumes_with_raw_colour_bit_exactly(
    tagged: Command, capsys: pytest.CaptureFixture[str], has_config: bool
) -> None:
    earlier = ("data.colour=raw", "data.decoder=earlier")
    assert tagged("name=whole", "trainer.steps=3", *earlier) == 0
    assert tagged("name=old", "trainer.steps=1", *earlier) == 0
    forget_new_keys("runs/old")
    if not has_config:
        Path("runs/old/config.yaml").unlink()
    for steps in (2, 3):  # the second resume reads files that the first has written
        capsys.readouterr()
        assert tagged("name=old", f"trainer.steps={steps}") == 0
        printed = capsys.readouterr().out
        assert "this run was started with data.colour=raw, and keeps it" in printed
        assert "this run was started with data.decoder=earlier, and keeps it" in printed
        assert OmegaConf.load("runs/old/config.yaml").data.colour == "raw"
    assert same(newest("runs/whole"), newest("runs/old"))


def test_default_colour_mode_is_managed_and_cannot_be_changed_on_resume(
    tagged: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tagged("name=raw", "trainer.steps=2", "data.colour=raw") == 0
    assert tagged("name=managed", "trainer.steps=1") == 0
    shutil.copytree("runs/managed", "runs/copy")
    assert tagged("name=managed", "trainer.steps=2") == 0
    assert OmegaConf.load("runs/managed/config.yaml").data.colour == "managed"
    assert not equal(newest("runs/raw").model.tensors, newest("runs/managed").model.tensors)
    capsys.readouterr()
    assert tagged("name=copy", "trainer.steps=2", "data.colour=raw") == 2
    assert "data.colour: managed -> raw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("data.colour=srgb", "data.colour=srgb: expected managed or raw"),
        ("data.channels_a=2", "data.channels_a=2: expected 1 or 3"),
        ("data.channels_b=4", "data.channels_b=4: expected 1 or 3"),
    ],
)
def test_unknown_colour_mode_or_channel_count_gives_one_line_error(
    tagged: Command, capsys: pytest.CaptureFixture[str], setting: str, error: str
) -> None:
    assert tagged(setting, "trainer.steps=1") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert error in lines[0]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("generator.in_channels=1", "set generator.ab.in_channels=3, or data.channels_a and data.channels_b"),
        ("generator.ba.out_channels=1", "set generator.ba.out_channels=3, or data.channels_a and data.channels_b"),
        ("discriminator.b.in_channels=1", "set discriminator.b.in_channels=3, or data.channels_a and data.channels_b"),
        ("data.channels_b=1", "set objective.identity=0, and use no term that needs identity images"),
    ],
)
def test_channels_that_do_not_fit_networks_give_one_line_error(
    tagged: Command, capsys: pytest.CaptureFixture[str], setting: str, remedy: str
) -> None:
    assert tagged(setting, "trainer.steps=1") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(remedy)


def test_grey_domains_train_with_grey_networks(tagged: Command) -> None:
    assert tagged("name=grey", "trainer.steps=1", "data.channels_a=1", "data.channels_b=1") == 0
    model = newest("runs/grey").model
    assert {architecture["in_channels"] for architecture in model.generators.values()} == {1}
    assert {architecture["in_channels"] for architecture in model.discriminators.values()} == {1}
    samples = list(Path("runs/grey/samples").iterdir())
    assert samples
    with Image.open(samples[0]) as sheet:
        assert sheet.mode == "RGB"
        columns = sheet.crop((4, sheet.height - 24, 20, sheet.height - 8))  # last probe image
        pixels = np.asarray(columns, np.int16)  # JPEG rounds each channel on its own
        assert (pixels.max(axis=2) - pixels.min(axis=2)).max() <= 2
