"""Tasks of worker processes: read photos from files, and write translations and thumbnails to files.

This module imports no torch, so a worker starts in a fraction of a second.
"""

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cyclestyle.errors import CyclestyleError
from cyclestyle.filesystem.atomic import atomic_write
from cyclestyle.filesystem.listing import printable
from cyclestyle.images import cutouts, decoder_warnings, decoding, masks, reading, thumbnails, writing
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.photo import Mask, Photo, PixelArray
from cyclestyle.signals import terminate_with_parent

UNSHOWN_ENDINGS = frozenset({".tif", ".tiff", ".heic", ".heif", ".hif"})  # most browsers cannot show such files


class Reading(NamedTuple):
    """Options for reading photos and their masks, see `images.reading.read` and `images.masks.feathered`."""

    resize: int | None = None
    metadata: bool = False
    max_pixels: int = decoding.MAX_PIXELS
    feather: int = 0  # px of the translation


class PhotoFiles(NamedTuple):
    """Path of a photo, and path of its mask; `mask` is None if the photo has no mask."""

    photo: Path
    mask: Path | None = None


class Writing(NamedTuple):
    """Options for writing translations and thumbnails."""

    output: Path  # output folder
    quality: int = 95
    sheet: Path | None = None  # folder for the contact sheet's thumbnails; None means no contact sheet


class Written(NamedTuple):
    """Translation files written for one photo, and notes for the report."""

    stamps: dict[str, tuple[int, int]]  # target -> (size in bytes, modification time in ns)
    notes: tuple[str, ...]


def initialize_worker() -> None:
    """Make a worker process ignore Ctrl-C and end together with its parent process."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # the parent was killed before `terminate_with_parent`
        os._exit(1)


def read_files(files: PhotoFiles, how: Reading) -> Photo:
    """Read a photo, and its mask if it has one, see `read` and `read_masked`."""
    return read(files.photo, how) if files.mask is None else read_masked(files.photo, files.mask, how)


def read_masked(path: Path, mask: Path, how: Reading) -> Photo:
    """Read a photo like `read`, together with its mask, which must have the size of the upright photo.

    If the photo is shrunk, its mask is shrunk too, then feathered.

    Raises:
        ImageError: the photo or the mask cannot be read, or their sizes differ; its `path` is that of the photo.
    """
    whole = _read(path, how._replace(resize=None))
    height, width = whole.pixels.shape[:2]
    try:
        weights = masks.read(mask, height=height, width=width, max_pixels=how.max_pixels)
    except ImageError as error:
        raise ImageError(path, f"its mask {printable(mask)}: {error.reason}", error.permanent) from None
    with _as_image_error(path):
        photo = reading.resized(whole, how.resize)
        filled = cutouts.filled(photo)
        weights = masks.feathered(masks.shrunk(weights, *photo.pixels.shape[:2]), how.feather)
    notes = photo.notes if weights.any() else (*photo.notes, "its mask is black everywhere: the photo is unchanged")
    unfilled = None if filled is photo else photo.pixels
    return dataclasses.replace(filled, mask=Mask(weights, unfilled), notes=notes)


def read(path: Path, how: Reading) -> Photo:
    """Read the photo at `path` with the options `how`; fill its transparent pixels with colours, see `cutouts.filled`.

    Warnings of the decoders are added to the photo's notes. Warnings that C libraries print to stderr are included only
    in a worker process: it reads one photo at a time, so they must concern this photo.

    Raises:
        ImageError: the photo cannot be read.
    """
    return cutouts.filled(_read(path, how))


def _read(path: Path, how: Reading) -> Photo:
    """Read a photo and the decoders' warnings about it, see `read`; transparent pixels keep their hidden colours."""
    is_worker = multiprocessing.parent_process() is not None and threading.active_count() == 1
    with decoder_warnings.collected(stderr=is_worker) as lines:
        photo = reading.read(path, resize=how.resize, metadata=how.metadata, max_pixels=how.max_pixels)
    if lines:
        photo = dataclasses.replace(photo, notes=(*photo.notes, *decoder_warnings.note(lines)))
    return photo


def write(
    photo: Photo,
    translations: Sequence[PixelArray],
    targets: Sequence[Path],
    thumbs: Sequence[str],
    how: Writing,
    source: Path | None = None,
) -> Written:
    """Write the translations of a photo and, if `how.sheet` is set, its thumbnails for the contact sheet.

    If browsers cannot show a file, such as a TIFF, a web-sized copy is written beside its thumbnail. If a thumbnail
    cannot be made, a note is added and no error is raised, since the translation itself exists.

    Args:
        photo: the photo; its metadata and alpha channel are written into the files.
        translations: arrays (H, W, 3) or, for grey, (H, W, 1), with the size and dtype of `photo.pixels`; one for each
            target.
        targets: paths of the translations, relative to the output folder.
        thumbs: names of the thumbnails; the first is for the photo, the others are for the translations.
        how: options for writing.
        source: path of the photo, whose extension decides whether a web-sized copy is written; None means no copy.

    Raises:
        ImageError: the format of a target cannot hold the image, or the written file cannot be opened again.
        OSError: a file cannot be written; the error's `filename` is the path of that file.
    """
    stamps: dict[str, tuple[int, int]] = {}
    notes = list(photo.notes)
    for pixels, target in zip(translations, targets, strict=True):
        path = how.output / target
        with _with_file_name(path), _as_image_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            notes += writing.write(dataclasses.replace(photo, pixels=pixels), path, quality=how.quality)
            status = path.stat()
        stamps[target.as_posix()] = status.st_size, status.st_mtime_ns
    if how.sheet is not None:
        files = [source or Path(), *targets]
        for pixels, file, name in zip([photo.pixels, *translations], files, thumbs, strict=True):
            try:
                write_thumbnails(pixels, photo.alpha, file, how.sheet / name)
            except ImageError as error:
                notes.append(error.reason)
    return Written(stamps, tuple(dict.fromkeys(notes)))


def rewrite_thumbnails(source: Path, targets: Sequence[Path], thumbs: Sequence[str], how: Writing) -> None:
    """Write the thumbnails of a photo that an earlier command translated without a contact sheet."""
    assert how.sheet is not None
    for path, name in zip([source, *(how.output / target for target in targets)], thumbs, strict=True):
        photo = reading.read(path)
        write_thumbnails(photo.pixels, photo.alpha, path, how.sheet / name)


def web_copy_name(thumb: str, file: Path) -> str:
    """Return the name of the web-sized copy of an image file; empty if browsers can show the file itself.

    Args:
        thumb: name of the thumbnail.
        file: name of the image file, whose extension decides.
    """
    return thumb.replace(".webp", "-large.webp") if file.suffix.lower() in UNSHOWN_ENDINGS else ""


def write_thumbnails(pixels: PixelArray, alpha: PixelArray | None, file: Path, path: Path) -> None:
    """Write a thumbnail of an image; if browsers cannot show the image's own file, also write a web-sized copy.

    The copy lies beside the thumbnail and is named by `web_copy_name`.

    Args:
        pixels: the image.
        alpha: alpha channel of the image, if it has one.
        file: path of the image's own file, whose extension decides whether a copy is written.
        path: path of the thumbnail.

    Raises:
        ImageError: the thumbnail cannot be encoded.
        OSError: a file cannot be written.
    """
    write_thumbnail(pixels, alpha, path)
    if name := web_copy_name(path.name, file):
        write_thumbnail(pixels, alpha, path.with_name(name), largest=thumbnails.WEB_COPY)


def write_thumbnail(
    pixels: PixelArray, alpha: PixelArray | None, path: Path, *, largest: tuple[int, int] = thumbnails.THUMBNAIL
) -> None:
    """Write an image, with its alpha channel if it has one, to `path`, shrunk to at most `largest` (width, height) px.

    Raises:
        ImageError: the thumbnail cannot be encoded.
        OSError: the file cannot be written; the error's `filename` is `path`.
    """
    try:
        content = thumbnails.thumbnail(pixels, alpha, largest=largest)
    except MemoryError:
        raise
    except Exception as error:  # encoders raise errors of any type
        raise ImageError(path, f"it has no thumbnail ({type(error).__name__}: {error})") from None
    with _with_file_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as stream:
            stream.write(content)


@contextmanager
def _with_file_name(path: Path) -> Iterator[None]:
    """Context manager: re-raise an OSError from the `with` block with `path` as its `filename`.

    The `filename` of the original error may be missing, or may be the path of a temporary file.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from None


@contextmanager
def _as_image_error(path: Path) -> Iterator[None]:
    """Context manager: re-raise an unexpected error from the `with` block as an ImageError about `path`.

    An ImageError can always be sent to another process; errors of other types sometimes cannot.
    """
    try:
        yield
    except (CyclestyleError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(path, unexpected(error), permanent=False) from error


def unexpected(error: Exception) -> str:
    """Return the message shown to the user for an unexpected error."""
    return f"unexpected {type(error).__name__}: {error}" if str(error) else f"unexpected {type(error).__name__}"
