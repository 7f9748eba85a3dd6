"""A run's folder: what it was started with, how it stands, and whether this command may go on with it."""

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cyclestyle.checkpoint import Checkpoint, Checkpoints
from cyclestyle.errors import CheckpointError, CommandError, DiskError
from cyclestyle.files import write_text

# Keys that may change between two starts of one run: where and how it runs, when it stops, what it tells.
HARMLESS = (
    "name", "run_dir", "init", "logger", "resume", "checkpoint",
    "data.root", "data.a", "data.b",  # the lists of files are compared
    "data.test_a", "data.test_b", "data.workers", "data.homepage",
    "trainer.steps", "trainer.epochs", "trainer.log_every", "trainer.sample_every", "trainer.save_every",
    "trainer.device", "trainer.devices", "trainer.compile", "trainer.deterministic", "trainer.accumulate",
)  # fmt: skip


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder; the same command has the same folder, and so resumes.
        keep: newest checkpoints that stay on disk.
        mode: `auto` goes on with a run that is there, `never` refuses to.
        allow_changed: go on although the recipe or the files are not those that the run was started with.

    Raises:
        CommandError: `keep` is below 1, or the folder holds something and `mode` is `never`.
    """

    def __init__(
        self, path: Path, *, keep: int = 3, mode: Literal["auto", "never"] = "auto", allow_changed: bool = False
    ) -> None:
        if keep < 1:
            raise CommandError(f"checkpoint.keep={keep}: give 1 or more, a run goes on from the newest")
        if mode == "never" and path.is_dir() and any(path.iterdir()):
            raise CommandError(f"{path} is not empty and resume.mode=never: choose another name= or remove it")
        self.path, self.allow_changed = path, allow_changed
        self.checkpoints = Checkpoints(path / "checkpoints", keep=keep)

    def prepare(self) -> None:
        """Make the folder and take it: until this process ends, however it ends, no other one gets it.

        Raises:
            DiskError: it cannot be written.
            CommandError: another process has it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a")
        except OSError as error:
            raise DiskError(f"cannot write to {self.path.absolute()}: {error.strerror}") from None
        if os.name != "posix":
            return
        import fcntl  # not on Windows

        try:
            # Of this process alone: its data workers, which may outlive it by seconds, do not hold it.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(f"{self.path} is in use{self._user()}: wait for it, or choose another name=") from None

    def resumable(self, recipe: Mapping[str, Any], files: Mapping[str, list[str]]) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one and it belongs to this recipe and these files.

        Args:
            recipe: the resolved config.
            files: the training files of `a` and `b`, a line each that tells them from others.

        Raises:
            CheckpointError: it is damaged, or of other networks.
            CommandError: the recipe or the files have changed.
        """
        checkpoint = self.checkpoints.load()
        if checkpoint is None:
            return None
        then, now = _lasting(checkpoint.training["recipe"]), _lasting(recipe)
        changed = [
            f"{key}: {then.get(key)} -> {now.get(key)}" for key in sorted(then | now) if then.get(key) != now.get(key)
        ]
        networks = [line for line in changed if line.startswith(("generator.", "discriminator."))]
        if networks:
            raise CheckpointError(
                _lines(f"{self.path} holds networks of another architecture; choose another name=", networks)
            )
        changed += _changed_files(checkpoint.training["files"], files)
        if changed and not self.allow_changed:
            remedy = "choose another name=, or go on all the same with resume.allow_changed=true"
            raise CommandError(_lines(f"{self.path} was started with another recipe or data set; {remedy}", changed))
        return checkpoint

    def write_config(self, yaml: str) -> None:
        """Keep what the run was started with, with what `auto` came to."""
        write_text(self.path / "config.yaml", yaml)

    def _user(self) -> str:
        """Who has the folder, as far as it says so."""
        try:
            status = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
            return f" by pid {status['pid']} on host {status['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def write_status(self, state: Literal["running", "finished", "stopped", "failed"], **facts: Any) -> None:
        """Say how the run stands: its state, and facts such as `code`, `reason` and `step`."""
        status = {"state": state, **facts, "host": socket.gethostname(), "pid": os.getpid()}
        write_text(self.path / "status.json", json.dumps(status, indent=1) + "\n")


def _lasting(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as flat keys, without those that may change."""
    flat = _flat(recipe)
    return {
        key: value
        for key, value in flat.items()
        if not any(key == one or key.startswith(one + ".") for one in HARMLESS)
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _changed_files(then: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> list[str]:
    changed = []
    for side in ("a", "b"):
        before, after = set(then[side]), set(now[side])
        if before != after:
            changed.append(f"files of {side}: {len(after - before)} added, {len(before - after)} removed")
    return changed


def _lines(first: str, rest: list[str]) -> str:
    shown = rest if len(rest) <= 5 else [*rest[:4], f"and {len(rest) - 4} more"]
    return "\n  ".join([first, *shown])
