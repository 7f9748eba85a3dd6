"""Relaunch of this program as several processes under torchrun, and the exit code of a relaunched run."""

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cyclestyle.errors import CommandError
from cyclestyle.signals import STOPPED, StopRequest, handled

FOLDER = "CYCLESTYLE_PROCESSES"  # environment variable: folder where processes write their ids and exit codes
CONFIG = "CYCLESTYLE_CONFIG"  # environment variable: digest of the config of the training that was relaunched
REASON = "reason"  # name of the file in `FOLDER` with the reason why a process was ended by a signal
ECHO_S = 0.5  # seconds after a Ctrl-C during which a second one is ignored: the key may be held down


def relaunch(
    processes: int,
    *,
    threads: int,
    stop: StopRequest,
    abandoned: Callable[[], object],
    killed: Callable[[str], object] = lambda reason: None,
    config: str = "",
) -> int:
    """Run this program again, as several processes under torchrun; return the exit code of the run.

    Args:
        processes: number of processes.
        threads: number of threads per process; ignored if the environment sets OMP_NUM_THREADS.
        stop: request to stop, by which the caller learns of signals that arrive during the run. If a stop is requested
            before the start, no process is started, and the result is 75. A later request is forwarded to the
            processes.
        abandoned: function called after a second Ctrl-C, once all processes are killed; `stop.abort` is called next.
        killed: function called with the reason if rank 0 began but wrote no exit code, for example because a signal
            killed it; rank 0 then did not record the end of the run.
        config: text of the config of this training, by which `is_relaunched` recognizes the training in the processes.

    Raises:
        CommandError: this program cannot be run again (see `program`), or its processes ended without training.
    """
    if stop():
        return STOPPED
    program_arguments = program(processes)
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory(prefix="cyclestyle-") as name:
        folder = Path(name)
        environment |= {FOLDER: name, CONFIG: _digest(config)}
        arguments = ["--standalone", f"--nproc_per_node={processes}", *program_arguments]
        # Without a new session, Ctrl-C on a terminal would reach the processes twice: directly and through torchrun.
        command = [sys.executable, "-m", "cyclestyle.distributed.quiet_torchrun", *arguments]
        child = subprocess.Popen(command, env=environment, start_new_session=True)
        received: list[int] = []
        interrupted, is_aborted = 0.0, False

        def forward(number: int, _: object) -> None:
            nonlocal interrupted, is_aborted
            if number == signal.SIGINT and interrupted and time.monotonic() - interrupted > ECHO_S:
                is_aborted = True
                _kill_all(child, folder)
            elif not received:
                child.terminate()  # torchrun forwards SIGTERM to its processes; SIGUSR1 would kill torchrun
            if number == signal.SIGINT:
                interrupted = interrupted or time.monotonic()
            received.append(number)
            stop.record(number)

        with handled(forward):
            if stop():  # requested while the processes were starting
                forward(signal.SIGTERM, None)
            code = child.wait()
        if not is_aborted:
            if (folder / "0.pid").exists() and not (folder / "0.code").exists():
                killed(_reason_of_end(folder))
            return _run_code(folder, code, processes, stop_requested=bool(received))
    abandoned()
    return stop.abort()


def program(processes: int) -> list[str]:
    """Return the arguments for torchrun that run this program again: `-m MODULE` or a file, and the arguments.

    Args:
        processes: number of processes, for the error text.

    Raises:
        CommandError: this program comes from no file, as in a notebook, or runs in a process of multiprocessing.
    """
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    remedy = "set trainer.devices=1, or train from a script or with python -m cyclestyle.train"
    if multiprocessing.parent_process() is not None:
        raise CommandError(f"a child process cannot start {processes} training processes: {remedy}")
    if spec is not None and spec.name != "__main__":  # python -m MODULE; the name __main__ is that of a folder
        return ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    if file is None or not Path(file).is_file():
        raise CommandError(
            f"a notebook, python -c or standard input cannot be started again as {processes} processes: {remedy}"
        )
    return [str(Path(file).absolute()), *sys.argv[1:]]


def is_relaunched(config: str | None = None) -> bool:
    """Return whether `relaunch` started this process; if `config` is given, whether it did so for this config."""
    return FOLDER in os.environ and (config is None or os.environ.get(CONFIG) == _digest(config))


def write_pid() -> None:
    """If `relaunch` started this process, write the process id to a file that the launching command reads."""
    if folder := os.environ.get(FOLDER):
        (Path(folder) / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))


def write_exit_code(code: int) -> None:
    """Write the exit code to a file that the launching command reads, since torchrun exits with 1 after any failure.

    Do nothing if `relaunch` did not start this process.
    """
    if folder := os.environ.get(FOLDER):
        (Path(folder) / f"{os.environ['RANK']}.code").write_text(str(code))


def write_reason(reason: str) -> None:
    """Save `reason`, the reason why a process was killed, in a file that the launching command reads.

    Do nothing if `relaunch` did not start this process.
    """
    if folder := os.environ.get(FOLDER):
        (Path(folder) / REASON).write_text(reason)


def will_be_restarted() -> bool:
    """Return whether torchrun will restart this process if this process exits with a code other than 0."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return restarts < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def close_streams() -> None:
    """Flush stdout and stderr; discard output that cannot be written, for example because the disk is full.

    Python flushes both streams again when it exits. If that failed, the command's exit code would be lost.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # it was closed before the program started
            continue
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


def _reason_of_end(folder: Path) -> str:
    """Return the reason that `write_reason` recorded in `folder`; a general reason if it recorded none."""
    file = folder / REASON
    return file.read_text() if file.exists() else "process 0 ended without an exit code"


def _run_code(folder: Path, torchrun_code: int, processes: int, *, stop_requested: bool) -> int:
    """Return the exit code of the process that failed earliest, or 0 if none failed.

    torchrun does not report this code, so each process writes its own code to a file in `folder`. If torchrun failed,
    but no process wrote a code other than 0, the result is 75 (stopped) if a stop was requested before any process
    began, and 1 otherwise.

    Raises:
        CommandError: torchrun succeeded, but not all processes wrote a code.
    """
    files = sorted(folder.glob("*.code"), key=lambda file: file.stat().st_mtime_ns)
    failures = [code for code in (int(file.read_text()) for file in files) if code]
    if failures:
        return failures[0]
    if not torchrun_code:
        if len(files) < processes:
            raise CommandError(
                f"{processes - len(files)} of {processes} processes ended without training: a program with "
                f"trainer.devices={processes} runs again in each process, and must start the same training there"
            )
        return 0
    begun = any(folder.glob("*.pid"))
    return STOPPED if stop_requested and not begun else 1


def _digest(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest()
