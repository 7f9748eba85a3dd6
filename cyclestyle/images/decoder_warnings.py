"""Collection of the warnings of image libraries, to report them in a note instead of on the terminal."""

import contextlib
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

LONGEST = 120  # characters of a warning's text in a note

_local = threading.local()  # `lines`: list that receives the warnings of this thread
_lock = threading.Lock()
_active = 0  # number of threads that collect warnings
_former: Any = None  # what the first of these threads replaced


@contextlib.contextmanager
def collected(*, stderr: bool) -> Iterator[list[str]]:
    """Context manager: collect the Python warnings of this thread instead of printing them; yield the list of texts.

    Args:
        stderr: whether to collect also lines that C libraries, such as libtiff, write to file descriptor 2. All threads
            of a process share this descriptor, so use this only in processes that read one image at a time.
    """
    lines: list[str] = []
    _start()
    _local.lines = lines
    try:
        with _collected_stderr(lines) if stderr else contextlib.nullcontext():
            yield lines
    finally:
        _local.lines = None
        _stop()


def note(lines: Sequence[str]) -> tuple[str, ...]:
    """Summarize warnings in one note: the number of warnings, and the text of the first one.

    Return an empty tuple if there are no warnings.
    """
    if not lines:
        return ()
    first = " ".join(lines[0].split())
    first = first if len(first) <= LONGEST else f"{first[:LONGEST]}..."
    return (f"{len(lines)} warning{'s' if len(lines) > 1 else ''} of the decoder: {first}",)


def _start() -> None:
    """Redirect all Python warnings, including repeated ones, to `_receive`.

    The redirection ends when `_stop` has been called as often as this function.
    """
    global _active, _former
    with _lock:
        if _active == 0:
            _former = warnings.catch_warnings()
            _former.__enter__()
            warnings.simplefilter("always")
            warnings.showwarning = _receive
        _active += 1


def _stop() -> None:
    global _active
    with _lock:
        _active -= 1
        if _active == 0:
            _former.__exit__(None, None, None)


def _receive(message: Warning | str, *_: object, **__: object) -> None:
    """Append a warning to the list of the current thread; drop it if this thread does not collect warnings."""
    lines = getattr(_local, "lines", None)
    if lines is not None:
        lines.append(str(message))


@contextlib.contextmanager
def _collected_stderr(lines: list[str]) -> Iterator[None]:
    if sys.stderr is not None:
        sys.stderr.flush()
    former = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(former, 2)
            os.close(former)
            file.seek(0)
            lines += [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
