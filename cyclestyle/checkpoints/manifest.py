"""The manifest of a checkpoint: size and sha256 of each file."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cyclestyle.checkpoints.model import _GARBLED, VERSION
from cyclestyle.errors import CheckpointError, DamagedError, DiskError

_SHARED = {"networks.safetensors", "training.pt"}  # besides them a checkpoint has rank0.pt and so on


def _checksums(path: Path) -> dict[str, str]:
    """File -> sha256 by the manifest, which must list the files of a checkpoint and no others."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version = int(manifest["version"])
        if version > VERSION:
            raise CheckpointError(f"{path} is of version {version}, this program reads up to {VERSION}: update it")
        checksums = {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
        if int(manifest["ranks"]) != len(checksums) - len(_SHARED):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError, *_GARBLED):
        raise DamagedError(f"{path / 'manifest.json'} is missing or malformed") from None
    except OSError as error:
        raise _unreadable(path / "manifest.json", error) from None
    ranks = len(checksums) - len(_SHARED)
    if ranks < 1 or checksums.keys() != _SHARED | {f"rank{rank}.pt" for rank in range(ranks)}:
        raise DamagedError(f"{path / 'manifest.json'} does not list the files of a checkpoint")
    return checksums


def _verify(path: Path, checksums: Mapping[str, str], *, only: Iterable[str] | None = None) -> None:
    """Raise a DamagedError unless the files (all, or only some) are what the manifest says."""
    for name in checksums if only is None else only:
        try:
            found = _sha256(path / name)
        except FileNotFoundError:
            raise DamagedError(f"{path / name} is missing") from None
        except OSError as error:
            raise _unreadable(path / name, error) from None
        if found != checksums[name]:
            raise DamagedError(f"checksum mismatch in {path / name}: the file is not what was written")


def _unreadable(path: Path, error: OSError) -> DiskError:
    """A disk that fails now does not make a damaged checkpoint, which would be taken away."""
    return DiskError(f"cannot read {path}: {(error.strerror or '').lower()}; try again when the disk can be read")


def _fingerprint(file: Path) -> dict[str, Any]:
    return {"sha256": _sha256(file), "bytes": file.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
