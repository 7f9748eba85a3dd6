"""Inspection of image files: each file is decoded once, several files in parallel, and the results are cached.

The cache files are in `cache_folder()`. Each image folder has a separate cache file for each decoder and
for each treatment of ICC profiles. A cached result is used again while the name, size and time of modification of the
image file are unchanged. Without a cache file, all images are inspected again.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image

from cyclestyle.errors import CommandError
from cyclestyle.filesystem.atomic import write_text
from cyclestyle.filesystem.cache import cache_folder
from cyclestyle.filesystem.listing import Candidate
from cyclestyle.images.decoding import ImageError, ImageInfo
from cyclestyle.images.reading import ImageReader

VERSION = f"2, Pillow {PIL.__version__}"  # another version of Pillow may decode files that this one cannot
LARGE = 2**25  # pixels; larger images are decoded two at a time to save memory (4 bytes per pixel)
MAX_THREADS = 16


class FileCheck(NamedTuple):
    """Result of inspecting one file: facts about the image, or an error text.

    An incomplete JPEG, which lacks its last bytes, has both.
    """

    facts: ImageInfo | None
    reason: str = ""  # error text; empty for intact images
    permanent: bool = True  # another attempt would give the same result; only permanent results are cached


FileChecks = dict[Path, FileCheck]  # keys: names relative to the folder


class _Job(NamedTuple):
    folder: Path
    name: Path


def inspect(
    folders: Mapping[Path, Sequence[Candidate]],
    *,
    reader: ImageReader,
    on_progress: Callable[[int, int], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[Path, FileChecks] | None:
    """Inspect the image files of several folders; a file with a usable cached result is not opened.

    Args:
        folders: dictionary from each folder to the image files listed in it.
        reader: reader of the training images. Two of its settings are ignored, `value_range` and `incomplete`: values
            are never scaled, and JPEG files that lack their last bytes are decoded as far as possible.
        on_progress: function that is called after each opened file with two numbers: files opened so far, and files to
            open in total.
        stopping: function that is polled before the first file and after each file; if it returns True, inspection
            ends, and the results so far are cached.

    Returns:
        A dictionary from each folder to its results, which are keyed by file name; None if inspection was stopped.
    """
    reader = replace(reader, value_range="full", incomplete=False)
    checks = {folder: _cached(folder, candidates, reader) for folder, candidates in folders.items()}
    jobs = [
        _Job(folder, candidate.name)
        for folder, candidates in folders.items()
        for candidate in candidates
        if candidate.name not in checks[folder]
    ]
    done = 0
    try:
        # Pillow's warnings concern metadata and name neither the file nor a remedy.
        with warnings.catch_warnings(action="ignore"), closing(_examined(jobs, reader)) as examined:
            while done < len(jobs) and not stopping():
                job, check = next(examined)
                checks[job.folder][job.name] = check
                done += 1
                if on_progress:
                    on_progress(done, len(jobs))
    finally:
        for folder in {job.folder for job in jobs}:
            _store_cache(folder, folders[folder], checks[folder], reader)
    return checks if done == len(jobs) else None


def as_image_error(path: Path, error: Exception) -> ImageError:
    """Convert an `error` raised while reading `path` to an ImageError that names this file.

    If `error` is an ImageError, it is returned unchanged. Any other error is taken to be temporary: the returned
    ImageError has `permanent` False, so that it is not cached. Its text includes the type of `error`, except for a
    MemoryError.
    """
    if isinstance(error, ImageError):
        return error
    if isinstance(error, MemoryError):
        return ImageError(path, "not enough memory to decode it", False)
    return ImageError(path, with_type_name(error), False)


def with_type_name(error: Exception) -> str:
    """Return the name of the type of `error` and the error text, as in `KeyError: 'x'`."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _examined(jobs: Sequence[_Job], reader: ImageReader) -> Generator[tuple[_Job, FileCheck], None, None]:
    """Inspect the files that `jobs` name; yield each job with its result, in order of completion.

    Images with more than `LARGE` pixels are decoded last, as they take much memory.
    """
    large: list[_Job] = []
    moderate = replace(reader, max_pixels=min(LARGE, reader.max_pixels))
    for job, check in _side_by_side(jobs, threads=_num_threads(), reader=moderate):
        if _is_conclusive(check, reader.max_pixels):
            yield job, check
        else:
            large.append(job)
    yield from _side_by_side(large, threads=2, reader=reader)


def _side_by_side(jobs: Sequence[_Job], *, threads: int, reader: ImageReader) -> Iterator[tuple[_Job, FileCheck]]:
    Image.init()  # loads Pillow's plugins once; otherwise each thread would load them at the same time
    with ThreadPoolExecutor(threads) as pool:
        try:
            running = {pool.submit(_examine, job.folder / job.name, reader): job for job in jobs}
            for future in as_completed(running):
                yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _num_threads() -> int:
    """Return the number of decoding threads: one for each core that this process may use, at most `MAX_THREADS`.

    Threads decode in parallel, as Pillow releases the GIL while it decodes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, cores)


def _examine(path: Path, reader: ImageReader) -> FileCheck:
    try:
        return FileCheck(reader.probe(path))
    except Exception as error:
        image_error = as_image_error(path, error)
    facts = None
    if image_error.permanent:
        with suppress(Exception):  # the first error is the reason
            facts = replace(reader, incomplete=True).probe(path)
    return FileCheck(facts, image_error.reason, image_error.permanent)


def _is_conclusive(check: FileCheck, max_pixels: int) -> bool:
    """Return whether `check` makes another look at the file needless.

    This is so if the file was decoded, is damaged, or has more than `max_pixels` pixels.
    """
    facts = check.facts
    return facts is None or facts.decoded or facts.width * facts.height > max_pixels


def _cached(folder: Path, candidates: Sequence[Candidate], reader: ImageReader) -> FileChecks:
    """Return the results known before any image file is opened: cached results, and errors from listing the folder.

    `candidates` are the image files listed in `folder`.
    """
    cached = _read_cache(folder, reader)
    checks: FileChecks = {}
    for candidate in candidates:
        if candidate.reason:
            checks[candidate.name] = FileCheck(None, candidate.reason, False)
            continue
        check = _as_file_check(candidate, cached.get(str(candidate.name)))
        if check is not None and _is_conclusive(check, reader.max_pixels):
            checks[candidate.name] = check
    return checks


def _as_file_check(candidate: Candidate, row: object) -> FileCheck | None:
    """Convert a file's cache entry `row` to a result; return None if the entry is missing, invalid or outdated."""
    match row:
        case [candidate.size, candidate.modified_ns, str(reason)]:
            return FileCheck(None, reason)
        case [
            candidate.size,
            candidate.modified_ns,
            str(reason),
            [int(width), int(height), bool(animated), bool(decoded), values],
        ]:
            match values:
                case [int(smallest), int(largest)]:
                    return FileCheck(ImageInfo(width, height, animated, decoded, (smallest, largest)), reason)
                case None:
                    return FileCheck(ImageInfo(width, height, animated, decoded), reason)
    return None


def _read_cache(folder: Path, reader: ImageReader) -> dict[str, object]:
    # These errors mean that the cache file is missing, damaged or in another format.
    with suppress(OSError, ValueError, TypeError, LookupError, RuntimeError):
        content = json.loads(_cache_file(folder, reader).read_text(encoding="utf-8"))
        if [content["version"], content["folder"]] == [VERSION, str(folder.absolute())]:
            return dict(content["files"])
    return {}


def _store_cache(folder: Path, candidates: Sequence[Candidate], checks: FileChecks, reader: ImageReader) -> None:
    """Write the results to the cache file, except temporary errors (`permanent` is False).

    Write errors are ignored, as a lost cache only slows the next start.
    """
    rows = {
        str(file.name): [file.size, file.modified_ns, check.reason, *([check.facts] if check.facts else [])]
        for file in candidates
        if (check := checks.get(file.name)) is not None and check.permanent
    }
    with suppress(OSError, CommandError):
        path = _cache_file(folder, reader)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"version": VERSION, "folder": str(folder.absolute()), "files": rows}))


def _cache_file(folder: Path, reader: ImageReader) -> Path:
    """Return the path of the cache file for `folder`; raise a CommandError if there is no cache folder.

    Readers with another decoder or treatment of ICC profiles use another cache file, as they may accept other images.
    """
    parts = [part for part in (reader.decoder, reader.colour) if part not in ("earlier", "raw")]
    ending = ".".join(["", *parts, "json"])
    return cache_folder() / f"{hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]}{ending}"
