"""What worker processes do while a model computes: pictures out of files and into files.

It imports no torch, so that a worker starts in a fraction of a second.
"""

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cyclestyle.errors import CyclestyleError
from cyclestyle.filesystem.atomic import atomic_write
from cyclestyle.images import decoding, reading, thumbnails, writing
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.photo import Photo, PixelArray
from cyclestyle.signals import terminate_with_parent


class Reading(NamedTuple):
    """How pictures are read, see `photos.read`."""

    resize: int | None = None
    metadata: bool = False
    max_pixels: int = decoding.MAX_PIXELS


class Writing(NamedTuple):
    """How translations are written."""

    output: Path
    quality: int = 95
    sheet: Path | None = None  # folder for the thumbnails of the contact sheet


class Written(NamedTuple):
    """What has been written of one picture."""

    stamps: dict[str, tuple[int, int]]  # target -> its bytes, and when it was changed in ns
    notes: tuple[str, ...]


def begin() -> None:
    """Make the process a worker: it ends with the one that started it, which alone is asked to stop by Ctrl-C."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it was killed before it could be watched
        os._exit(1)


def read(path: Path, how: Reading) -> Photo:
    """A picture; raises PictureError."""
    return reading.read(path, resize=how.resize, metadata=how.metadata, max_pixels=how.max_pixels)


def write(
    photo: Photo, translations: Sequence[PixelArray], targets: Sequence[Path], shots: Sequence[str], how: Writing
) -> Written:
    """Write the translations of a picture and, where there is a contact sheet, its thumbnails.

    Args:
        translations: as the photo's `pixels`, each for the target at its place.
        targets: relative to the output folder.
        shots: names of the thumbnails, of the photo itself first.

    A thumbnail that cannot be made is a note: the translation is there.

    Raises:
        PictureError: a format cannot hold the picture, or what was written cannot be opened again.
        OSError: the disk does not take it; with the name of the file.
    """
    stamps: dict[str, tuple[int, int]] = {}
    notes = list(photo.notes)
    for pixels, target in zip(translations, targets, strict=True):
        path = how.output / target
        with _named(path), _of_one_picture(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            notes += writing.write(dataclasses.replace(photo, pixels=pixels), path, quality=how.quality)
            status = path.stat()
        stamps[target.as_posix()] = status.st_size, status.st_mtime_ns
    if how.sheet is not None:
        for pixels, name in zip([photo.pixels, *translations], shots, strict=True):
            try:
                write_thumbnail(pixels, photo.alpha, how.sheet / name)
            except ImageError as error:
                notes.append(error.reason)
    return Written(stamps, tuple(dict.fromkeys(notes)))


def rewrite_thumbnail(source: Path, targets: Sequence[Path], shots: Sequence[str], how: Writing) -> None:
    """The thumbnails of a picture that was translated when no contact sheet was asked for."""
    assert how.sheet is not None
    for path, name in zip([source, *(how.output / target for target in targets)], shots, strict=True):
        photo = reading.read(path)
        write_thumbnail(photo.pixels, photo.alpha, how.sheet / name)


def write_thumbnail(pixels: PixelArray, alpha: PixelArray | None, path: Path) -> None:
    """Write a thumbnail; raises PictureError where none can be made, OSError with the file's name for the disk."""
    try:
        content = thumbnails.thumbnail(pixels, alpha)
    except MemoryError:
        raise
    except Exception as error:  # encoders raise nearly anything
        raise ImageError(path, f"it has no thumbnail ({type(error).__name__}: {error})") from None
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as stream:
            stream.write(content)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the system name the file that was to be written, not one on the way to it, or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from None


@contextmanager
def _of_one_picture(path: Path) -> Iterator[None]:
    """Make a PictureError of what nobody expected of a picture: it can always be sent to another process."""
    try:
        yield
    except (CyclestyleError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(path, unexpected(error), permanent=False) from error


def unexpected(error: Exception) -> str:
    """The reason for the user where no part of the program knows one."""
    return f"unexpected {type(error).__name__}: {error}" if str(error) else f"unexpected {type(error).__name__}"
