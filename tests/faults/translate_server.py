"""Starts `cyclestyle.translate` again and again out of one process that has imported it, as server.py does training.

What tests of it have in common is here as well: small sets, and what a command has left in its output.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.commands import ENVIRONMENT, REPOSITORY, Server, Start, until
from tests.faults.server import become, serve

HIDDEN = ".cyclestyle"


class Translations(Server):
    """Forks starts of the command, each in a folder of its own choice."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.translate_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            cwd=REPOSITORY,
        )
        self._codes: dict[int, int | None] = {}
        self._unread = b""


class Place:
    """A folder with a model, photos in `in`, and commands that translate them to `out`; they end with the test."""

    def __init__(self, server: Translations, folder: Path, model: Path) -> None:
        self.server, self.folder, self.model = server, folder, model
        self.photos, self.output = folder / "in", folder / "out"
        self._started: list[Start] = []

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> Start:
        """Start the command; later arguments win over the usual ones."""
        given = {  # one photo at a time: what else is in a batch changes the rounding
            "checkpoint": str(self.model), "input": str(self.photos), "output": str(self.output), "direction": "a2b",
            "device": "cpu", "precision": "fp32", "workers": "0", "sheet": "false", "batch_size": "1",
        }  # fmt: skip
        given |= dict(argument.split("=", 1) for argument in arguments)
        said = self.folder / f"said {len(self._started)}"
        line = [f"{key}={value}" for key, value in given.items()]
        self._started.append(self.server.start(self.folder, line, output=said, environment=environment))
        return self._started[-1]

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run the command to its end; returns what it said."""
        process = self.start(*arguments)
        assert process.wait() == code, process.said()
        assert "Traceback" not in process.said()
        return process.said()

    def together(self, count: int, *arguments: str) -> list[Start]:
        """Start the command as several processes, as torchrun would, and nobody to watch over them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
        return [self.start(*arguments, environment=one) for one in ranks]

    def end(self) -> None:
        for process in self._started:
            process.kill()

    def journal(self, output: Path | None = None) -> list[dict[str, Any]]:
        return lines_of((output or self.output) / HIDDEN / "journal.jsonl")

    def report(self, output: Path | None = None) -> list[dict[str, Any]]:
        return lines_of((output or self.output) / HIDDEN / "report.jsonl")

    def noted(self) -> int:
        """Pictures of which the journal says that they are done."""
        return len(done_in(self.journal()))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, which may be growing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def done_in(journal: list[dict[str, Any]]) -> set[str]:
    """The names of what is there according to a journal."""
    last = {line["name"]: line for line in journal}
    return {name for name, line in last.items() if "reason" not in line and None not in line["targets"].values()}


def files(folder: Path) -> dict[str, bytes]:
    """What is in the files of an output, without what is noted about them."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in found}
    return {str(name): path.read_bytes() for name, path in names.items() if HIDDEN not in name.parts}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file of an output was written, and its inode: a file that is made anew has others."""
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).stat().st_ino) for name in files(folder)}


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are alive."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in _read(task).split()]


def is_alive(pid: int) -> bool:
    return "State:" in (told := _read(Path(f"/proc/{pid}/status"))) and "zombie" not in told


def wait_for_all(processes: list[int]) -> None:
    until(lambda: not any(map(is_alive, processes)), f"the end of {processes}", within=20)


def at_place(server: Translations, folder: Path, model: Path) -> Iterator[Place]:
    place = Place(server, folder, model)
    yield place
    place.end()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def main() -> None:
    for name in ("translate", "run.failure", "photoset.runner", "photoset.plan", "translation.pipeline",
                 "photoset.contact_sheet.cards", "photoset.ray_engine"):  # fmt: skip
        importlib.import_module(f"cyclestyle.{name}")
    if (job := serve()) is not None:
        become(job)
        from cyclestyle import translate

        translate.main()


if __name__ == "__main__":
    main()
