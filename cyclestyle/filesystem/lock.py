"""Lock that allows only one process at a time to write to a folder."""

import errno
import os
import struct
import sys
from pathlib import Path
from typing import IO

from cyclestyle.errors import warn


class Lock:
    """Lock on a file, held by at most one process; the system releases the lock when that process ends or is killed.

    Args:
        file: path of the lock file, which `acquire` creates if it is missing; it is never removed.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stream: IO[str] | None = None

    def acquire(self) -> bool:
        """Take the lock, or return False if another process holds it.

        The lock is held until `release` is called or the process ends.

        On a file system without locks, print a warning and return True. On Windows, return True without locking.

        Raises:
            OSError: the lock file cannot be opened.
        """
        self._stream = self.file.open("a")
        if os.name != "posix":
            return True
        import fcntl  # the module does not exist on Windows

        try:
            # Child processes do not inherit a POSIX lock, so data workers that outlive this process do not keep it.
            fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            reason = (error.strerror or "").lower()
            warn(f"{self.file.parent} cannot be locked ({reason}): see that nothing else writes there")
        return True

    def release(self) -> None:
        """Release the lock; do nothing if this object does not hold it."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def holder(self) -> int | None:
        """Return the id of the process that holds the lock; None if unknown or if the process runs on another host."""
        if self._stream is None or sys.platform != "linux" or sys.maxsize < 2**32:
            return None
        import fcntl

        layout = "hhqqi0q"  # struct flock of fcntl(2): type, whence, start, length, pid
        query = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(self._stream, fcntl.F_GETLK, query))
        return pid if kind != fcntl.F_UNLCK and pid > 0 else None  # a pid from another host means nothing here
