"""Cache of the features of sets of images, in the folder `statistics` of the cache folder."""

import contextlib
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cyclestyle.checkpoints.model import GARBLED_JSON
from cyclestyle.errors import CommandError, warn
from cyclestyle.filesystem.atomic import atomic_write
from cyclestyle.filesystem.cache import cache_folder
from cyclestyle.filesystem.listing import printable
from cyclestyle.model_files.weights_file import checksum

VERSION = 1  # part of every key; increase it if the same images would have other features
LIMIT = 4_000_000_000  # bytes of all files together; the files that were not used for the longest time are removed
_ABANDONED_S = 24 * 3600.0  # age of a temporary file, in seconds, from which on no process writes to it
_CHECKSUM = "sha256"  # key in the safetensors header


class Damaged(Exception):  # noqa: N818 - a state of a file, which is handled here
    """A file of the cache is malformed, or does not match its checksum."""


def statistics_folder() -> Path:
    """Return the folder of the cached features, which may not exist; raise a CommandError if there is no cache."""
    return cache_folder() / "statistics"


def file_name(label: str, *content: object) -> str:
    """Return the name of the cache file for certain features.

    Args:
        label: start of the file name, for people who look into the folder.
        content: all values that determine the features, such as checksums of the images; types that JSON can encode.
    """
    key = hashlib.sha256(json.dumps([VERSION, *content]).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', label)}-{key[:32]}.safetensors"


def read(name: str, *, is_silent: bool = False) -> list[Tensor] | None:
    """Return the tensors of a file in the cache, in the order in which `write` received them.

    The result is None if the file is missing or damaged, or if there is no cache. A damaged file is reported by a
    warning, unless `is_silent` is true.
    """
    try:
        path = statistics_folder() / name
        tensors = _read(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError, CommandError):
        return None
    except (Damaged, OSError) as error:
        if not is_silent:
            warn(f"{statistics_folder() / name} is damaged ({error}): the features are computed again")
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the time of the last use, for `_remove_oldest`
    return tensors


def write(name: str, tensors: Sequence[Tensor]) -> None:
    """Write tensors to a file in the cache, atomically; if the cache is full, remove the least recently used files.

    If the write fails, no error is raised: the features are computed again the next time. Each reason of a failure
    gives one warning, not one for each file.
    """
    named = {f"{number:03}": tensor.contiguous() for number, tensor in enumerate(tensors)}
    content = safetensors.torch.save(named, {_CHECKSUM: checksum(named)})
    try:
        folder = statistics_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _remove_oldest(folder, LIMIT - len(content))
        with atomic_write(folder / name) as stream:
            stream.write(content)
    except OSError as error:
        _warn_once(f"{printable(folder)}: {error.strerror or error}")
    except CommandError as error:
        _warn_once(str(error))


def _read(path: Path) -> list[Tensor]:
    try:
        with path.open("rb"):  # a clear error for a missing file
            pass
        with safe_open(path, framework="pt") as opened:
            expected = (opened.metadata() or {})[_CHECKSUM]
            # Tensors are cloned: they map the file, and this process would crash if the file were truncated later.
            named = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, *GARBLED_JSON) as error:
        raise Damaged(str(error)) from None
    if checksum(named) != expected:
        raise Damaged("its checksum differs")
    return [named[name] for name in sorted(named)]


def _remove_oldest(folder: Path, limit: int) -> None:
    """Remove the files that were not used for the longest time, until all files together have `limit` bytes or less.

    Temporary files that killed processes left are removed too.
    """
    for path in folder.glob(".*.tmp"):  # left by a killed process, or just being written
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _ABANDONED_S:
                path.unlink()
    files = []
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):  # another process may have removed it
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


@functools.cache
def _warn_once(reason: str) -> None:
    warn(
        f"features of the real pictures cannot be cached ({reason}): they are computed again the next time; "
        f"CYCLESTYLE_CACHE names another folder for the cache"
    )
