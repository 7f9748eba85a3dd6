"""Stores for activations of the whole image, in memory while there is room, else in unnamed temporary files."""

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
    """Storage for one activation (1, C, H, W) in channels-last layout; rows may be written and read in any order."""

    returns_views: bool  # whether `read` returns a view of the store's memory instead of a copy

    def read(self, top: int, bottom: int) -> Tensor: ...

    def write(self, top: int, strip: Tensor) -> None: ...


class ActivationStores:
    """Context manager whose `make` creates the stores for one image; their files are deleted on exit from the block.

    Args:
        memory: maximum total size of the stores in memory, in bytes; stores that do not fit are temporary files.
        folder: folder for the temporary files.
        device: device of the stores in memory: `cpu`, or `meta` for a dry run with stores that hold no values.
    """

    def __init__(self, memory: float, folder: Path, *, device: str = "cpu") -> None:
        self.memory, self.folder, self.device = memory, folder, device
        self.held = 0  # bytes held in memory now
        self._open = ExitStack()

    def __enter__(self) -> "ActivationStores":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def make(self, channels: int, height: int, width: int, dtype: torch.dtype) -> ActivationStore:
        """Create a store for an activation (1, channels, height, width).

        The memory or the file of the store is freed when the store is garbage-collected.

        Raises:
            DiskError: the store does not fit into the free part of `memory`, and its file cannot be created or is
                larger than the free space on the disk.
        """
        size = channels * height * width * dtype.itemsize
        if self.held + size <= self.memory:
            self.held += size
            in_memory = InMemory(torch.empty((height, width, channels), dtype=dtype, device=self.device))
            weakref.finalize(in_memory, self._release, size)
            return in_memory

        in_file = InFile(self.folder, (height, width, channels), dtype)
        self._open.callback(weakref.finalize(in_file, in_file.stream.close))
        return in_file

    def _release(self, size: int) -> None:
        self.held -= size


class InMemory:
    """A store that holds its activation in a tensor (H, W, C)."""

    returns_views = True

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def read(self, top: int, bottom: int) -> Tensor:
        return _as_strip(self.values[top:bottom])

    def write(self, top: int, strip: Tensor) -> None:
        self.values[top : top + strip.shape[2]] = _as_rows(strip)


class InFile:
    """A store that holds its activation in an unnamed temporary file, which disappears even if the process is killed.

    The file is not memory-mapped, because mapped pages count as memory of the process.

    Raises:
        DiskError: the file cannot be created, or is larger than the free space on the disk. `write` raises this error
            if it fails.
    """

    returns_views = False

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
        remaining = _bytes_of(rows)
        self.stream.seek(top * self.row_bytes)
        while remaining:  # a read may return fewer bytes than requested
            count = self.stream.readinto(remaining)  # type: ignore[attr-defined]
            assert count, "the requested rows were never written"
            remaining = remaining[count:]
        return _as_strip(rows)

    def write(self, top: int, strip: Tensor) -> None:
        remaining = _bytes_of(_as_rows(strip).cpu().contiguous())
        try:
            self.stream.seek(top * self.row_bytes)
            while remaining:
                remaining = remaining[self.stream.write(remaining) :]
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> DiskError:
        need = self.row_bytes * self.shape[0]
        return disk_error("cannot keep activations of a large photo", error, self.folder, need=need, free=self.free)


def _as_strip(rows: Tensor) -> Tensor:
    """Return rows (count, W, C) as a view (1, C, count, W)."""
    return rows.permute(2, 0, 1)[None]


def _as_rows(strip: Tensor) -> Tensor:
    """Return a strip (1, C, count, W) as a view (count, W, C)."""
    return strip[0].permute(1, 2, 0)


def _bytes_of(rows: Tensor) -> memoryview:
    return memoryview(rows.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
