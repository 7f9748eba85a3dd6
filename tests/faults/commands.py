"""Start the train command in processes that tests can signal, kill and wait for; no process outlives its test."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 120  # ample time for work of a few seconds on a busy machine
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def until(
    condition: Callable[[], Any], what: str, *, alive: "Start | Command | None" = None, within: float = DEADLINE_S
) -> Any:
    """Poll a condition until it is true; return its value.

    Args:
        what: description of the condition, for error texts.
        alive: process that must not exit before the condition is true.
        within: time limit in s.

    Raises:
        AssertionError: the time limit has passed, or the process has exited.
    """
    end = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {within} s for {what}" + (f":\n{alive.printed()}" if alive else "")
        if alive is not None and alive.poll() is not None and not condition():
            raise AssertionError(f"ended with {alive.poll()} before {what}:\n{alive.printed()}")
        time.sleep(0.005)
    return value


class Start:
    """A process of the train command, forked by `Server`."""

    def __init__(self, server: "Server", pid: int, output: Path) -> None:
        self._server, self.pid, self._output = server, pid, output

    def poll(self) -> int | None:
        return self._server.code(self.pid)

    def wait(self, within: float = DEADLINE_S) -> int:
        until(lambda: self.poll() is not None, "the end", within=within)
        return int(self.poll())  # type: ignore[arg-type]

    def printed(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process and its data workers with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


class Server:
    """Client of server.py, which forks processes of the command."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            cwd=REPOSITORY,
        )
        self._codes: dict[int, int | None] = {}
        self._unread = b""

    def start(self, folder: Path, arguments: Sequence[str], *, output: Path, environment: Any = None) -> Start:
        job = {"folder": str(folder), "arguments": list(arguments), "output": str(output)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**job, "environment": environment or {}}).encode() + b"\n")
        self._process.stdin.flush()
        before = set(self._codes)
        until(lambda: self._read() or set(self._codes) - before, "a fork")
        (pid,) = set(self._codes) - before
        return Start(self, pid, output)

    def code(self, pid: int) -> int | None:
        self._read()
        return self._codes[pid]

    def close(self) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        assert self._process.poll() is None
        while select.select([self._process.stdout], [], [], 0)[0]:
            *lines, self._unread = (self._unread + os.read(self._process.stdout.fileno(), 1 << 16)).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "started" in message:
                    self._codes.pop(message["started"], None)  # process ids are reused
                    self._codes[message["started"]] = None
                else:
                    self._codes[message["ended"]] = message["code"]


class Command:
    """A command in its own interpreter, such as torchrun, together with all its descendant processes.

    Descendants are found by the absolute path of the run folder, which is among their arguments.
    """

    def __init__(self, command: Sequence[str], *, folder: Path, run: Path, output: Path) -> None:
        self.run, self._output = run, output
        with output.open("a") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=folder,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, within: float = DEADLINE_S) -> int:
        until(lambda: self.poll() is not None, "the end", within=within)
        return int(self.poll())  # type: ignore[arg-type]

    def printed(self) -> str:
        return self._output.read_text()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def processes(self) -> dict[int, int | None]:
        """Process id -> rank of each live process; the rank is None for a process such as torchrun."""
        ranks: dict[int, int | None] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.run) not in (entry / "cmdline").read_text():
                    continue
                environment = dict(
                    line.split("=", 1) for line in (entry / "environ").read_text().split("\0") if "=" in line
                )
            except OSError:
                continue
            ranks[int(entry.name)] = int(environment["RANK"]) if "RANK" in environment else None
        return ranks

    def rank(self, rank: int) -> int:
        """Process id of the live process with this rank."""
        (pid,) = [pid for pid, present in self.processes().items() if present == rank]
        return pid

    def end(self) -> None:
        """Kill all processes of the command, including processes stopped by SIGSTOP."""
        for _ in range(100):
            processes = self.processes()
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not processes:
                break
            time.sleep(0.02)
        self._process.kill()
        self._process.wait()


def catches(pid: int, number: int) -> bool:
    """Return whether process `pid` has installed a handler for signal `number`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
