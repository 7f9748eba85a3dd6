"""Relaunch of the train command as several processes under torchrun, and the exit code of a relaunched run."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cyclestyle.signals import INTERRUPTED, STOP_SIGNALS, STOPPED

FOLDER = "CYCLESTYLE_PROCESSES"  # environment variable: folder where processes write their ids and exit codes
ECHO_S = 0.5  # seconds after a Ctrl-C during which a second one is ignored: the key may be held down


def relaunch(processes: int, *, threads: int, stop: Callable[[], bool], abandoned: Callable[[], object]) -> int:
    """Run the current command again, as several processes under torchrun; return the exit code of the run.

    Args:
        processes: number of processes.
        threads: number of threads per process; ignored if the environment sets OMP_NUM_THREADS.
        stop: function that returns whether a stop was requested; called before and after the processes are started.
        abandoned: function called after a second Ctrl-C, once all processes are killed; this process then exits.
    """
    if stop():
        return STOPPED
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory(prefix="cyclestyle-") as name:
        folder = Path(name)
        environment[FOLDER] = name
        arguments = ["--standalone", f"--nproc_per_node={processes}", "-m", "cyclestyle.train", *sys.argv[1:]]
        # Without a new session, Ctrl-C on a terminal would reach the processes twice: directly and through torchrun.
        command = [sys.executable, "-m", "cyclestyle.distributed.quiet_torchrun", *arguments]
        child = subprocess.Popen(command, env=environment, start_new_session=True)
        received: list[int] = []
        interrupted, killed = 0.0, False

        def forward(number: int, _: object) -> None:
            nonlocal interrupted, killed
            if number == signal.SIGINT and interrupted and time.monotonic() - interrupted > ECHO_S:
                killed = True
                _kill_all(child, folder)
            elif not received:
                child.terminate()  # torchrun forwards SIGTERM to its processes; SIGUSR1 would kill torchrun
            if number == signal.SIGINT:
                interrupted = interrupted or time.monotonic()
            received.append(number)

        handlers = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
        try:
            if stop():  # requested while the processes were starting
                forward(signal.SIGTERM, None)
            code = child.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if not killed:
            return _run_code(folder, code, stop_requested=bool(received))
    abandoned()
    os._exit(INTERRUPTED)  # skips Python's shutdown, where another Ctrl-C would print a traceback


def write_pid() -> None:
    """If `relaunch` started this process, write the process id to a file that the launching command reads."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))


def write_exit_code(code: int) -> None:
    """Write the exit code to a file that the launching command reads, since torchrun exits with 1 after any failure."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / f"{os.environ['RANK']}.code").write_text(str(code))


def will_be_restarted() -> bool:
    """Return whether torchrun will restart this process if this process exits with a code other than 0."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return restarts < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def close_streams() -> None:
    """Flush stdout and stderr; discard output that cannot be written, for example because the disk is full.

    Python flushes both streams again when it exits. If that failed, the command's exit code would be lost.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _kill_all(torchrun: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Kill torchrun, then the processes that torchrun started.

    torchrun is killed first, since it would restart the processes or wait for them.

    Args:
        folder: folder to which the processes wrote their ids.
    """
    torchrun.kill()
    for file in folder.glob("*.pid"):
        try:
            os.kill(int(file.read_text()), signal.SIGKILL)
        except (ProcessLookupError, ValueError):
            continue


def _run_code(folder: Path, torchrun_code: int, *, stop_requested: bool) -> int:
    """Return the exit code of the first process that failed, or 0 if none failed; torchrun does not report this code.

    If torchrun failed but no process wrote a code other than 0, return 75 if a stop was requested before any process
    began, else 1.
    """
    files = sorted(folder.glob("*.code"), key=lambda file: file.stat().st_mtime_ns)
    failures = [code for code in (int(file.read_text()) for file in files) if code]
    if failures or not torchrun_code:
        return failures[0] if failures else 0
    begun = any(folder.glob("*.pid"))
    return STOPPED if stop_requested and not begun else 1
