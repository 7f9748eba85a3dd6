"""Saving of checkpoints, either while training waits or in a second thread while training continues."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from cyclestyle.checkpoints.best import Best, Interval, Mode
from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.checkpoints.model import Model
from cyclestyle.distributed.world import World
from cyclestyle.errors import DiskError, warn

ATTEMPTS = 3  # number of consecutive failed saves after which the run ends


class Snapshot(NamedTuple):
    """State of a run between two steps: all that a checkpoint stores."""

    model: Model
    training: Mapping[str, Any]  # training state, the same on all ranks
    rank_state: Mapping[str, Any]  # state of this rank alone; no later step modifies its tensors

    def copied(self, *, shared: bool = True) -> "Snapshot":
        """Return a copy on the CPU. Later steps do not modify the copy, so training may continue while it is written.

        Args:
            shared: whether to include the model and the training state, which only rank 0 writes.
        """
        return self._replace(
            model=self.model._replace(tensors=_copied(self.model.tensors) if shared else {}),
            training=_copied(self.training) if shared else {},
            rank_state=_copied(self.rank_state, unshared=True),
        )


class CheckpointWriter:
    """Saves the checkpoints of a run; tolerates two consecutive failed saves, for example on a disk that is full.

    After a failed save the writer warns, and training continues until the next save is due. A third consecutive failure
    raises an error, and so does a failure of the run's last save.

    Args:
        checkpoints: the run's checkpoint folders.
        world: the ranks that save together.
        asynchronous: True copies the state and lets a thread write the copy. At most one write is in progress: each
            save first waits for the previous write.
        saved: function called with the path of each checkpoint once the checkpoint is on the disk.
        warn: function called with one line of text after each failed save that does not end the run.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        world: World,
        asynchronous: bool = False,
        saved: Callable[[Path], object] = lambda path: None,
        warn: Callable[[str], None] = warn,
    ) -> None:
        self.checkpoints, self.asynchronous, self.saved, self.warn = checkpoints, asynchronous, saved, warn
        # Two threads must not share a process group.
        self.world = world.duplicate() if asynchronous else world
        self._writer: threading.Thread | None = None
        self._path: Path | None = None
        self._error: Exception | None = None
        self._failures = 0
        self._queued_mark: Best | None = None

    def save(self, take: Callable[[], Snapshot], *, last: bool = False) -> None:
        """Save the snapshot that `take` returns.

        Args:
            last: True for the last save of the run, which waits until the checkpoint is on the disk.

        Raises:
            DiskError: three consecutive saves failed, or the last save of the run failed. If saves are asynchronous, an
                error of an earlier save is raised by the next call.
        """
        self._collect_result(last=False)
        snapshot = take()
        if self.asynchronous:
            copy = snapshot.copied(shared=self.world.is_main)
            self._writer = threading.Thread(target=self._write, args=(copy,), name="checkpoint")
            self._writer.start()
        else:
            self._write(snapshot)
        if last or not self.asynchronous:
            self._collect_result(last=last)

    def best(self) -> Best | None:
        """Return the checkpoint that the last call of `mark_best` marked, even if its mark is not on the disk yet.

        If no mark waits to be written, return the best checkpoint according to the disk, see `Checkpoints.best`; None
        if there is none.
        """
        return self._queued_mark or self.checkpoints.best()

    def mark_best(
        self,
        step: int,
        *,
        name: str,
        value: float,
        mode: Mode = "min",
        interval: Interval | None = None,
        evaluations: int | None = None,
    ) -> None:
        """Mark the checkpoint of `step` as the best one, see `Checkpoints.mark_best`; only rank 0 may call it.

        If saves are asynchronous, return immediately: a thread writes the mark, after the save in progress.
        """
        mark = Best(self.checkpoints.path_of(step), step, name, value, mode, interval, evaluations)
        if not self.asynchronous:
            self._mark(mark, after=None)
            return
        self._queued_mark = mark
        self._writer = threading.Thread(target=self._mark, args=(mark, self._writer), name="checkpoint mark")
        self._writer.start()

    def finish(self) -> None:
        """Wait for the writes in progress; must be called when training ends, also after an error."""
        if self._writer is not None:
            self._writer.join()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._path = self.checkpoints.save(*snapshot, world=self.world)
        except Exception as error:  # _collect_result re-raises the error in the training thread
            self._error = error

    def _mark(self, mark: Best, after: threading.Thread | None) -> None:
        """Mark a checkpoint as the best one, once the thread `after` has ended."""
        if after is not None:
            after.join()
        try:
            _, step, name, value, mode, interval, evaluations = mark
            self.checkpoints.mark_best(
                step,
                name=name,
                value=value,
                mode=mode,
                interval=interval,
                evaluations=evaluations,
                warn=self.warn,
            )
        finally:
            if self._queued_mark is mark:
                self._queued_mark = None

    def _collect_result(self, *, last: bool) -> None:
        """Wait for the previous save, if there was one, and report its success or failure.

        Args:
            last: True for the last save of the run: a DiskError is then always raised. If False, a DiskError leads to
                a warning, but it is raised if it is the `ATTEMPTS`-th in a row.

        Raises:
            DiskError: the save failed, and `last` or the number of failures requires an error.
            Exception: any other error of the save, in each case.
        """
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
            raise DiskError(f"{error}{times}; make room, then the same command resumes from the last checkpoint")
        self.warn(f"{error}; training continues and tries again at the next save")


def _copied(state: Any, *, unshared: bool = False) -> Any:
    """Return `state`, which nests mappings, lists and tuples, with copies of its tensors on the CPU.

    Args:
        unshared: True if nothing modifies the tensors later; tensors that are on the CPU already are then not copied.
    """
    if isinstance(state, Tensor):
        return state.detach().cpu() if unshared or state.device.type != "cpu" else state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _copied(value, unshared=unshared) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copied(value, unshared=unshared) for value in state)
    return state
