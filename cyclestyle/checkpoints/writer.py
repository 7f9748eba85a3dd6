"""When a run's state is copied and who writes it down: at once, or in the background while training goes on."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.checkpoints.model import Model
from cyclestyle.distributed.world import World
from cyclestyle.errors import DiskError, warn

ATTEMPTS = 3  # saves in a row that may fail before the run gives up


class Snapshot(NamedTuple):
    """The state of a run between two steps."""

    model: Model
    training: Mapping[str, Any]  # the same in all processes
    own: Mapping[str, Any]  # of this process alone; tensors that nobody else holds

    def copied(self, *, whole: bool = True) -> "Snapshot":
        """The same in memory of its own, on the CPU, so that training may go on.

        Args:
            whole: else without what all processes share, which only one of them writes.
        """
        return self._replace(
            model=self.model._replace(tensors=_copied(self.model.tensors) if whole else {}),
            training=_copied(self.training) if whole else {},
            own=_copied(self.own, alone=True),
        )


class CheckpointWriter:
    """Saves a run's checkpoints and puts up with a full disk for a while.

    A save that fails is told and tried again when the next one is due; the third failure in a row ends the run, and so
    does any failure of the last save.

    Args:
        checkpoints: where to.
        world: the processes that save together.
        asynchronous: only copy the state and let a thread write it; at most one is on its way, so that a save waits for
            the one before it.
        saved: is told of every checkpoint that stands on the disk.
        tell: is told of every save that failed and will be tried again.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        world: World,
        asynchronous: bool = False,
        saved: Callable[[Path], object] = lambda path: None,
        tell: Callable[[str], None] = warn,
    ) -> None:
        self.checkpoints, self.asynchronous, self.saved, self.tell = checkpoints, asynchronous, saved, tell
        # Two threads must not talk over one channel.
        self.world = world.duplicate() if asynchronous else world
        self._writer: threading.Thread | None = None
        self._path: Path | None = None
        self._error: Exception | None = None
        self._failures = 0

    def save(self, take: Callable[[], Snapshot], *, last: bool = False) -> None:
        """Save what `take` gives.

        Args:
            last: wait until it is on the disk; nothing comes after it.

        Raises:
            DiskError: it, or with `asynchronous` the one before it, was the last attempt and failed.
        """
        self._settle(last=False)
        snapshot = take()
        if self.asynchronous:
            copy = snapshot.copied(whole=self.world.is_main)
            self._writer = threading.Thread(target=self._write, args=(copy,), name="checkpoint")
            self._writer.start()
        else:
            self._write(snapshot)
        if last or not self.asynchronous:
            self._settle(last=last)

    def finish(self) -> None:
        """Wait for what is on its way, on every way out of training."""
        if self._writer is not None:
            self._writer.join()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._path = self.checkpoints.save(*snapshot, world=self.world)
        except Exception as error:  # raised again by _settle, in the thread that trains
            self._error = error

    def _settle(self, *, last: bool) -> None:
        """Learn how the save before went, if there was one."""
        self.finish()
        self._writer = None
        path, error = self._path, self._error
        self._path = self._error = None
        if path is not None:
            self._failures = 0
            self.saved(path)
        if error is None:
            return
        self._failures += 1
        if not isinstance(error, DiskError):
            raise error
        if last or self._failures == ATTEMPTS:
            times = f"; {ATTEMPTS} times in a row" if self._failures == ATTEMPTS else ""
            raise DiskError(f"{error}{times}; make room, then the same command goes on from the last checkpoint")
        self.tell(f"{error}; training goes on and tries again at the next save")


def _copied(state: Any, *, alone: bool = False) -> Any:
    """A nested state with all tensors on the CPU; copies of them unless they are nobody else's."""
    if isinstance(state, Tensor):
        return state.detach().cpu() if alone or state.device.type != "cpu" else state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _copied(value, alone=alone) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copied(value, alone=alone) for value in state)
    return state
