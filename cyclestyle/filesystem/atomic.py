"""Files that appear whole or not at all, and disks that cannot take them."""

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

# Of a disk that is full, broken or not ours to write on; EFBIG comes from a limit on the size of files.
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENODEV}
)

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose bytes stand under `path` once the block has ended well; on an exception `path` stays as it was.

    It is written beside its target, so that the final rename never crosses a file system.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as stream:  # unlike tempfile's, it has the permissions of any new file
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file in UTF-8, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(text.encode())


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed processes left half-written; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(what: str, error: OSError, folder: Path, *, need: int, free: int | None) -> DiskError:
    """The error for the user when files cannot be written.

    Args:
        what: could not be done, such as `"cannot write checkpoint at step 7"`.
        error: what the system said.
        folder: where they were to stand.
        need: bytes that they take.
        free: bytes that were free before, None if the system does not say.
    """
    reason = (error.strerror or type(error).__name__).lower()
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskError(f"{what} in {folder.absolute()}: {reason}")
    room = "free space unknown" if free is None else f"{megabytes(free)} free"
    return DiskError(f"{what}: {reason} (need {megabytes(need)}, {room} in {folder.absolute()})")


def free_space(folder: Path) -> int | None:
    """Bytes that may still be written to the disk of a folder, None if the system does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def is_disk_error(error: OSError) -> bool:
    """Whether an error is the disk's fault, not the program's."""
    return error.errno in _DISK_ERRORS


def megabytes(count: int) -> str:
    """A number of bytes as people read it, in units of a million."""
    return f"{count / 1e6:.1f} MB" if count < 10e6 else f"{count / 1e6:,.0f} MB"


class _Stream:
    """A binary file that remembers the first error of its disk.

    torch.save takes any object with a `write`, but hides what `write` raised behind an error of its own.
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


def _write(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file and see it onto the disk; raises the system's own OSError if that cannot be done."""
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
