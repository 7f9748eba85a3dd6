"""Checkpoints: folders that are complete or absent, and the model inside them that anybody may read.

```
checkpoints/
  step_00012000/
    networks.safetensors   weights (generators.ab.*, generators.ba.*, discriminators.*, ema.ab.*, ema.ba.*);
                           architectures and domain names in its header
    training.pt            optimizers, scaler, draws done, recipe, file names
    rank0.pt ...           what each process holds for itself: its part of the image pools
    manifest.json          sha256 and size of each file; written last
  latest                   the name of the newest folder, for people and scripts
```

Writing goes on in a hidden folder beside its target, which takes the target's name once all is on the disk. Whatever
interrupts it, the checkpoints that were there before are as they were.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from cyclestyle.checkpoints.manifest import _SHARED, _checksums, _fingerprint, _verify
from cyclestyle.checkpoints.model import _GARBLED, _HEADER, VERSION, Model, tensor_bytes, write_model
from cyclestyle.distributed.world import FailedElsewhereError, World
from cyclestyle.errors import CheckpointError, CommandError, DamagedError, DiskError, warn
from cyclestyle.filesystem.atomic import _write, disk_error, free_space, remove_temporary_files, sync_folder, write_text

_FOLDER = re.compile(r"step_(\d{8,})")


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
        keep: how many of the newest stay on disk, two at least: the newest may be found damaged.
        keep_every: those whose step is a multiple of it stay for ever; None keeps none for that.

    Raises:
        CommandError: `keep` is below 2 or `keep_every` below 1.
    """

    def __init__(self, folder: Path, *, keep: int = 3, keep_every: int | None = None) -> None:
        if keep < 2:
            raise CommandError(
                f"checkpoint.keep={keep}: give 2 or more, a run goes on from the second if one is damaged"
            )
        if keep_every is not None and keep_every < 1:
            raise CommandError(f"checkpoint.keep_every={keep_every}: give a number of steps, 1 or more")
        self.folder, self.keep, self.keep_every = folder, keep, keep_every

    def newest(self) -> Path | None:
        """The newest complete checkpoint's folder; what is in its files is not looked at."""
        return next(iter(self._newest_first(whole=True)), None)

    def save(self, model: Model, training: Mapping[str, Any], own: Mapping[str, Any], *, world: World) -> Path:
        """Write a checkpoint from all processes; whole or, if anything fails in any of them, not at all.

        Args:
            model, training: the same in every process; rank 0 writes them.
            own: what only this process holds.

        Raises:
            DiskError: it cannot be written; older checkpoints are as they were.
        """
        final = self.folder / f"step_{model.step:08d}"
        building = self.folder / f".{final.name}.tmp"  # beside its target: the rename stays on one file system
        need = tensor_bytes(own) + (tensor_bytes(training) + tensor_bytes(model.tensors) if world.is_main else 0)
        free: int | None = None
        try:
            with world.all_or_none():
                if world.is_main:
                    shutil.rmtree(building, ignore_errors=True)
                    building.mkdir(parents=True)
            free = free_space(building)
            with world.all_or_none():
                _write(building / f"rank{world.rank}.pt", lambda stream: torch.save(dict(own), stream))
            with world.all_or_none():
                if world.is_main:
                    write_model(model, building / "networks.safetensors")
                    _write(building / "training.pt", lambda stream: torch.save(dict(training), stream))
                    self._publish(building, final, ranks=world.size)
        except OSError as error:
            what = f"cannot write checkpoint at step {model.step}"
            raise disk_error(what, error, self.folder, need=need, free=free) from None
        except FailedElsewhereError:
            raise DiskError(f"cannot write checkpoint at step {model.step}: another process could not") from None
        finally:
            if world.is_main:
                shutil.rmtree(building, ignore_errors=True)  # gone if all went well
        if world.is_main:
            self._prune()
        return final

    def load(self, *, mend: bool = False, tell: Callable[[str], None] = warn) -> Checkpoint | None:
        """The newest checkpoint that is what was written, or None if there is none yet.

        Args:
            mend: take damaged ones out of the way, so that they are tried no more; for whoever owns the run.
            tell: is told of every damaged one, if an older one can be used instead.

        Raises:
            CheckpointError: all are damaged, or the newest was written by a newer version.
        """
        damaged: list[tuple[Path, DamagedError]] = []
        for path in self._newest_first(whole=False):
            try:
                checkpoint = read(path)
            except DamagedError as error:
                damaged.append((path, error))
                continue
            for other, reason in damaged:
                tell(f"{reason}, using {path.name} instead")
                if mend:
                    self._set_aside(other, "damaged")
            return checkpoint
        if damaged:
            raise CheckpointError(f"{damaged[0][1]}, and there is no other checkpoint to go on from")
        return None

    def _publish(self, building: Path, final: Path, *, ranks: int) -> None:
        """Give a folder, all of whose files are on the disk, its manifest and its name."""
        names = sorted(_SHARED | {f"rank{rank}.pt" for rank in range(ranks)})
        files = {name: _fingerprint(building / name) for name in names}
        manifest = {"version": VERSION, "step": step_of(final), "ranks": ranks, "files": files}
        write_text(building / "manifest.json", json.dumps(manifest, indent=1))
        sync_folder(building)
        if final.exists():  # of the same step, from before a resume without it
            self._set_aside(final, "old")
        building.rename(final)
        sync_folder(self.folder)
        write_text(self.folder / "latest", final.name + "\n")

    def _prune(self) -> None:
        """Remove what is neither among the newest nor to stay for ever, and what earlier saves left half-done."""
        whole = self._newest_first(whole=True)
        old = [path for path in whole[self.keep :] if self.keep_every is None or step_of(path) % self.keep_every]
        for path in old:
            with contextlib.suppress(OSError):
                self._set_aside(path, "old")  # so that one whose removal is interrupted is not taken for a checkpoint
        for ending in ("tmp", "damaged", "old"):
            for path in self.folder.glob(f".step_*.{ending}"):
                shutil.rmtree(path, ignore_errors=True)
        remove_temporary_files(self.folder)

    def _set_aside(self, path: Path, why: str) -> None:
        """Give a checkpoint a name that is none; the next save removes it."""
        aside = self.folder / f".{path.name}.{why}"
        shutil.rmtree(aside, ignore_errors=True)  # from an earlier time
        path.rename(aside)

    def _newest_first(self, *, whole: bool) -> list[Path]:
        """The folders of checkpoints; with `whole` those that have a manifest, which is written last."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]
        return sorted((p for p in found if not whole or (p / "manifest.json").is_file()), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The number in the name of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def read(path: Path) -> Checkpoint:
    """A checkpoint's folder, verified against its manifest.

    Raises:
        DamagedError: a file is missing or not what was written.
        CheckpointError: a newer version wrote it.
    """
    checksums = _checksums(path)
    _verify(path, checksums)
    return Checkpoint(
        model=read_model(path / "networks.safetensors"),
        training=_load(path / "training.pt"),
        ranks=[_load(path / f"rank{rank}.pt") for rank in range(len(checksums) - len(_SHARED))],
    )


def read_model(path: Path, *, tell: Callable[[str], None] = warn) -> Model:
    """The networks of a run folder, a checkpoint's folder or a safetensors file.

    Those of a checkpoint are verified; of a run folder's checkpoints it is the newest that is not damaged.

    Args:
        tell: is told where the newest is damaged and an older one is used.

    Raises:
        CheckpointError: there is none, it is damaged, or it is not one of ours.
    """
    file = _model_file(path, tell)
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get(_HEADER, "null"))
            # Copies: the file itself is mapped into memory, and whoever cut it short later would end this process.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - not a mapping
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
        export = dict(header["export"]) if "export" in header else None
        return Model(tensors, *architectures, (first, second), int(header["step"]), file, export)
    except _GARBLED as error:
        raise CheckpointError(f"{file} is not a cyclestyle model: its header lacks or garbles {error}") from None


def _model_file(path: Path, tell: Callable[[str], None]) -> Path:
    """Where the networks are, given a run folder, a checkpoint's folder or the file itself."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path.absolute()}")
    name = "networks.safetensors"
    if (path / name).is_file():
        if (path / "manifest.json").is_file():
            _verify(path, _checksums(path), only={name})
        return path / name
    damaged: DamagedError | None = None
    for folder in (path / "checkpoints", path):
        for checkpoint in Checkpoints(folder)._newest_first(whole=False):
            try:
                _verify(checkpoint, _checksums(checkpoint), only={name})
            except DamagedError as error:
                damaged = damaged or error
                continue
            if damaged:
                tell(f"{damaged}, using {checkpoint.name} instead")
            return checkpoint / name
    raise damaged or CheckpointError(f"no checkpoint in {path.absolute()}: is it a run folder such as runs/monet?")


def _load(path: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # what a file can make torch raise is documented nowhere
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}") from error
