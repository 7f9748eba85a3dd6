"""Ports for processes that meet each other, such as the ranks of a run."""

import random
import socket

_PORTS = range(20000, 32000)  # below the ports that Linux gives to outgoing connections, which would take them at once


def free_port() -> int:
    """Return a TCP port of this machine that no process uses, and that no outgoing connection can take."""
    chosen = random.SystemRandom()  # another seed in each test process
    while True:
        port = chosen.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
