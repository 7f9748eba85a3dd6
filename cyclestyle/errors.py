"""Exceptions for expected failures; each class defines the exit code of a command that fails with it."""

import contextlib
import sys


class CyclestyleError(Exception):
    """Error that is shown to the user: its message states cause, place and remedy.

    Commands print the message without a traceback. Any other exception is a bug.

    Attributes:
        code: exit code of the command.
        concerns_one_rank: whether the rank with this error always prints it. If false, all ranks have the same error,
            such as a mistyped config key, and only the first process of each host prints it.
    """

    code = 1
    concerns_one_rank = False


class CommandError(CyclestyleError):
    """The command line or the config is invalid."""

    code = 2


class DataError(CyclestyleError):
    """Images or folders are missing or unusable."""

    code = 3


class ImageTypeError(DataError, TypeError):
    """A Python object is not an image, or its image mode, dtype or shape is not supported."""


class CheckpointError(CyclestyleError):
    """A checkpoint or model file is missing, damaged or made for another architecture."""

    code = 4


class DamagedError(CheckpointError):
    """The files of a checkpoint differ from its manifest of sizes and checksums; an older checkpoint may be intact."""


class DivergedError(CyclestyleError):
    """Training diverged: a loss or a gradient became infinite or NaN.

    Args:
        message: one line for the user.
        step: number of steps completed before the failure; None if it is unknown.
    """

    code = 5

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class ResourceError(CyclestyleError):
    """Memory is exhausted, or a device is lost."""

    code = 7


class DiskError(CyclestyleError):
    """A folder or file cannot be written, or the disk fails to read it."""

    code = 74


class LostProcessError(CyclestyleError):
    """Another process of the run has exited or does not respond."""

    concerns_one_rank = True


def warn(message: str) -> None:
    """Print `message` as a one-line warning to standard error; do nothing if standard error is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(f"cyclestyle: {message}", file=sys.stderr, flush=True)
