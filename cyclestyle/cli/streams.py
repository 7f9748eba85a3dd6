"""Standard streams that never make a command fail: unencodable text is escaped, a closed stream discards text."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

STANDARD_FILES = (0, 1, 2)  # file descriptors of standard input, output and error


class TolerantStream:
    """Text stream that passes text on to another stream, and raises no error if that stream cannot take the text.

    Characters that the encoding of the stream lacks are written as escapes, such as `\\u6771`. After a failed
    write, such as to a pipe whose reader has ended, all further text is discarded.

    Args:
        stream: the stream that receives the text.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`; return its length, even if the text was discarded."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(self._escaped(text))
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._discard_rest()
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard_rest()

    def _escaped(self, text: str) -> str:
        encoding = self._stream.encoding or "ascii"
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def _discard_rest(self) -> None:
        """Connect the stream's file to the null device, so that the flush when Python exits raises no error."""
        with contextlib.suppress(OSError, ValueError):  # a stream without a file, or one that is closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Context manager: make standard output and standard error ignore write errors in the `with` block.

    A standard stream may have been closed before the program started, as by `>&-` in a shell. Its file descriptor is
    then connected to the null device. Otherwise the next file that the program opens would get this descriptor, and
    output that libraries print would end up in the file.
    """
    _reserve_standard_files()
    former = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _tolerant(stream)) for stream in former)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = former


def _tolerant(stream: TextIO | None) -> Any:
    return stream if stream is None or isinstance(stream, TolerantStream) else TolerantStream(stream)


def _reserve_standard_files() -> None:
    for number in STANDARD_FILES:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is `number`
