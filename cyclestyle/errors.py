"""What can go wrong by no fault of the program, and the exit code that each kind has."""

import contextlib
import sys


class CyclestyleError(Exception):
    """An error for the user: one line that says what was wrong, where, and what to do.

    Entries print the message without a traceback and exit with `code`; every other exception is a bug.
    """

    code = 1


class CommandError(CyclestyleError):
    """A wrong command line or config."""

    code = 2


class DataError(CyclestyleError):
    """Pictures that are missing or cannot be used."""

    code = 3


class CheckpointError(CyclestyleError):
    """A checkpoint or model file that is missing, damaged or of another architecture."""

    code = 4


class DamagedError(CheckpointError):
    """A checkpoint whose files are not what was written; an older one may be whole."""


class DivergedError(CyclestyleError):
    """Training whose losses or gradients are no numbers any more.

    Args:
        message: says so.
        step: steps done before the one that went wrong, where there was one.
    """

    code = 5

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class ResourceError(CyclestyleError):
    """Memory that ran out, or a device that was lost."""

    code = 7


class DiskError(CyclestyleError):
    """A folder that cannot be written."""

    code = 74


class LostProcessError(CyclestyleError):
    """Another process of the run that ended or does not answer."""


def warn(message: str) -> None:
    """Tell the user something that does not end the program, in one line on standard error if that can be written."""
    with contextlib.suppress(OSError):
        print(f"cyclestyle: {message}", file=sys.stderr, flush=True)
