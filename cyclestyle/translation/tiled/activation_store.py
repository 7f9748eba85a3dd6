"""Where activations of a whole picture wait: in memory as long as there is room, else in files without a name."""

import errno
import os
import tempfile
import weakref
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

import torch
from torch import Tensor

from cyclestyle.errors import DiskError
from cyclestyle.filesystem.atomic import disk_error, free_space


class ActivationStore(Protocol):
    """Rows of (1, C, H, W), each channels last, which can be written and read in any order."""

    lent: bool  # what is read is the store's own memory, not a copy

    def read(self, top: int, bottom: int) -> Tensor: ...

    def write(self, top: int, strip: Tensor) -> None: ...


class ActivationStores:
    """All that wait at a time; at the end of the `with` block nothing is left of any of them.

    Args:
        memory: bytes that may be taken from it; what does not fit waits in a file.
        folder: for these files.
        device: `meta` for stores that only count, else the CPU.
    """

    def __init__(self, memory: float, folder: Path, *, device: str = "cpu") -> None:
        self.memory, self.folder, self.device = memory, folder, device
        self.held = 0  # bytes in memory now
        self._open = ExitStack()

    def __enter__(self) -> "ActivationStores":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def make(self, channels: int, height: int, width: int, dtype: torch.dtype) -> ActivationStore:
        """Room for activations; it is given back when the store is forgotten.

        Raises:
            DiskError: it would have to be in a file, and the disk has no room.
        """
        size = channels * height * width * dtype.itemsize
        if self.held + size <= self.memory:
            self.held += size
            in_memory = InMemory(torch.empty((height, width, channels), dtype=dtype, device=self.device))
            weakref.finalize(in_memory, self._give_back, size)
            return in_memory

        in_file = InFile(self.folder, (height, width, channels), dtype)
        self._open.callback(weakref.finalize(in_file, in_file.stream.close))
        return in_file

    def _give_back(self, size: int) -> None:
        self.held -= size


class InMemory:
    """A store that is a tensor (H, W, C)."""

    lent = True

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def read(self, top: int, bottom: int) -> Tensor:
        return _as_strip(self.values[top:bottom])

    def write(self, top: int, strip: Tensor) -> None:
        self.values[top : top + strip.shape[2]] = _as_rows(strip)


class InFile:
    """A store that is a file without a name, so that no way out can leave it behind.

    It is read and written, not mapped: what is mapped counts as memory of the process.

    Raises:
        DiskError: there is no room for it, as of `write`.
    """

    lent = False

    def __init__(self, folder: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.row_bytes = shape[1] * shape[2] * dtype.itemsize
        self.free = free_space(folder)
        if self.free is not None and self.free < self.row_bytes * shape[0]:
            raise self._error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        try:
            self.stream: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  see `ActivationStores`
        except OSError as error:
            raise self._error(error) from None

    def read(self, top: int, bottom: int) -> Tensor:
        rows = torch.empty((bottom - top, *self.shape[1:]), dtype=self.dtype)
        left = _bytes_of(rows)
        self.stream.seek(top * self.row_bytes)
        while left:  # the system may hand over less than it is asked for
            count = self.stream.readinto(left)  # type: ignore[attr-defined]
            assert count, "rows that were never written"
            left = left[count:]
        return _as_strip(rows)

    def write(self, top: int, strip: Tensor) -> None:
        left = _bytes_of(_as_rows(strip).cpu().contiguous())
        try:
            self.stream.seek(top * self.row_bytes)
            while left:
                left = left[self.stream.write(left) :]
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> DiskError:
        need = self.row_bytes * self.shape[0]
        return disk_error("cannot keep activations of a large picture", error, self.folder, need=need, free=self.free)


def _as_strip(rows: Tensor) -> Tensor:
    """(h, W, C) as (1, C, h, W)."""
    return rows.permute(2, 0, 1)[None]


def _as_rows(strip: Tensor) -> Tensor:
    """(1, C, h, W) as (h, W, C)."""
    return strip[0].permute(1, 2, 0)


def _bytes_of(rows: Tensor) -> memoryview:
    return memoryview(rows.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
