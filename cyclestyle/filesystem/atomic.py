"""Atomic writes of files, and errors for full or failing disks."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cyclestyle.errors import DiskError

# Errors of full, broken or unwritable disks; EFBIG means that a file exceeds a limit such as `ulimit -f`.
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENODEV}
)

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Context manager: yield a stream to a temporary file, which replaces `path` at the end of the `with` body.

    On an exception in the `with` body, `path` is unchanged and the temporary file is removed. The temporary file lies
    beside `path`, so the final rename never crosses a file system.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as stream:  # permissions follow the umask; `tempfile` would set 0600
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically, in UTF-8."""
    with atomic_write(path) as stream:
        stream.write(text.encode())


def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder; no other process may be writing to the folder."""
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder, so that renames in it survive a power cut; no effect outside POSIX."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(what: str, error: OSError, folder: Path, *, need: int, free: int | None) -> DiskError:
    """Build the DiskError for files that cannot be written; for a full disk it names the needed and the free space.

    Args:
        what: failed action, for example `"cannot write checkpoint at step 7"`.
        error: error that the operating system raised.
        folder: target folder.
        need: number of bytes to write.
        free: number of free bytes before the action; None if unknown.
    """
    reason = (error.strerror or type(error).__name__).lower()
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskError(f"{what} in {folder.absolute()}: {reason}")
    room = "free space unknown" if free is None else f"{megabytes(free)} free"
    return DiskError(f"{what}: {reason} (need {megabytes(need)}, {room} in {folder.absolute()})")


def free_space(folder: Path) -> int | None:
    """Return the number of free bytes on the disk that holds a folder; None if unknown."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def is_disk_error(error: OSError) -> bool:
    """Return whether an error comes from the disk rather than from the program."""
    return error.errno in _DISK_ERRORS


def megabytes(count: int) -> str:
    """Format a number of bytes in megabytes; 1 MB is a million bytes."""
    return f"{count / 1e6:.1f} MB" if count < 10e6 else f"{count / 1e6:,.0f} MB"


class _Stream:
    """Binary stream that stores the first OSError raised by `write`.

    `torch.save` accepts any object with a `write` method, but replaces an OSError of that method by another error.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._stream.flush()


def write_and_sync(path: Path, write: Callable[[Any], object]) -> None:
    """Call `write` with a stream to a file, and flush the file to the disk; on failure, raise the original OSError."""
    with path.open("wb") as file:
        stream = _Stream(file)
        try:
            write(stream)
        except Exception:
            if stream.error is not None:
                raise stream.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
