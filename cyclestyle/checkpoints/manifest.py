"""The manifest of a checkpoint: size and sha256 of each file."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cyclestyle.checkpoints.model import GARBLED_JSON, VERSION
from cyclestyle.errors import CheckpointError, DamagedError, DiskError

SHARED_FILES = {"networks.safetensors", "training.pt"}  # files besides rank0.pt, rank1.pt, ...


def read_checksums(path: Path) -> dict[str, str]:
    """Read the manifest of checkpoint folder `path`; return the sha256 of each file, keyed by file name.

    Raises:
        DamagedError: the manifest is missing or malformed, or the files that it lists are not those of a checkpoint.
        CheckpointError: a newer version of this program wrote the checkpoint.
        DiskError: the disk cannot be read.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version = int(manifest["version"])
        if version > VERSION:
            raise CheckpointError(f"{path} is of version {version}, this program reads up to {VERSION}: update it")
        checksums = {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
        if int(manifest["ranks"]) != len(checksums) - len(SHARED_FILES):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError, *GARBLED_JSON):
        raise DamagedError(f"{path / 'manifest.json'} is missing or malformed") from None
    except OSError as error:
        raise _unreadable(path / "manifest.json", error) from None
    ranks = len(checksums) - len(SHARED_FILES)
    if ranks < 1 or checksums.keys() != SHARED_FILES | {f"rank{rank}.pt" for rank in range(ranks)}:
        raise DamagedError(f"{path / 'manifest.json'} does not list the files of a checkpoint")
    return checksums


def verify(path: Path, checksums: Mapping[str, str], *, only: Iterable[str] | None = None) -> None:
    """Compare the files of checkpoint folder `path` with their checksums.

    Args:
        checksums: file name -> expected sha256.
        only: names of the files to compare; None compares all files in `checksums`.

    Raises:
        DamagedError: a file is missing, or does not match its checksum.
        DiskError: the disk cannot be read.
    """
    for name in checksums if only is None else only:
        try:
            checksum = sha256_of(path / name)
        except FileNotFoundError:
            raise DamagedError(f"{path / name} is missing") from None
        except OSError as error:
            raise _unreadable(path / name, error) from None
        if checksum != checksums[name]:
            raise DamagedError(f"checksum mismatch in {path / name}: the file is not what was written")


def _unreadable(path: Path, error: OSError) -> DiskError:
    """Create the error for a checkpoint file that the disk fails to read.

    The file itself may be undamaged. A DamagedError would let `Checkpoints.load` set the checkpoint aside, so the
    error is a DiskError.
    """
    return DiskError(f"cannot read {path}: {(error.strerror or '').lower()}; try again when the disk can be read")


def fingerprint(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
