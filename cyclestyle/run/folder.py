"""A run's folder: what it was started with, how it stands, and whether this command may go on with it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclestyle.cli.keys import MAY_CHANGE, with_present_names
from cyclestyle.errors import CheckpointError, CommandError, warn
from cyclestyle.filesystem.atomic import write_text
from cyclestyle.filesystem.listing import printable

if TYPE_CHECKING:
    pass

import json
import socket
from typing import NamedTuple

from cyclestyle.checkpoints.directory import Checkpoint, Checkpoints, step_of
from cyclestyle.errors import DiskError
from cyclestyle.filesystem.atomic import remove_temporary_files
from cyclestyle.filesystem.lock import Lock

NOT_A_RUN = {"lock", "status.json"}  # what a start leaves behind that failed before it began

Files = Mapping[str, Mapping[str, int]]  # side -> file -> bytes
State = Literal["running", "finished", "stopped", "failed"]


class ResumePoint(NamedTuple):
    """What a run goes on from."""

    checkpoint: Checkpoint
    changes: list[str]  # of the recipe, that do not matter or were insisted on


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder; the same command has the same folder, and so resumes.
        keep, keep_every: which checkpoints stay on disk, see `Checkpoints`.
        mode: `auto` goes on with a run that is there, `never` refuses to.
        allow_changed: go on although the recipe or the files are not those that the run was started with.

    Raises:
        CommandError: `keep` or `keep_every` is impossible, or the folder holds a run and `mode` is `never`.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep: int = 3,
        keep_every: int | None = None,
        mode: Literal["auto", "never"] = "auto",
        allow_changed: bool = False,
    ) -> None:
        if mode == "never" and path.is_dir() and {entry.name for entry in path.iterdir()} - NOT_A_RUN:
            raise CommandError(f"{path} is not empty and resume.mode=never: choose another name= or remove it")
        self.path, self.allow_changed = path, allow_changed
        self.checkpoints = Checkpoints(path / "checkpoints", keep=keep, keep_every=keep_every)
        self._lock = Lock(path / "lock")
        self._step: Callable[[], int | None] = lambda: None

    def acquire(self) -> None:
        """Make the folder and take it: until this process ends, however it ends, no other one gets it.

        Raises:
            DiskError: it cannot be written.
            CommandError: another process has it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            taken = self._lock.acquire()
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise DiskError(
                f"cannot write to {self.path.absolute()}: {reason}; choose another run_dir= or name="
            ) from None
        if not taken:
            raise CommandError(f"{self.path} is in use{self._user()}: wait for it, or choose another name=")
        for folder in (self.path, self.path / "samples"):
            remove_temporary_files(folder)

    def resume_point(
        self, recipe: Mapping[str, Any], files: Files, *, bad: Mapping[str, Mapping[str, str]], mend: bool = False
    ) -> ResumePoint | None:
        """What to go on from, if there is a checkpoint and it belongs to this recipe and these files.

        Args:
            recipe: the resolved config.
            files: the training files of `a` and `b` in order, with their sizes.
            bad: those of them that cannot be read now, side -> file -> reason; they keep their places.
            mend: take damaged checkpoints out of the way; for the one process that holds the folder.

        Raises:
            CheckpointError: all checkpoints are damaged, or they are of other networks.
            CommandError: the recipe or the files have changed.
        """
        checkpoint = self.checkpoints.load(mend=mend, tell=warn if mend else lambda _: None)
        if checkpoint is None:
            return None
        then, now = _flat(with_present_names(checkpoint.training["recipe"])), _flat(recipe)
        changed = {key: f"{key}: {then.get(key)} -> {now.get(key)}" for key in sorted(then | now)
                   if then.get(key) != now.get(key)}  # fmt: skip
        networks = [line for key, line in changed.items() if key.startswith(("generator.", "discriminator."))]
        if networks:
            raise CheckpointError(
                _lines(f"{self.path} holds networks of another architecture; choose another name=", networks)
            )
        serious = [line for key, line in changed.items() if not _is_harmless(key)]
        serious += _changed_files(checkpoint.training["files"], files, bad)
        if serious and not self.allow_changed:
            remedy = "choose another name=, or go on all the same with resume.allow_changed=true"
            raise CommandError(_lines(f"{self.path} was started with another recipe or data set; {remedy}", serious))
        return ResumePoint(checkpoint, list(dict.fromkeys([*changed.values(), *serious])))

    def write_config(self, yaml: str) -> None:
        """Keep what the run was started with, with what `auto` came to."""
        write_text(self.path / "config.yaml", yaml)

    def read_step_from(self, step: Callable[[], int]) -> None:
        """Where the status takes the number of steps done from; before that it is the newest checkpoint's."""
        self._step = step

    def write_status(self, state: State, *, code: int | None = None, reason: str | None = None) -> None:
        """Say how the run stands: `state`, exit `code` and `reason` once it has ended, `step`, newest `checkpoint`,
        `host` and `pid`.

        A disk that cannot take even this is told and not the end.
        """
        newest, step = self.checkpoints.newest(), self._step()
        status = {
            "state": state,
            "code": code,
            "reason": reason,
            "step": step if step is not None else step_of(newest) if newest else 0,
            "checkpoint": newest.name if newest else None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            write_text(self.path / "status.json", json.dumps(status, indent=1) + "\n")
        except OSError as error:
            warn(f"cannot write {self.path / 'status.json'}: {(error.strerror or '').lower()}")

    def has_finished(self) -> bool:
        """Whether the status says that nothing is left to do or to tell."""
        return self._status().get("state") == "finished"

    def _user(self) -> str:
        """Who has the folder: of this host by the lock itself, else as far as it has come to say so."""
        if (pid := self._lock.holder()) is not None:
            return f" by pid {pid} on host {socket.gethostname()}"
        status = self._status()
        return f" by pid {status['pid']} on host {status['host']}" if {"pid", "host"} <= status.keys() else ""

    def _status(self) -> dict[str, Any]:
        """What was last written of it; nothing if that cannot be read."""
        try:
            return dict(json.loads((self.path / "status.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}


def _is_harmless(key: str) -> bool:
    return any(key == one or key.startswith(one + ".") for one in MAY_CHANGE)


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _changed_files(then: Files, now: Files, bad: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What differs in names, order and sizes; a file that cannot be read any more may have any size."""
    changed = []
    for side in ("a", "b"):
        before, after = then[side], now[side]
        added, removed = after.keys() - before.keys(), before.keys() - after.keys()
        resized = [
            name for name in before.keys() & after.keys()
            if before[name] != after[name] and name not in bad.get(side, {})
        ]  # fmt: skip
        if added or removed or resized:
            changed.append(
                f"files of {side}: {len(added)} added, {len(removed)} removed, {len(resized)} of another size"
            )
        elif list(before) != list(after):
            changed.append(f"files of {side}: in another order")
    return changed


def _lines(first: str, rest: list[str]) -> str:
    printable = rest if len(rest) <= 5 else [*rest[:4], f"and {len(rest) - 4} more"]
    return "\n  ".join([first, *printable])


def write_bad_files(folder: "RunFolder", bad: Mapping[str, Mapping[str, str]]) -> None:
    """All that cannot be used, for whoever wants to mend it: the screen shows a few."""
    lines = [
        f"{side} {printable(Path(name))}: {reason}" for side, files in bad.items() for name, reason in files.items()
    ]
    if lines:
        write_text(folder.path / "bad_files.txt", "".join(f"{line}\n" for line in lines))
