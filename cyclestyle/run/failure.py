"""Report of a failed run: one line for the user, printed by one rank only, and the same line in status.json."""

import os
import sys
from types import TracebackType
from typing import Literal

from torch.distributed import DistError

from cyclestyle.distributed.world import FailedElsewhereError, World
from cyclestyle.errors import CyclestyleError, DiskError
from cyclestyle.filesystem.atomic import is_disk_error
from cyclestyle.hardware import memory
from cyclestyle.hardware.memory import TRAINING, Remedies
from cyclestyle.run.folder import RunFolder


class FailureReport:
    """Context manager around a whole run: if the run raises an error, record it in status.json and re-raise it.

    The lock of the run folder is released at the end, so that a process that lives on, such as a notebook, can use the
    folder again.

    Errors are recorded only after `folder` has been set. An error that is not a bug is re-raised as a
    `CyclestyleError`. If several ranks fail, as happens after one rank has died, only the first to fail raises its
    error; the other ranks print nothing and exit with the exit code of the first.

    Args:
        world: ranks of the run.
        advice: remedies that the error lists if memory runs out or the device fails.
    """

    def __init__(self, world: World, *, advice: Remedies = TRAINING) -> None:
        self.world, self.advice = world, advice
        self.folder: RunFolder | None = None

    def __enter__(self) -> "FailureReport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        try:
            if isinstance(error, Exception):
                self._record(error)
        finally:
            if self.folder is not None:
                self.folder.release()
        return False

    def _record(self, error: Exception) -> None:
        known = to_user_error(error, self.world, self.advice)
        code = known.code if known is not None else 1
        reason = str(known).partition("\n")[0] if known is not None else f"{type(error).__name__}: {error}"
        first = not isinstance(error, FailedElsewhereError) and self.world.first_to_fail(code, reason)
        if not first:
            code, reason = self.world.first_failure() or (code, reason)
        if self.folder is not None:
            self.folder.write_status("failed", code=code, reason=reason.partition("\n")[0])
        if not first:
            sys.stderr.flush()
            raise SystemExit(code) from None
        if known is not None:
            known.concerns_one_rank = True
        if known is not None and known is not error:
            raise known from error


def to_user_error(error: Exception, world: World, advice: Remedies = TRAINING) -> CyclestyleError | None:
    """Convert an exception to an error with a message for the user; return None if `error` is a bug in the program."""
    if isinstance(error, CyclestyleError):
        return error
    if (resource := memory.resource_error(error, advice)) is not None:
        return resource
    if isinstance(error, OSError) and is_disk_error(error):
        place = f" {os.fsdecode(error.filename)}" if error.filename else ""
        return DiskError(f"cannot write{place}: {(error.strerror or '').lower()}")
    if isinstance(error, RuntimeError) and world.size > 1 and _is_connection_error(error):
        return world.lost_process_error(error)
    return None


def _is_connection_error(error: RuntimeError) -> bool:
    """Return whether the error means that torch cannot reach another rank.

    torch raises a DistError for some of these errors; the others are recognized by words in the error text.
    """
    words = ("gloo", "NCCL", "Connection", "Socket", "TCPStore", "Timed out", "Timeout")
    return isinstance(error, DistError) or any(word in str(error) for word in words)
