"""How a run ends: one line for the user, told once by one of its processes, and the same in status.json."""

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
    """A context around all that a run does; writes the status once there is a `folder` to write it to.

    Errors that are nobody's bug leave it as a `CyclestyleError`. Where several processes fail, as they do when one of
    them has gone, only the first raises; the others leave with its exit code and without a word.

    Args:
        world: the processes.
        advice: for a user who runs out of memory.
    """

    def __init__(self, world: World, *, advice: Remedies = TRAINING) -> None:
        self.world, self.advice = world, advice
        self.folder: RunFolder | None = None

    def __enter__(self) -> "FailureReport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if not isinstance(error, Exception):
            return False
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
        if known is not None and known is not error:
            raise known from error
        return False


def to_user_error(error: Exception, world: World, advice: Remedies = TRAINING) -> CyclestyleError | None:
    """The error as users can make something of it; None for a bug."""
    if isinstance(error, CyclestyleError):
        return error
    if (shortage := memory.resource_error(error, advice)) is not None:
        return shortage
    if isinstance(error, OSError) and is_disk_error(error):
        place = f" {os.fsdecode(error.filename)}" if error.filename else ""
        return DiskError(f"cannot write{place}: {(error.strerror or '').lower()}")
    if isinstance(error, RuntimeError) and world.size > 1 and _is_of_the_connection(error):
        return world.lost_process_error(error)
    return None


def _is_of_the_connection(error: RuntimeError) -> bool:
    """Whether torch says that it cannot reach another process; it has a type of error for some of the ways only."""
    words = ("gloo", "NCCL", "Connection", "Socket", "TCPStore", "Timed out", "Timeout")
    return isinstance(error, DistError) or any(word in str(error) for word in words)
