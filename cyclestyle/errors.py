"""What can go wrong by no fault of the program, and the exit code that each kind has."""


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


class DiskError(CyclestyleError):
    """A folder that cannot be written."""

    code = 74
