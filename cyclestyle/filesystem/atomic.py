"""Atomic writes of files, and errors about full or failing disks."""

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

# Errors from full, broken or unwritable disks; EFBIG means that a file exceeds a limit such as `ulimit -f`.
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENODEV}
)

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Context manager: yield a stream to a temporary file, which is renamed to `path` when the `with` block exits.

    If the `with` block raises an exception, the temporary file is removed and a file at `path` is left unchanged. The
    temporary file lies in the folder of `path`, so both are on the same file system and the rename is atomic.
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
    """Write `text`, encoded in UTF-8, to the file `path` atomically."""
    with atomic_write(path) as stream:
        stream.write(text.encode())


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Call it only while no other process writes to the folder, since the temporary files of such a process are removed
    too.
    """
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the file names in a folder to the disk, so that renames there survive a power cut.

    On Windows, do nothing.
    """
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(what: str, error: OSError, folder: Path, *, need: int, free: int | None) -> DiskError:
    """Build the DiskError to raise when files cannot be written.

    If the disk is full, the message of the DiskError states the needed and the free space.

    Args:
        what: start of the message, which names the failed action; for example `"cannot write checkpoint at step 7"`.
        error: error that the operating system raised.
        folder: folder that the files should be written to.
        need: number of bytes that the files need.
        free: number of free bytes before the failed action; None if unknown.
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
    """Return whether the errno of an error means a full, broken or unwritable disk."""
    return error.errno in _DISK_ERRORS


def megabytes(count: int) -> str:
    """Format a number of bytes as megabytes, such as `3.2 MB`; 1 MB is a million bytes."""
    return f"{count / 1e6:.1f} MB" if count < 10e6 else f"{count / 1e6:,.0f} MB"


class _Stream:
    """Wrapper around a binary stream; the wrapper stores the first OSError raised while writing to the stream.

    `torch.save` writes to any object with a `write` method. If this method raises an OSError, `torch.save` raises
    another error instead.
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
    """Open the file `path`, call `write` with a stream to the file, and flush the file to the disk.

    If writing to the stream raises an OSError, this error is raised even if `write` replaces it by another.
    """
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
