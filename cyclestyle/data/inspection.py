"""Which files hold pictures: each is decoded once, several at a time, and what came of it is remembered.

Findings are kept in one file for each folder of pictures, under `$XDG_CACHE_HOME/cyclestyle`, by name, size and time of
change. Losing that file costs time and nothing else.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image

from cyclestyle.filesystem.atomic import write_text
from cyclestyle.filesystem.listing import Candidate
from cyclestyle.images import decoding
from cyclestyle.images.decoding import ImageError, ImageInfo

VERSION = f"1, Pillow {PIL.__version__}"  # another Pillow may read what this one refuses, and the reverse
LARGE = 2**25  # pixels; of larger pictures two at a time are decoded, to save memory: 4 bytes a pixel
MOST_THREADS = 16


class FileCheck(NamedTuple):
    """What came of looking at one file."""

    facts: ImageInfo | None
    reason: str = ""  # why there are no facts
    permanent: bool = True  # looking again would end the same; what is not lasting is not remembered


FileChecks = dict[Path, FileCheck]  # by name, relative to the folder


class _Job(NamedTuple):
    folder: Path
    name: Path


def inspect(
    folders: Mapping[Path, Sequence[Candidate]],
    *,
    max_pixels: int,
    tell: Callable[[int, int], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[Path, FileChecks] | None:
    """What the files of some folders hold; those that are remembered are not opened again.

    Args:
        folders: what was listed in each.
        max_pixels: of larger pictures only the header is read.
        tell: called after each file that had to be opened, with how many of those are done, of how many.
        stopping: asked before the first file and after each; what has been found by then is remembered.

    Returns:
        None if it was stopped.
    """
    found = {folder: _cached(folder, candidates, max_pixels) for folder, candidates in folders.items()}
    jobs = [
        _Job(folder, one.name)
        for folder, candidates in folders.items()
        for one in candidates
        if one.name not in found[folder]
    ]
    done = 0
    try:
        # Pillow's warnings are about metadata, and tell neither the file nor anything that could be done.
        with warnings.catch_warnings(action="ignore"), closing(_examined(jobs, max_pixels)) as examined:
            while done < len(jobs) and not stopping():
                job, finding = next(examined)
                found[job.folder][job.name] = finding
                done += 1
                if tell:
                    tell(done, len(jobs))
    finally:
        for folder in {job.folder for job in jobs}:
            _store_cache(folder, folders[folder], found[folder])
    return found if done == len(jobs) else None


def what_is_wrong(path: Path, error: Exception) -> ImageError:
    """Any error that reading one file ended with, as one of that file.

    Errors that nobody foresaw keep the name of their type, and are not remembered: the file may be sound.
    """
    if isinstance(error, ImageError):
        return error
    if isinstance(error, MemoryError):
        return ImageError(path, "not enough memory to decode it", False)
    return ImageError(path, named(error), False)


def named(error: Exception) -> str:
    """The text of an error after the name of its type, by which a bug is found."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _examined(jobs: Sequence[_Job], max_pixels: int) -> Generator[tuple[_Job, FileCheck], None, None]:
    """Each job with its finding, in the order in which they are done: large pictures last."""
    large: list[_Job] = []
    for job, finding in _side_by_side(jobs, threads=_num_threads(), max_pixels=min(LARGE, max_pixels)):
        if _is_conclusive(finding, max_pixels):
            yield job, finding
        else:
            large.append(job)
    yield from _side_by_side(large, threads=2, max_pixels=max_pixels)


def _side_by_side(jobs: Sequence[_Job], *, threads: int, max_pixels: int) -> Iterator[tuple[_Job, FileCheck]]:
    Image.init()  # here, for threads would do it all at once
    with ThreadPoolExecutor(threads) as pool:
        try:
            running = {pool.submit(_examine, job.folder / job.name, max_pixels): job for job in jobs}
            for future in as_completed(running):
                yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _num_threads() -> int:
    """Of this process's share of the machine; Pillow's decoders let one another run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, cores)


def _examine(path: Path, max_pixels: int) -> FileCheck:
    try:
        return FileCheck(decoding.probe(path, max_pixels=max_pixels))
    except Exception as error:
        wrong = what_is_wrong(path, error)
        return FileCheck(None, wrong.reason, wrong.permanent)


def _is_conclusive(finding: FileCheck, max_pixels: int) -> bool:
    """Whether a file need not be opened again: all of it was decoded, or it never will be."""
    facts = finding.facts
    return facts is None or facts.decoded or facts.width * facts.height > max_pixels


def _cached(folder: Path, candidates: Sequence[Candidate], max_pixels: int) -> FileChecks:
    """What can be said without opening anything."""
    remembered = _read_cache(folder)
    known: FileChecks = {}
    for candidate in candidates:
        if candidate.reason:
            known[candidate.name] = FileCheck(None, candidate.reason, False)
            continue
        finding = _as_file_check(candidate, remembered.get(str(candidate.name)))
        if finding is not None and _is_conclusive(finding, max_pixels):
            known[candidate.name] = finding
    return known


def _as_file_check(candidate: Candidate, row: object) -> FileCheck | None:
    """What a row of the file says, if it is about the candidate as it is now."""
    match row:
        case [candidate.size, candidate.modified_ns, str(reason)]:
            return FileCheck(None, reason)
        case [candidate.size, candidate.modified_ns, int(width), int(height), bool(animated), bool(decoded)]:
            return FileCheck(ImageInfo(width, height, animated, decoded))
        case _:
            return None


def _read_cache(folder: Path) -> dict[str, object]:
    with suppress(OSError, ValueError, TypeError, LookupError, RuntimeError):  # missing, damaged, of another make
        kept = json.loads(_cache_file(folder).read_text(encoding="utf-8"))
        if [kept["version"], kept["folder"]] == [VERSION, str(folder.absolute())]:
            return dict(kept["files"])
    return {}


def _store_cache(folder: Path, candidates: Sequence[Candidate], found: FileChecks) -> None:
    """Keep what will still hold next time; where nothing can be written, the next start takes longer."""
    rows = {
        str(one.name): [one.size, one.modified_ns, *(found[one.name].facts or [found[one.name].reason])]
        for one in candidates
        if one.name in found and found[one.name].permanent
    }
    with suppress(OSError, RuntimeError):
        path = _cache_file(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"version": VERSION, "folder": str(folder.absolute()), "files": rows}))


def _cache_file(folder: Path) -> Path:
    """Where a folder's findings are kept; RuntimeError where this user has no home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = given if given.is_absolute() else Path.home() / ".cache"  # as the XDG specification has it
    return cache / "cyclestyle" / f"{hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]}.json"
