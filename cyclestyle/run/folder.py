"""The run folder: its lock, config and status, and the check whether a command may resume the run."""

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml  # type: ignore[import-untyped, unused-ignore]

from cyclestyle.checkpoints.directory import Checkpoint, Checkpoints, step_of
from cyclestyle.cli.keys import flat, may_change, with_present_names
from cyclestyle.errors import CheckpointError, CommandError, DiskError, warn
from cyclestyle.filesystem.atomic import remove_temporary_files, write_text
from cyclestyle.filesystem.listing import printable
from cyclestyle.filesystem.lock import Lock

NOT_A_RUN = {"lock", "status.json"}  # files of a command that failed before training began

Files = Mapping[str, Mapping[str, int]]  # side "a" or "b" -> file name -> size in bytes
State = Literal["running", "finished", "stopped", "failed"]


class ResumePoint(NamedTuple):
    """Checkpoint from which a run resumes, and changes of config and files since this checkpoint was saved."""

    checkpoint: Checkpoint
    changes: list[str]  # one line per changed config key or file list; all these changes are permitted


class Done(NamedTuple):
    """Periodic work that an earlier process did at the step from which a run resumes; it is not repeated there."""

    log: bool = False  # losses and speeds of the steps up to this step were logged
    tasks: bool = False  # samples were taken, and the user's own tasks were done


class RunFolder:
    """The folder that holds config, status, checkpoints and samples of one run.

    Args:
        path: location of the folder. A command that is repeated uses the same `path` and therefore resumes the run.
        keep, keep_every: which checkpoints stay on disk, see `Checkpoints`.
        mode: `auto` resumes an existing run, `never` rejects it.
        allow_changed: whether to resume even if the training files have changed, or config values that a resumed run
            must normally not change.

    Raises:
        CommandError: `keep` or `keep_every` is too small, or the folder holds a run and `mode` is `never`.
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
        self.notes: list[dict[str, Any]] = []  # remarkable events of the run: step and text of each

    def acquire(self) -> None:
        """Create the folder and lock it until this process ends or is killed.

        Raises:
            DiskError: the folder cannot be written.
            CommandError: another process holds the lock.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            acquired = self._lock.acquire()
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise DiskError(
                f"cannot write to {self.path.absolute()}: {reason}; choose another run_dir= or name="
            ) from None
        if not acquired:
            raise CommandError(f"{self.path} is in use{self._user()}: wait for it, or choose another name=")
        for folder in (self.path, self.path / "samples"):
            remove_temporary_files(folder)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def resume_point(
        self, recipe: Mapping[str, Any], files: Files, *, bad: Mapping[str, Mapping[str, str]], repair: bool = False
    ) -> ResumePoint | None:
        """Load the newest undamaged checkpoint; check that its config and training files match those of this command.

        Args:
            recipe: resolved config of this command.
            files: sizes of this command's training files, in order, keyed by side (`a` or `b`), then by file name.
            bad: reasons why training files are unreadable, keyed by side, then by file name. `files` contains these
                files too; their sizes may differ from those in the checkpoint.
            repair: whether to rename damaged checkpoints to hidden names; True only on the rank that holds the lock.

        Returns:
            Checkpoint, and changes that do not prevent a resume; None if there is no checkpoint.

        Raises:
            CheckpointError: all checkpoints are damaged, or they hold networks of another architecture.
            CommandError: the training files, or config keys that a resumed run must not change, have changed, and
                `allow_changed` is false.
        """
        checkpoint = self.checkpoints.load(repair=repair, warn=warn if repair else lambda _: None)
        if checkpoint is None:
            return None
        then, now = flat(with_present_names(checkpoint.training["recipe"])), flat(recipe)
        for key, value in flat(self._written_config()).items():
            if then.get(key) == "auto" and now.get(key) == value:  # config.yaml as the recipe: it has the chosen value
                then[key] = value
        if then.get("scores.every") is None and now.get("scores.every") is None:  # settings of scores that are off
            then, now = (
                {key: value for key, value in each.items() if not key.startswith("scores.")} for each in (then, now)
            )
        changed = {key: f"{key}: {then.get(key)} -> {now.get(key)}" for key in sorted(then | now)
                   if then.get(key) != now.get(key)}  # fmt: skip
        networks = [line for key, line in changed.items() if key.startswith(("generator.", "discriminator."))]
        if networks:
            raise CheckpointError(
                _lines(f"{self.path} holds networks of another architecture; choose another name=", networks)
            )
        blocking = [line for key, line in changed.items() if not may_change(key)]
        blocking += _changed_files(checkpoint.training["files"], files, bad)
        if blocking and not self.allow_changed:
            remedy = "choose another name=, or resume regardless with resume.allow_changed=true"
            raise CommandError(_lines(f"{self.path} was started with another recipe or data set; {remedy}", blocking))
        return ResumePoint(checkpoint, list(dict.fromkeys([*changed.values(), *blocking])))

    def write_config(self, text: str) -> None:
        """Write the resolved config to config.yaml."""
        write_text(self.path / "config.yaml", text)

    def read_step_from(self, step: Callable[[], int]) -> None:
        """Set the function that `write_status` calls for the current step.

        Before `read_step_from` is called, `write_status` writes the step of the newest checkpoint instead.
        """
        self._step = step

    def note(self, text: str) -> None:
        """Add an event at the current step to the list `notes`, which the next `write_status` writes to status.json."""
        self.notes.append({"step": self._step(), "text": text})

    def read_notes(self, step: int) -> None:
        """Append the notes in status.json up to `step` to `notes`; later notes concern steps that are trained again."""
        notes = self._status().get("notes")
        for note in notes if isinstance(notes, list) else ():
            if isinstance(note, dict) and isinstance(note.get("step"), int) and note["step"] <= step:
                self.notes.append({"step": note["step"], "text": str(note.get("text"))})

    def write_status(
        self, state: State, *, code: int | None = None, reason: str | None = None, done: Done | None = None
    ) -> None:
        """Write status.json; print a warning if it cannot be written.

        Args:
            state: state of the run, such as `running`.
            code: exit code; None while the run continues.
            reason: why the run ended, as a text for the user; None while the run continues.
            done: periodic work that was done at the current step, to be recorded. With None, the file keeps the record
                that it has, unless that record is known to belong to another step than the current one. The current
                step is unknown until `read_step_from` is called.
        """
        newest, step = self.checkpoints.newest(), self._step()
        notes = self.notes if step is not None else self._status().get("notes")
        at, earlier = self._done()
        if done is None and step in (None, at):
            step_done, done = at, earlier
        else:
            step_done = step
        status = {
            "state": state,
            "code": code,
            "reason": reason,
            "step": step if step is not None else step_of(newest) if newest else 0,
            "checkpoint": newest.name if newest else None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **({"notes": notes} if notes else {}),
            **({"done": {"step": step_done, **done._asdict()}} if done is not None and done.log else {}),
        }
        try:
            write_text(self.path / "status.json", json.dumps(status, indent=1) + "\n")
        except OSError as error:
            warn(f"cannot write {self.path / 'status.json'}: {(error.strerror or '').lower()}")

    def done(self, step: int) -> Done:
        """Return the periodic work at `step` that status.json records as done; `Done()` if it has no record for `step`.

        For a finished run, all work is recorded as done; for a run that stopped on request, only the log. After any
        other end there is no record, and the work is repeated. A command that ends before it trains keeps the record.
        """
        at, done = self._done()
        return done if at == step else Done()

    def has_finished(self) -> bool:
        """Return whether status.json records that the run trained to the end, including its last log and samples."""
        return self._status().get("state") == "finished"

    def _user(self) -> str:
        """Describe the process that holds the lock, for an error text: ` by pid 7 on host h`, or "" if unknown.

        The pid comes from the lock if the process runs on this host, else from status.json.
        """
        if (pid := self._lock.holder()) is not None:
            return f" by pid {pid} on host {socket.gethostname()}"
        status = self._status()
        return f" by pid {status['pid']} on host {status['host']}" if {"pid", "host"} <= status.keys() else ""

    def _written_config(self) -> dict[str, Any]:
        """Return the content of config.yaml; an empty dict if the file cannot be read."""
        try:
            return dict(yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            return {}

    def _done(self) -> tuple[int | None, Done]:
        """Read the record of periodic work from status.json: (step, work), or (None, `Done()`) if there is none."""
        status = self._status()
        record = status.get("done")
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            return record["step"], Done(log=record.get("log") is True, tasks=record.get("tasks") is True)
        if status.get("state") == "finished" and isinstance(status.get("step"), int):  # written by an earlier version
            return status["step"], Done(log=True, tasks=True)
        return None, Done()

    def _status(self) -> dict[str, Any]:
        """Return the content of status.json; an empty dict if the file cannot be read."""
        try:
            return dict(json.loads((self.path / "status.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}


def _changed_files(then: Files, now: Files, bad: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Compare the training files `then` and `now`; return one line of text for each side (`a` or `b`) that has changed.

    Names, order and sizes of the files are compared, but not the sizes of unreadable files, which `bad` lists.
    """
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
    shown = rest if len(rest) <= 5 else [*rest[:4], f"and {len(rest) - 4} more"]
    return "\n  ".join([first, *shown])


def write_bad_files(folder: RunFolder, bad: Mapping[str, Mapping[str, str]]) -> None:
    """List all unusable files, each with the reason, in bad_files.txt, since the printed error lists only a few.

    If there are none, write no file.

    Args:
        bad: reasons why files are unusable, keyed by side (`a` or `b`), then by file name.
    """
    lines = [
        f"{side} {printable(Path(name))}: {reason}" for side, files in bad.items() for name, reason in files.items()
    ]
    if lines:
        write_text(folder.path / "bad_files.txt", "".join(f"{line}\n" for line in lines))
