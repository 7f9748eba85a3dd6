"""Exceptions for expected failures, each with the exit code of the command."""

import contextlib
import sys


class CyclestyleError(Exception):
    """Error shown to the user: a message with cause, place and remedy.

    Commands print the message without a traceback and exit with `code`. Any other exception is a bug.
    """

    code = 1


class CommandError(CyclestyleError):
    """Invalid command line or config."""

    code = 2


class DataError(CyclestyleError):
    """Missing or unusable images or folders."""

    code = 3


class CheckpointError(CyclestyleError):
    """Missing or damaged checkpoint or model file, or one of another architecture."""

    code = 4


class DamagedError(CheckpointError):
    """Checkpoint whose files differ from its manifest; an older checkpoint may be intact."""


class DivergedError(CyclestyleError):
    """Training diverged: a loss or a gradient became infinite or NaN.

    Args:
        message: one line for the user.
        step: number of completed steps before the failed step; None if the failed step is unknown.
    """

    code = 5

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class ResourceError(CyclestyleError):
    """Exhausted memory or a lost device."""

    code = 7


class DiskError(CyclestyleError):
    """Folder or file that cannot be written."""

    code = 74


class LostProcessError(CyclestyleError):
    """Another process of the run has exited or does not respond."""


def warn(message: str) -> None:
    """Print a one-line warning to standard error, or nothing if standard error is closed."""
    with contextlib.suppress(OSError):
        print(f"cyclestyle: {message}", file=sys.stderr, flush=True)
