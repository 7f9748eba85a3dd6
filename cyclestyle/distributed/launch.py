"""One command that runs as several processes: it starts itself again through torchrun and leaves with their code."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cyclestyle.signals import INTERRUPTED, STOP_SIGNALS, STOPPED

FOLDER = "CYCLESTYLE_PROCESSES"  # the environment's name for where the processes leave their ids and exit codes
ECHO_S = 0.5  # a terminal's Ctrl-C, held down, is one


def relaunch(processes: int, *, threads: int, stop: Callable[[], bool], abandoned: Callable[[], object]) -> int:
    """Run this very command in several processes; the exit code is the run's own.

    Args:
        threads: that each of them computes with, unless the environment has OMP_NUM_THREADS.
        stop: whether somebody asked for it before they were there to be told.
        abandoned: what to do after a second Ctrl-C has ended them all.
    """
    if stop():
        return STOPPED
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory(prefix="cyclestyle-") as name:
        folder = Path(name)
        environment[FOLDER] = name
        arguments = ["--standalone", f"--nproc_per_node={processes}", "-m", "cyclestyle.train", *sys.argv[1:]]
        # In a session of its own: Ctrl-C on a terminal would reach the processes directly and through torchrun, twice.
        command = [sys.executable, "-m", "cyclestyle.distributed.quiet_torchrun", *arguments]
        child = subprocess.Popen(command, env=environment, start_new_session=True)
        asked: list[int] = []
        interrupted, ended = 0.0, False

        def forward(number: int, _: object) -> None:
            nonlocal interrupted, ended
            if number == signal.SIGINT and interrupted and time.monotonic() - interrupted > ECHO_S:
                ended = True
                _end_all(child, folder)
            elif not asked:
                child.terminate()  # torchrun hands SIGTERM on, and would die of SIGUSR1
            if number == signal.SIGINT:
                interrupted = interrupted or time.monotonic()
            asked.append(number)

        before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
        try:
            if stop():  # while they were being started
                forward(signal.SIGTERM, None)
            code = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if not ended:
            return _own_code(folder, code, asked=bool(asked))
    abandoned()
    os._exit(INTERRUPTED)  # at once: whoever holds Ctrl-C down is not to see how Python takes it while it ends


def write_pid() -> None:
    """Leave this process's id for the command that relaunched itself as it."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))


def write_exit_code(code: int) -> None:
    """Leave a word for the command that relaunched itself as this process; torchrun turns every failure into 1."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / f"{os.environ['RANK']}.code").write_text(str(code))


def will_be_restarted() -> bool:
    """Whether torchrun would take it for a failure to make up for, if this process left with a code that is not 0."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return restarts < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def close_streams() -> None:
    """Leave with this program's exit code though nobody reads, or no disk takes, what it still has to say."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end_all(torchrun: "subprocess.Popen[bytes]", folder: Path) -> None:
    """At once: torchrun, which would start them again or wait for them, and then its processes."""
    torchrun.kill()
    for file in folder.glob("*.pid"):
        try:
            os.kill(int(file.read_text()), signal.SIGKILL)
        except (ProcessLookupError, ValueError):
            continue


def _own_code(folder: Path, torchrun: int, *, asked: bool) -> int:
    """What the first process that failed said of it, where torchrun knows only that one did.

    Processes that were asked to stop before they had begun say nothing.
    """
    said = sorted(folder.glob("*.code"), key=lambda file: file.stat().st_mtime_ns)
    failures = [code for code in (int(file.read_text()) for file in said) if code]
    if failures or not torchrun:
        return failures[0] if failures else 0
    begun = any(folder.glob("*.pid"))
    return STOPPED if asked and not begun else 1
