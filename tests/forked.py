"""Functions run in a process of their own: as another user, or where they might hang."""

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

NOBODY = 65534


def in_a_child(function: Callable[[], Any], *, uid: int | None = None, seconds: int = 30) -> Any:
    """What `function` returns, or raises, in a copy of this process that is killed after some seconds.

    Args:
        uid: the user who it runs as, from then on.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run(function, writing, uid=uid, seconds=seconds)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
    result, error = pickle.loads(told)
    if error is not None:
        raise error
    return result


def _run(function: Callable[[], Any], writing: int, *, uid: int | None, seconds: int) -> None:
    """Of no return: what pytest would do at its end is the parent's to do."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        if uid is not None:
            os.setuid(uid)
        told: tuple[Any, Exception | None] = (function(), None)
    except Exception as error:
        told = (None, error)
    with os.fdopen(writing, "wb") as stream:
        stream.write(pickle.dumps(told))
    os._exit(0)
