"""Checkpoint folders, which are written atomically, and the model file in each folder.

```
checkpoints/
  step_00012000/
    networks.safetensors   weights (generators.ab.*, generators.ba.*, discriminators.*, ema.ab.*, ema.ba.*);
                           architectures and domain names in its header
    training.pt            optimizers, gradient scaler, step, config, names and sizes of the training files
    rank0.pt, ...          state of one rank (process): its share of the image pools, which hold past translations for
                           the discriminators; its running means of losses and scores
    manifest.json          sha256 and size of each file; written last
  latest                   text file with the name of the newest folder, for people and scripts
  best                     text file with the name of the best folder, if one was marked; its second line is JSON with
                           the name and value of the number by which the folder was chosen
```

A save writes all files into a hidden folder, which gets its final name once the files are on the disk. An interrupted
save leaves earlier checkpoints unchanged.
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
from torch import Tensor

from cyclestyle.checkpoints.best import Best, Interval, Mode, parse_pointer, pointer_text
from cyclestyle.checkpoints.manifest import SHARED_FILES, fingerprint, read_checksums, verify
from cyclestyle.checkpoints.model import (
    GARBLED_JSON,
    HEADER,
    VERSION,
    Model,
    architectures,
    tensor_bytes,
    write_model,
)
from cyclestyle.distributed.world import FailedElsewhereError, World
from cyclestyle.errors import CheckpointError, CommandError, DamagedError, DiskError, warn
from cyclestyle.filesystem.atomic import (
    disk_error,
    free_space,
    remove_temporary_files,
    sync_folder,
    write_and_sync,
    write_text,
)

POINTERS = ("best", "latest")  # text files beside the checkpoint folders; the first line of each names one of them
_MODEL = "networks.safetensors"
_FOLDER = re.compile(r"step_(\d{8,})")


class Checkpoint(NamedTuple):
    """Complete state of a run; a run resumed from it equals an uninterrupted run bit for bit."""

    model: Model
    training: dict[str, Any]  # content of training.pt, the same on all ranks
    ranks: list[dict[str, Any]]  # content of rank0.pt, rank1.pt, ...

    @property
    def step(self) -> int:
        return self.model.step


class Checkpoints:
    """All checkpoints of one run.

    Args:
        folder: parent of the checkpoint folders; created at the first save.
        keep: number of newest checkpoints to keep on disk, 2 or more, since the newest may turn out damaged.
        keep_every: number of steps; checkpoints at multiples of it are never removed. None keeps only the `keep` newest
            checkpoints. The best checkpoint is kept in any case.

    Raises:
        CommandError: `keep` is below 2 or `keep_every` below 1.
    """

    def __init__(self, folder: Path, *, keep: int = 3, keep_every: int | None = None) -> None:
        if keep < 2:
            raise CommandError(
                f"checkpoint.keep={keep}: give 2 or more, a run resumes from the second if one is damaged"
            )
        if keep_every is not None and keep_every < 1:
            raise CommandError(f"checkpoint.keep_every={keep_every}: give a number of steps, 1 or more")
        self.folder, self.keep, self.keep_every = folder, keep, keep_every

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint folder, without verifying its files; None if there is none."""
        return next(iter(self._newest_first(complete=True)), None)

    def save(self, model: Model, training: Mapping[str, Any], rank_state: Mapping[str, Any], *, world: World) -> Path:
        """Write one checkpoint with the state of all ranks; if any rank fails, no checkpoint is written.

        Args:
            model, training: networks and training state, the same on every rank; only rank 0 writes them.
            rank_state: state of this rank alone; each rank writes its own.

        Returns:
            Folder of the checkpoint.

        Raises:
            DiskError: the checkpoint cannot be written; older checkpoints are unchanged.
        """
        final = self.path_of(model.step)
        building = self.folder / f".{final.name}.tmp"  # same parent as `final`: the rename stays on one file system
        need = tensor_bytes(rank_state) + (tensor_bytes(training) + tensor_bytes(model.tensors) if world.is_main else 0)
        free: int | None = None
        try:
            with world.all_or_none():
                if world.is_main:
                    shutil.rmtree(building, ignore_errors=True)
                    building.mkdir(parents=True)
            free = free_space(building)
            with world.all_or_none():
                write_and_sync(building / f"rank{world.rank}.pt", lambda stream: torch.save(dict(rank_state), stream))
            with world.all_or_none():
                if world.is_main:
                    write_model(model, building / "networks.safetensors")
                    write_and_sync(building / "training.pt", lambda stream: torch.save(dict(training), stream))
                    self._publish(building, final, ranks=world.size)
        except OSError as error:
            failure = f"cannot write checkpoint at step {model.step}"
            raise disk_error(failure, error, self.folder, need=need, free=free) from None
        except FailedElsewhereError:
            raise DiskError(
                f"cannot write checkpoint at step {model.step}: another process could not write its part"
            ) from None
        finally:
            if world.is_main:
                shutil.rmtree(building, ignore_errors=True)  # after a success the folder has been renamed
        if world.is_main:
            self._prune()
        return final

    def load(self, *, repair: bool = False, warn: Callable[[str], None] = warn) -> Checkpoint | None:
        """Read the newest undamaged checkpoint; return None if there is no checkpoint yet.

        Args:
            repair: whether to rename damaged checkpoints to hidden names, so that they are not read again; True only in
                the process that holds the lock of the run.
            warn: function called with one line of text for each damaged checkpoint that is skipped. It is not called if
                all checkpoints are damaged.

        Raises:
            CheckpointError: all checkpoints are damaged; or the newest undamaged one has malformed content, or was
                written by a newer version of this program.
        """
        damaged: list[tuple[Path, DamagedError]] = []
        for path in self._newest_first(complete=False):
            try:
                checkpoint = read(path)
            except DamagedError as error:
                damaged.append((path, error))
                continue
            for other, reason in damaged:
                warn(f"{reason}, using {path.name} instead")
                if repair:
                    self._set_aside(other, "damaged")
            return checkpoint
        if damaged:
            raise CheckpointError(f"{damaged[0][1]}, and there is no other checkpoint to resume from")
        return None

    def best(self) -> Best | None:
        """Return the best checkpoint with the value by which it was chosen, as recorded in the pointer file `best`.

        The result is None if the file is missing or malformed, or if the checkpoint folder that it names is gone.
        """
        try:
            path, text = self.best_folder(), (self.folder / "best").read_text(encoding="utf-8")
        except (OSError, UnicodeError):
            return None
        return None if path is None else parse_pointer(text, path)

    def mark_best(
        self,
        step: int,
        *,
        name: str,
        value: float,
        mode: Mode = "min",
        interval: Interval | None = None,
        evaluations: int | None = None,
        warn: Callable[[str], None] = warn,
    ) -> None:
        """Mark the checkpoint of `step` as the best one, in the pointer file `best`.

        The former best checkpoint is removed unless `keep` or `keep_every` protects it. If the checkpoint is missing,
        or the mark cannot be written, the method raises no error, and the former mark remains. Only rank 0 may call
        this method, after `save`.

        Args:
            name, value: name and value of the logged number by which the checkpoint was chosen.
            mode: `min` if lower values are better, `max` if higher values are.
            interval, evaluations: see `Best`.
            warn: function called with one line of text if the checkpoint is missing or the mark cannot be written.
        """
        path = self.path_of(step)
        if not (path / "manifest.json").is_file():
            warn(f"no checkpoint of step {step} in {self.folder}: it cannot be marked as best by {name}={value:.6g}")
            return
        best = Best(path, step, name, value, mode, interval, evaluations)
        try:
            write_text(self.folder / "best", pointer_text(best))
            sync_folder(self.folder)  # the new mark must be on the disk before the former best folder is removed
        except OSError as error:
            warn(f"cannot write {self.folder / 'best'}: {(error.strerror or '').lower()}; the former mark remains")
            return
        self._prune()

    def best_folder(self) -> Path | None:
        """Return the complete checkpoint folder that the pointer file `best` names; None if there is none.

        Only the first line of the pointer file is read, so a pointer written by hand is valid too.

        Raises:
            OSError: the pointer file cannot be read.
        """
        try:
            with (self.folder / "best").open(encoding="utf-8", errors="replace") as stream:
                name = stream.readline(100).strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        complete = _FOLDER.fullmatch(name) and (self.folder / name / "manifest.json").is_file()
        return self.folder / name if complete else None

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint at `step`, whether it exists or not."""
        return self.folder / f"step_{step:08d}"

    def _publish(self, building: Path, final: Path, *, ranks: int) -> None:
        """Write the manifest into `building`, whose other files are on the disk; then rename `building` to `final`."""
        names = sorted(SHARED_FILES | {f"rank{rank}.pt" for rank in range(ranks)})
        files = {name: fingerprint(building / name) for name in names}
        manifest = {"version": VERSION, "step": step_of(final), "ranks": ranks, "files": files}
        write_text(building / "manifest.json", json.dumps(manifest, indent=1))
        sync_folder(building)
        if final.exists():  # the run was resumed from an earlier step and saves this step again
            self._set_aside(final, "old")
        building.rename(final)
        sync_folder(self.folder)
        write_text(self.folder / "latest", final.name + "\n")

    def _prune(self) -> None:
        """Remove hidden folders of earlier saves, and checkpoints that nothing protects.

        `keep`, `keep_every` and the mark of the best checkpoint protect checkpoints.
        """
        complete = self._newest_first(complete=True)
        old = [path for path in complete[self.keep :] if self.keep_every is None or step_of(path) % self.keep_every]
        try:
            best = self.best_folder()
        except OSError:  # the best checkpoint is unknown, so none is removed
            best, old = None, []
        old = [path for path in old if path != best]
        for path in old:
            with contextlib.suppress(OSError):
                self._set_aside(path, "old")  # renamed first: a half-removed folder must not look like a checkpoint
        for ending in ("tmp", "damaged", "old"):
            for path in self.folder.glob(f".step_*.{ending}"):
                shutil.rmtree(path, ignore_errors=True)
        remove_temporary_files(self.folder)

    def _set_aside(self, path: Path, suffix: str) -> None:
        """Rename a checkpoint folder to a hidden name that ends with `suffix`; the next `_prune` removes it."""
        aside = self.folder / f".{path.name}.{suffix}"
        shutil.rmtree(aside, ignore_errors=True)  # a folder of this name may remain from an earlier save
        path.rename(aside)

    def _newest_first(self, *, complete: bool) -> list[Path]:
        """List the checkpoint folders, newest first; if `complete` is true, only those that contain a manifest."""
        if not self.folder.is_dir():
            return []
        paths = [path for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]
        if complete:
            paths = [path for path in paths if (path / "manifest.json").is_file()]
        return sorted(paths, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Parse the step from the name of a checkpoint folder."""
    return int(path.name.removeprefix("step_"))


def read(path: Path) -> Checkpoint:
    """Read a checkpoint folder and verify it against its manifest.

    Raises:
        DamagedError: a file is missing, or its content does not match its checksum.
        CheckpointError: a newer version of this program wrote the checkpoint, or the content of a file is malformed.
    """
    checksums = read_checksums(path)
    verify(path, checksums)
    return Checkpoint(
        model=_read_file(path / _MODEL),
        training=_load(path / "training.pt"),
        ranks=[_load(path / f"rank{rank}.pt") for rank in range(len(checksums) - len(SHARED_FILES))],
    )


def read_model(path: Path, *, warn: Callable[[str], None] = warn) -> Model:
    """Read the networks of a run folder, a checkpoint folder or a safetensors file.

    In a checkpoint folder the model file is verified against the manifest, also if `path` is the model file itself. In
    a run folder the newest checkpoint with an undamaged model file is used. `RUN/best` is the run's best checkpoint,
    `RUN/latest` its newest one, like `RUN`.

    Args:
        warn: function called with one line of text if the newest checkpoint is damaged and an older one is used.

    Raises:
        CheckpointError: there is no model at `path`, the model is damaged, or cyclestyle did not write the file.
    """
    return _read_file(_model_file(path, warn))


def read_foreign_tensors(path: Path) -> dict[str, Tensor] | None:
    """Read the tensors of a safetensors file of another program; return None if cyclestyle wrote the file.

    The tensors are memory-mapped, and invalid once the file changes: clone them to keep them longer.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            if HEADER in (opened.metadata() or {}):
                return None
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _read_file(file: Path) -> Model:
    """Read a model file that this program wrote, without comparing it with a manifest.

    Raises:
        CheckpointError: the file is damaged, or another program or a newer version of this program wrote it.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get(HEADER, "null"))
            # Tensors are cloned: they map the file, and this process would crash if the file were truncated later.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError:
        raise CheckpointError(
            f"{file} is no model file, or a damaged one: expected a run folder, or a .safetensors, .pth or .onnx file"
        ) from None
    except (OSError, *GARBLED_JSON) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(header, dict) or not isinstance(header.get("version"), int):
        raise CheckpointError(f"{file} is not a cyclestyle model: its header has no architecture")
    if header["version"] > VERSION:
        raise CheckpointError(
            f"{file} is of version {header['version']}, this program reads up to {VERSION}: update it"
        )
    try:
        first, second = (str(name) for name in header["domains"])
        export = dict(header["export"]) if "export" in header else None
        seen = tuple(str(name) for name in header.get("losses_see", ()))
        return Model(tensors, *architectures(header), (first, second), int(header["step"]), file, export, seen)
    except GARBLED_JSON as error:
        raise CheckpointError(
            f"{file} is not a cyclestyle model: its header has a missing or malformed entry: {error}"
        ) from None


def _model_file(path: Path, warn: Callable[[str], None]) -> Path:
    """Return the model file that `path` refers to, once its checksum is verified; a lone file is returned unverified.

    Args:
        path: a run folder, its folder of checkpoints, one checkpoint folder, or a model file. `RUN/best` and
            `RUN/latest` refer to the best and the newest checkpoint of the run folder `RUN`.
        warn: function called with one line of text if a damaged checkpoint is skipped.

    Raises:
        CheckpointError: `path` refers to no model file, or its checksum does not match.
    """
    if path.name in POINTERS and not path.is_dir():
        for folder in (path.parent / "checkpoints", path.parent):
            if Checkpoints(folder)._newest_first(complete=False):
                return _pointed_file(path, folder, warn)
    if path.is_file():
        real = path.resolve()
        if real.name == _MODEL and (real.parent / "manifest.json").is_file():
            verify(real.parent, read_checksums(real.parent), only={_MODEL})
        return path
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path.absolute()}")
    if (path / _MODEL).is_file():
        return _verified(path) if (path / "manifest.json").is_file() else path / _MODEL
    for folder in (path / "checkpoints", path):
        if (file := _newest_model_file(folder, warn)) is not None:
            return file
    raise CheckpointError(f"no checkpoint in {path.absolute()}: is it a run folder such as runs/monet?")


def _pointed_file(path: Path, folder: Path, warn: Callable[[str], None]) -> Path:
    """Return the model file of the best or newest checkpoint in `folder`.

    Args:
        path: path that the user gave; its last part, `best` or `latest`, selects the checkpoint.
        folder: folder that holds the checkpoint folders.
        warn: function called with one line of text if a damaged checkpoint is skipped.

    Raises:
        CheckpointError: no checkpoint is marked as the best one, or the selected checkpoint is damaged.
        DiskError: the disk cannot be read.
    """
    if path.name == "latest":
        return _model_file(folder, warn)
    try:
        best = Checkpoints(folder).best_folder()
    except OSError as error:
        raise DiskError(f"cannot read {folder / 'best'}: {(error.strerror or '').lower()}") from None
    if best is None:
        reason = "its pointer names no complete checkpoint" if (folder / "best").is_file() else "none was marked"
        raise CheckpointError(
            f"{path.parent} has no best checkpoint, {reason}: train with checkpoint.best=NAME of a logged number, or "
            f"give {path.parent} for the newest checkpoint"
        )
    return _verified(best)


def _newest_model_file(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest undamaged model file of the checkpoints in `folder`; None if there are no checkpoints.

    Raises:
        DamagedError: all model files are damaged.
    """
    damaged: DamagedError | None = None
    for checkpoint in Checkpoints(folder)._newest_first(complete=False):
        try:
            file = _verified(checkpoint)
        except DamagedError as error:
            damaged = damaged or error
            continue
        if damaged:
            warn(f"{damaged}, using {checkpoint.name} instead")
        return file
    if damaged:
        raise damaged
    return None


def _verified(checkpoint: Path) -> Path:
    """Return the model file in a checkpoint folder; raise a DamagedError if it does not match the manifest."""
    verify(checkpoint, read_checksums(checkpoint), only={_MODEL})
    return checkpoint / _MODEL


def _load(path: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch does not document which errors a malformed file raises
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}") from error
