"""Fork `cyclestyle.train` from a process that has already imported it, so that a run starts within milliseconds.

The server only imports before it forks. Each child runs the same code as `python -m cyclestyle.train`, in its own
session. The server reads lines of JSON, answers with process ids, and reports the exit code of each child. When its
input ends, it kills the children that still run.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import select
import signal
import sys
from typing import Any

import cyclestyle


def main() -> None:
    for module in pkgutil.walk_packages(cyclestyle.__path__, "cyclestyle."):
        if module.name not in ("cyclestyle.__main__", "cyclestyle.distributed.quiet_torchrun"):
            importlib.import_module(module.name)
    import torch._dynamo  # optimizers import this module, which takes seconds
    import torch.utils.tensorboard  # noqa: F401

    if (job := serve()) is not None:
        become(job)
        from cyclestyle import train

        train.main()


def serve() -> dict[str, Any] | None:
    """Fork a child for each input line; return the job in the child, and None in the server when the input ends."""
    running: set[int] = set()
    unread = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.01)
        if readable:
            read = os.read(0, 1 << 16)
            if not read:
                break
            *lines, unread = (unread + read).split(b"\n")
            for line in lines:
                if (pid := os.fork()) == 0:
                    return dict(json.loads(line))
                running.add(pid)
                report({"started": pid})
        for pid in list(running):
            exited, code = os.waitpid(pid, os.WNOHANG)
            if exited:
                running.discard(pid)
                report({"ended": pid, "code": os.waitstatus_to_exitcode(code)})
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return None


def report(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def become(job: dict[str, Any]) -> None:
    """Set the session, folder, environment, arguments and output of this process as `job` requires."""
    os.setsid()
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    sys.argv = ["train", *job["arguments"]]
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for descriptor in (nothing, output):
        os.close(descriptor)


if __name__ == "__main__":
    main()
