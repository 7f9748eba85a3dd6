"""Checkpoints: folders that are complete or absent, and the model inside them that anybody may read.

```
checkpoints/
  step_00012000/
    networks.safetensors   weights (generators.ab.*, generators.ba.*, discriminators.*, ema.ab.*, ema.ba.*);
                           architectures and domain names in its header
    training.pt            optimizers, scaler, draws done, recipe, file names
    rank0.pt ...           what each process holds for itself: its part of the image pools
    manifest.json          sha256 and size of each file; written last
  latest                   the name of the newest folder
```
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cyclestyle.distributed import World
from cyclestyle.errors import CheckpointError
from cyclestyle.files import sync_folder, write_text

VERSION = 1
_FOLDER = re.compile(r"step_(\d{8,})")
_HEADER = "cyclestyle"  # the key of our JSON in the header of a safetensors file
_SHARED = {"networks.safetensors", "training.pt"}  # besides them a checkpoint has rank0.pt and so on
_GARBLED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # from JSON that lies


class Model(NamedTuple):
    """The networks of a checkpoint as data: nothing of it is code."""

    tensors: dict[str, Tensor]  # "generators.ab.stem.0.weight" -> weights, on the CPU
    generator: dict[str, Any]  # architecture: a name from the table of networks and plain numbers
    discriminator: dict[str, Any]
    domains: tuple[str, str]
    step: int
    path: Path

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The weights below a prefix such as `"ema.ab."`, without it; empty if there are none."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


class Checkpoint(NamedTuple):
    """Everything that a run needs to go on as if nothing had happened."""

    model: Model
    training: dict[str, Any]  # the same for all processes
    ranks: list[dict[str, Any]]  # one for each process that saved

    @property
    def step(self) -> int:
        return self.model.step


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made at the first save.
        keep: how many of the newest stay on disk.
    """

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    def newest(self) -> Path | None:
        """The newest complete checkpoint's folder."""
        complete = self._complete()
        return complete[max(complete)] if complete else None

    def save(self, model: Model, training: Mapping[str, Any], own: Mapping[str, Any], *, world: World) -> Path:
        """Write a checkpoint from all processes; whole or, if anything fails, not at all.

        Args:
            model, training: the same in every process; rank 0 writes them.
            own: what only this process holds.
        """
        final = self.folder / f"step_{model.step:08d}"
        building = self.folder / f".{final.name}.tmp"  # beside its target: the rename stays on one file system
        if world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
        world.barrier()
        _write(building / f"rank{world.rank}.pt", lambda path: torch.save(dict(own), path))
        world.barrier()

        if world.is_main:
            write_model(model, building / "networks.safetensors")
            _write(building / "training.pt", lambda path: torch.save(dict(training), path))
            manifest = {"version": VERSION, "step": model.step, "ranks": world.size, "files": _fingerprints(building)}
            write_text(building / "manifest.json", json.dumps(manifest, indent=1))
            sync_folder(building)
            shutil.rmtree(final, ignore_errors=True)  # of the same step, from before a resume without it
            building.rename(final)
            sync_folder(self.folder)
            write_text(self.folder / "latest", final.name + "\n")
            self._prune()
        world.barrier()
        return final

    def load(self) -> Checkpoint | None:
        """The newest checkpoint, or None if there is none yet.

        Raises:
            CheckpointError: it is damaged or was written by a newer version.
        """
        path = self.newest()
        return None if path is None else read(path)

    def _prune(self) -> None:
        complete = self._complete()
        interrupted = list(self.folder.glob(".step_*.tmp"))
        for path in [*(complete[step] for step in sorted(complete)[: -self.keep]), *interrupted]:
            shutil.rmtree(path, ignore_errors=True)

    def _complete(self) -> dict[int, Path]:
        """Step -> folder, of those that have a manifest."""
        if not self.folder.is_dir():
            return {}
        matches = {path: _FOLDER.fullmatch(path.name) for path in self.folder.iterdir()}
        return {int(match[1]): path for path, match in matches.items() if match and (path / "manifest.json").is_file()}


def read(path: Path) -> Checkpoint:
    """A checkpoint's folder, verified against its manifest.

    Raises:
        CheckpointError: a file is missing or not what was written, or a newer version wrote it.
    """
    checksums = _checksums(path)
    for name, expected in checksums.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name} is missing: the checkpoint is not complete")
        if _sha256(path / name) != expected:
            raise CheckpointError(f"checksum mismatch in {path / name}: the file is not what was written")
    return Checkpoint(
        model=read_model(path / "networks.safetensors"),
        training=_load(path / "training.pt"),
        ranks=[_load(path / f"rank{rank}.pt") for rank in range(len(checksums) - len(_SHARED))],
    )


def write_model(model: Model, path: Path) -> None:
    """Networks as one safetensors file that knows its architecture and its domains."""
    header = {
        "version": VERSION,
        "step": model.step,
        "domains": list(model.domains),
        "generator": model.generator,
        "discriminator": model.discriminator,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.tensors.items()}
    _write(path, lambda target: save_file(tensors, target, metadata={_HEADER: json.dumps(header)}))


def read_model(path: Path) -> Model:
    """The networks of a run folder, a checkpoint's folder or a safetensors file.

    Raises:
        CheckpointError: there is none, or it is not one of ours.
    """
    file = _model_file(path)
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get(_HEADER, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, *_GARBLED) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(header, dict) or not isinstance(header.get("version"), int):
        raise CheckpointError(f"{file} is not a cyclestyle model: its header has no architecture")
    if header["version"] > VERSION:
        raise CheckpointError(
            f"{file} is of version {header['version']}, this program reads up to {VERSION}: update it"
        )
    try:
        first, second = (str(name) for name in header["domains"])
        architectures = dict(header["generator"]), dict(header["discriminator"])
        return Model(tensors, *architectures, (first, second), int(header["step"]), file)
    except _GARBLED as error:
        raise CheckpointError(f"{file} is not a cyclestyle model: its header lacks or garbles {error}") from None


def _model_file(path: Path) -> Path:
    """Where the networks are, given a run folder, a checkpoint's folder or the file itself."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path.absolute()}")
    if (path / "networks.safetensors").is_file():
        return path / "networks.safetensors"
    for folder in (path / "checkpoints", path):
        newest = Checkpoints(folder).newest()
        if newest is not None:
            return newest / "networks.safetensors"
    raise CheckpointError(f"no checkpoint in {path.absolute()}: is it a run folder such as runs/monet?")


def _checksums(path: Path) -> dict[str, str]:
    """File -> sha256 by the manifest, which must list the files of a checkpoint and no others."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version = int(manifest["version"])
        if version > VERSION:
            raise CheckpointError(f"{path} is of version {version}, this program reads up to {VERSION}: update it")
        checksums = {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, *_GARBLED):
        raise CheckpointError(f"{path / 'manifest.json'} is missing or malformed") from None
    ranks = len(checksums) - len(_SHARED)
    if ranks < 1 or checksums.keys() != _SHARED | {f"rank{rank}.pt" for rank in range(ranks)}:
        raise CheckpointError(f"{path / 'manifest.json'} does not list the files of a checkpoint")
    return checksums


def _load(path: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # what a file can make torch raise is documented nowhere
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}") from error


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file and see it onto the disk."""
    write(path)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.name: {"sha256": _sha256(file), "bytes": file.stat().st_size} for file in sorted(folder.iterdir())}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
