"""A folder for one process at a time."""

import errno
import os
import struct
import sys
from pathlib import Path
from typing import IO

from cyclestyle.errors import warn


class Lock:
    """A file that one process can hold; it lets go when the process ends, however it ends.

    Args:
        file: is made where it is missing, and stays.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stream: IO[str] | None = None

    def acquire(self) -> bool:
        """Take it for good; False if another process has it. Raises OSError where the file cannot be opened.

        Where the file system knows no locks, the user is told and nobody is kept out.
        """
        self._stream = self.file.open("a")
        if os.name != "posix":
            return True
        import fcntl  # not on Windows

        try:
            # Of this process alone: its data workers, which may outlive it by seconds, do not hold it.
            fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            reason = (error.strerror or "").lower()
            warn(f"{self.file.parent} cannot be locked ({reason}): see that nothing else writes there")
        return True

    def release(self) -> None:
        """Let go of it before the process ends."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def holder(self) -> int | None:
        """The process of this host that has it, where the system tells."""
        if self._stream is None or sys.platform != "linux" or sys.maxsize < 2**32:
            return None
        import fcntl

        layout = "hhqqi0q"  # struct flock of fcntl(2): type, whence, start, length, pid
        told = fcntl.fcntl(self._stream, fcntl.F_GETLK, struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        kind, _, _, _, pid = struct.unpack(layout, told)
        return pid if kind != fcntl.F_UNLCK and pid > 0 else None  # of another host it is no number of ours
