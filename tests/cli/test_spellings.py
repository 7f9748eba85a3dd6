"""Tests of values that are typed in another spelling than that of the config files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cyclestyle.cli.compose import check, compose, config_dir, groups
from cyclestyle.cli.help import help_text
from cyclestyle.cli.signatures import matches
from cyclestyle.errors import CommandError, DataError
from cyclestyle.hardware.device import device_count, device_type, process_count
from cyclestyle.images import file_formats
from cyclestyle.photoset.inputs import find, names
from cyclestyle.photoset.plan import make_jobs
from cyclestyle.translation.pipeline import as_strengths
from cyclestyle.translation.tiled.tiling import parse_memory


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("strength=50%", 0.5),
        ("strength=[25%,100%]", [0.25, 1.0]),
        ('strength="0.5"', 0.5),
        ("keep=color", "colour"),
        ("format=jpg", "jpeg"),
        ("format=JPG", "jpeg"),
        ("format=.png", "png"),
        ("format=tiff", "tiff"),
        ("format=tif", "tiff"),
        ("memory=4", "4"),
        ("memory=0.5", "0.5"),
        ('quality="90"', 90),
        ('resize="1024"', 1024),
    ],
)
def test_alternative_spelling_is_accepted(typed: str, value: Any) -> None:
    key = typed.partition("=")[0]
    assert compose("translate", [typed])[key] == value


@pytest.mark.parametrize(
    ("command", "typed", "message"),
    [
        ("translate", "strength=0,5", "write strength=0.5"),
        ("translate", "strength=0.5,1", "give a list: 'strength=[0.5,1]'"),
        ("train", "optimizer.lr=0,0002", "write optimizer.lr=0.0002"),
        ("train", "trainer.steps=1,2", "add --multirun"),
        ("train", "experiment=demo experiment=monet", "choose one experiment"),
        ("train", "experiment=demo experiment=demo", "choose one experiment"),
    ],
)
def test_several_values_for_one_key_give_error_with_a_remedy(command: str, typed: str, message: str) -> None:
    with pytest.raises(CommandError) as error:
        compose(command, typed.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strength", ["half", "50%", [0.5, "x"], None, []])
def test_strength_option_that_is_not_a_number_is_a_command_error(strength: Any) -> None:
    with pytest.raises(CommandError, match="strength="):
        as_strengths(strength)


@pytest.mark.parametrize(("text", "size"), [("4", 4e9), ("2", 2e9), ("0.5", 0.5e9), ("4GB", 4e9), ("4000000", 4e6)])
def test_memory_option_without_unit_is_in_gb_if_below_100(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(("format_", "name"), [("tiff", "a.tif"), ("avif", "a.avif"), ("jpeg", "a.jpg")])
def test_output_file_suffix_matches_image_format(format_: Any, name: str) -> None:
    assert file_formats.target_name(Path("a.png"), format_) == Path(name)


def test_string_does_not_match_sequence_annotation() -> None:
    assert not matches("half", Sequence[float])
    assert matches(["half"], Sequence[str])


@pytest.mark.parametrize("typed", ["generator.blocks=1", "trainer.stepz=1", "optimizer.lrr=1"])
def test_suggested_key_resembles_last_part_of_mistyped_key(typed: str) -> None:
    guess = {"trainer.stepz=1": "trainer.steps", "optimizer.lrr=1": "optimizer.lr"}.get(typed)
    with pytest.raises(CommandError) as error:
        check(compose("train", ["generator=unet", typed]))
    assert (f"did you mean {guess}?" in str(error.value)) == (guess is not None)
    assert "generator.levels?" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("device", "cuda"), ("device", "mps")])
def test_missing_device_error_names_the_config_key(key: str, value: Any) -> None:
    if device_count(value) and device_type("auto") == value:
        pytest.skip("this machine has such a device")
    with pytest.raises(CommandError, match=f"^trainer.{key}={value}: this machine has none"):
        process_count(1, value)


HEADINGS = {"translate": ["everyday", "quality", "files", "machine"], "train": ["objective", "data", "trainer"]}


@pytest.mark.parametrize("command", HEADINGS)
def test_help_shows_keys_under_headings(command: str) -> None:
    text = help_text(config_dir(), command, groups(command))
    lines = [line.strip().removesuffix(":") for line in text.splitlines() if line.startswith(" ") and line[1] != " "]
    assert [line for line in lines if line in HEADINGS[command]] == HEADINGS[command]


@pytest.mark.parametrize("content", [b"", b"seed: 1\n", b"#\nseed: 1\n", b"# caf\xe9\n", None])
def test_experiment_without_readable_header_is_listed_in_help(content: bytes | None, tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    if content is None:
        (folder / "mine.yaml").mkdir()
    else:
        (folder / "mine.yaml").write_bytes(content)
    text = help_text(config_dir(), "train", groups("train"), folders=[config_dir(), tmp_path])
    assert ("mine" in [line.split()[0] for line in text.splitlines() if line.strip()]) == (content is not None)


def test_missing_input_file_is_named_as_missing_if_output_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture or folder"):
        make_jobs(str(tmp_path / "missing.jpg"), tmp_path / "out.jpg")


def test_glob_pattern_in_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        find(str(tmp_path / "missing" / "*.jpg"))


def test_file_given_as_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataError, match="is a file: give a folder"):
        names(tmp_path / "a.jpg")


def test_closed_standard_input_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        find("-")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_path_list_is_read_in_utf_8_or_latin_1(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "café.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes("café.jpg\n".encode(encoding))
    assert [source.reason for source in find("list.txt").sources] == [""]
    assert [source.name.name for source in find("list.txt").sources] == ["café.jpg"]
