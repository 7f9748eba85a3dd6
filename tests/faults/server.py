"""Starts `cyclestyle.train` again and again out of one process that has imported it, so that a start takes no seconds.

It has done nothing but import when it forks, and what it forks is, from there on, the command that
`python -m cyclestyle.train` is, in a session of its own. It reads lines of JSON, answers with process ids, and tells
of every process that has ended. When its input ends it ends what is left.
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
    import torch._dynamo  # optimizers import it, in seconds
    import torch.utils.tensorboard  # noqa: F401

    if (job := serve()) is not None:
        become(job)
        from cyclestyle import train

        train.main()


def serve() -> dict[str, Any] | None:
    """Fork for every line; returns in the new processes, with their job, and in this one at the end."""
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
                tell({"started": pid})
        for pid in list(running):
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.discard(pid)
                tell({"ended": pid, "code": os.waitstatus_to_exitcode(code)})
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return None


def tell(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def become(job: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    sys.argv = ["train", *job["arguments"]]
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(ours, theirs)
    for descriptor in (nothing, output):
        os.close(descriptor)


if __name__ == "__main__":
    main()
