"""Files that appear whole or not at all, and disks that cannot take them."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cyclestyle.errors import DiskError

# Of a disk that is full, broken or not ours to write on; EFBIG comes from a limit on the size of files.
_OF_THE_DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENODEV}
)

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
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
    with replacing(path) as stream:
        stream.write(text.encode())


def sweep(folder: Path) -> None:
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


def is_of_the_disk(error: OSError) -> bool:
    """Whether an error is the disk's fault, not the program's."""
    return error.errno in _OF_THE_DISK


def megabytes(count: int) -> str:
    """A number of bytes as people read it, in units of a million."""
    return f"{count / 1e6:.1f} MB" if count < 10e6 else f"{count / 1e6:,.0f} MB"
