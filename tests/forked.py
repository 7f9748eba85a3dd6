"""Run a function in a child process with a time limit, optionally as another user."""

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

NOBODY = 65534


def in_a_child(function: Callable[[], Any], *, uid: int | None = None, seconds: int = 30) -> Any:
    """Call a function in a fork of this process; return its result or raise its error.

    Args:
        uid: user id of the child process; None keeps the present one.
        seconds: time limit, after which the child is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run(function, writing, uid=uid, seconds=seconds)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        message = stream.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
    result, error = pickle.loads(message)
    if error is not None:
        raise error
    return result


def _run(function: Callable[[], Any], writing: int, *, uid: int | None, seconds: int) -> None:
    """Call the function, write its outcome to descriptor `writing`, exit at once; the parent does pytest's clean-up."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        if uid is not None:
            os.setuid(uid)
        outcome: tuple[Any, Exception | None] = (function(), None)
    except Exception as error:
        outcome = (None, error)
    with os.fdopen(writing, "wb") as stream:
        stream.write(pickle.dumps(outcome))
    os._exit(0)
