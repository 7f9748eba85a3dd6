"""Cache of the features of sets of images."""

import multiprocessing
import os
import resource
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cyclestyle.evaluation import statistics_cache
from cyclestyle.evaluation.features import SetFeatures, set_features
from cyclestyle.evaluation.rulers import Ruler
from tests.evaluation.small_network import LAYERS, SmallNetwork, small_ruler
from tests.forked import NOBODY, in_a_child
from tests.pictures import folder_of


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder of the statistics in an empty cache."""
    monkeypatch.setenv("CYCLESTYLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


def measured(files: list[Path], ruler: Ruler | None = None, **settings: object) -> tuple[SetFeatures, int]:
    """Features of a set, and the number of images that the network saw for them."""
    ruler = ruler or small_ruler()
    before = len(ruler.network.calls)
    features = set_features(files, ruler, **{"parts": ["pooled", "grams"], **settings})
    return features, sum(count for count, _ in ruler.network.calls[before:])


def assert_identical(x: SetFeatures, y: SetFeatures) -> None:
    torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_features_come_from_the_cache_at_the_second_call(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "set", 5)
    first, computed = measured(files)
    second, repeated = measured(files)
    assert (computed, repeated) == (5, 0)
    assert_identical(first, second)


def test_features_are_found_by_the_content_of_the_files(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "set", 4)
    expected, _ = measured(files)
    renamed = [tmp_path / f"copy{number}.png" for number in range(4)]
    for file, copy in zip(files, renamed, strict=True):
        shutil.copyfile(file, copy)
    found, computed = measured(renamed)
    assert computed == 0
    assert_identical(found, expected)


def changed_image(files: list[Path]) -> tuple[list[Path], dict[str, object]]:
    status = files[1].stat()
    shutil.copyfile(files[0], files[1])
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    return files, {}


DIFFERENCES: dict[str, Callable[[list[Path]], tuple[list[Path], dict[str, object]]]] = {
    "content": changed_image,
    "order": lambda files: (files[::-1], {}),
    "fewer files": lambda files: (files[:-1], {}),
    "weights": lambda files: (files, {"ruler": small_ruler(seed=1)}),
    "size": lambda files: (files, {"ruler": small_ruler(size=36)}),
    "layers": lambda files: (files, {"ruler": small_ruler(layers=LAYERS._replace(style=("deep", "shallow")))}),
    "name": lambda files: (files, {"ruler": Ruler("other", SmallNetwork(), size=32, layers=LAYERS)}),
    "photo_size": lambda files: (files, {"photo_size": 16}),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_features_of_other_images_or_rulers_are_not_reused(tmp_path: Path, difference: str) -> None:
    files = folder_of(tmp_path / "set", 4)
    measured(files)
    others, settings = DIFFERENCES[difference](files)
    found, computed = measured(others, **settings)
    assert computed == len(others)
    expected, _ = measured(others, cache=False, **settings)
    assert_identical(found, expected)


def test_each_part_is_cached_separately(tmp_path: Path, cache: Path) -> None:
    files = folder_of(tmp_path / "set", 4)
    assert measured(files, parts=["pooled"])[1] == 4
    assert [file.name.rpartition("-")[0] for file in cache.iterdir()] == ["small-pooled"]
    ruler = small_ruler()
    both, computed = measured(files, ruler)
    assert computed == 4
    assert {layers for _, layers in ruler.network.calls} == {("shallow", "deep")}
    assert_identical(both, measured(files, cache=False)[0])
    assert measured(files)[1] == 0


def test_cache_can_be_switched_off(tmp_path: Path, cache: Path) -> None:
    files = folder_of(tmp_path / "set", 2)
    assert [measured(files, cache=False)[1] for _ in range(2)] == [2, 2]
    assert not cache.exists()


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 16
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "bit": flip_a_bit,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no tensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_reported_and_computed_again(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    files = folder_of(tmp_path / "set", 3)
    expected, _ = measured(files)
    (pooled,) = cache.glob("small-pooled-*")
    whole = pooled.read_bytes()
    DAMAGES[damage](pooled)
    found, computed = measured(files)
    assert computed == 3
    assert_identical(found, expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cyclestyle: {pooled} is damaged (")
    assert line.endswith("): the features are computed again")
    assert pooled.read_bytes() == whole
    assert measured(files)[1] == 0


def test_unwritable_cache_is_reported_once(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.parent.write_text("a file in place of the folder")
    files = folder_of(tmp_path / "set", 3)
    results = [measured(files) for _ in range(2)]
    assert [computed for _, computed in results] == [3, 3]
    assert_identical(results[0][0], results[1][0])
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be cached" in line
    assert "CYCLESTYLE_CACHE" in line


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to start a process of another user")
def test_cache_of_another_user_is_read_but_not_written(tmp_path: Path, cache: Path) -> None:
    files = folder_of(tmp_path / "set", 3)
    expected, _ = measured(files)
    open_to_others(tmp_path)
    names = sorted(cache.iterdir())

    def as_another_user() -> tuple[SetFeatures, int, int]:
        cached = measured(files)
        return *cached, measured(files[1:])[1]

    found, repeated, computed = in_a_child(as_another_user, uid=NOBODY)
    assert (repeated, computed) == (0, 2)
    assert_identical(found, expected)
    assert sorted(cache.iterdir()) == names


def open_to_others(folder: Path) -> None:
    """Let other users enter the folders that pytest has created: three, and one more in a parallel run."""
    for each in [folder, *folder.parents][:4]:
        if stat.S_IMODE(each.stat().st_mode) == 0o700:
            each.chmod(0o755)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to start a process of another user")
def test_private_cache_of_another_user_is_reported_once(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = folder_of(tmp_path / "set", 3)
    expected, _ = measured(files)
    open_to_others(tmp_path)
    cache.chmod(0o700)
    found, computed = in_a_child(lambda: measured(files), uid=NOBODY)
    assert computed == 3
    assert_identical(found, expected)
    (line,) = capfd.readouterr().err.splitlines()
    assert f"cannot be cached ({cache}: Permission denied)" in line


def test_two_processes_at_once_leave_whole_files(tmp_path: Path, cache: Path) -> None:
    files = folder_of(tmp_path / "set", 40)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.SimpleQueue()

    def measure() -> None:
        barrier.wait(timeout=60)
        features, computed = measured(files)
        results.put((features.pooled.tolist(), [layer.tolist() for layer in features.grams], computed))

    processes = [context.Process(target=measure, daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    both = [results.get() for _ in processes]
    for process in processes:
        process.join(60)
    expected, repeated = measured(files)
    assert repeated == 0
    for pooled, grams, _ in both:
        assert pooled == expected.pooled.tolist()
        assert grams == [layer.tolist() for layer in expected.grams]
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"] * 2
    assert [process.exitcode for process in processes] == [0, 0]


def test_files_not_used_for_the_longest_time_are_removed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [folder_of(tmp_path / str(number), 3, first=10 * number) for number in range(4)]
    for number, files in enumerate(sets[:3]):
        measured(files, parts=["pooled"])
        for file in cache.iterdir():
            if file.stat().st_mtime > 1e9:  # new
                os.utime(file, (number, number))
    monkeypatch.setattr(statistics_cache, "LIMIT", 3 * next(cache.iterdir()).stat().st_size)
    assert measured(sets[0], parts=["pooled"])[1] == 0  # used now: the second set becomes the oldest
    measured(sets[3], parts=["pooled"])
    assert len(list(cache.iterdir())) == 3
    assert [measured(files, parts=["pooled"], cache=True)[1] for files in (sets[0], sets[2], sets[3])] == [0, 0, 0]
    assert measured(sets[1], parts=["pooled"])[1] == 3


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    abandoned, recent = cache / ".0123456789abcdef.tmp", cache / ".fedcba9876543210.tmp"
    for file in (abandoned, recent):
        file.touch()
    os.utime(abandoned, (0, 0))
    measured(folder_of(tmp_path / "set", 2))
    assert (abandoned.exists(), recent.exists()) == (False, True)


def test_full_disk_is_reported_and_leaves_no_file(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = folder_of(tmp_path / "set", 40)

    def on_a_full_disk() -> tuple[SetFeatures, int]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (800, 800))  # bytes; a warning is shorter, the features are longer
        return measured(files)

    found, computed = in_a_child(on_a_full_disk)
    assert computed == 40
    assert_identical(found, measured(files, cache=False)[0])
    assert list(cache.iterdir()) == []
    (line,) = capfd.readouterr().err.splitlines()
    assert f"cannot be cached ({cache}: File too large)" in line


def test_user_without_home_folder_has_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CYCLESTYLE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", no_home)
    files = folder_of(tmp_path / "set", 3)
    assert [measured(files, parts=["pooled"])[1] for _ in range(2)] == [3, 3]
    (line,) = capsys.readouterr().err.splitlines()
    assert "this user has no home folder for the cache: set CYCLESTYLE_CACHE to a folder" in line


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
