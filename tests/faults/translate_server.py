"""Fork `cyclestyle.translate` from a process that has already imported it (see server.py); helpers for its tests."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.commands import ENVIRONMENT, REPOSITORY, Server, Start, until
from tests.faults.ports import free_port
from tests.faults.server import become, serve

HIDDEN = ".cyclestyle"


class Translations(Server):
    """Client of this module's server, which forks processes of the translate command."""

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
    """A folder with photos in `in`, and commands that translate these photos to `out`; `end` ends the commands."""

    def __init__(self, server: Translations, folder: Path, model: Path) -> None:
        self.server, self.folder, self.model = server, folder, model
        self.photos, self.output = folder / "in", folder / "out"
        self._processes: list[Start] = []

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> Start:
        """Start the command; arguments override the default ones."""
        values = {  # one photo at a time: the other photos of a batch change the rounding
            "checkpoint": str(self.model), "input": str(self.photos), "output": str(self.output), "direction": "a2b",
            "device": "cpu", "precision": "fp32", "workers": "0", "sheet": "false", "batch_size": "1",
        }  # fmt: skip
        values |= dict(argument.split("=", 1) for argument in arguments)
        output = self.folder / f"output {len(self._processes)}"
        line = [f"{key}={value}" for key, value in values.items()]
        self._processes.append(self.server.start(self.folder, line, output=output, environment=environment))
        return self._processes[-1]

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run the command to its end, check that its exit code is `code`, and return its output."""
        process = self.start(*arguments)
        assert process.wait() == code, process.printed()
        assert "Traceback" not in process.printed()
        return process.printed()

    def start_ranks(self, count: int, *arguments: str) -> list[Start]:
        """Start several ranks of the command like torchrun, but without a launcher that watches them."""
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
        return [self.start(*arguments, environment=variables) for variables in ranks]

    def end(self) -> None:
        for process in self._processes:
            process.kill()

    def journal(self, output: Path | None = None) -> list[dict[str, Any]]:
        return lines_of((output or self.output) / HIDDEN / "journal.jsonl")

    def report(self, output: Path | None = None) -> list[dict[str, Any]]:
        return lines_of((output or self.output) / HIDDEN / "report.jsonl")

    def done_count(self) -> int:
        """Number of photos that are done according to the journal in the output folder."""
        return len(done_in(self.journal()))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Complete lines of a JSON lines file; a last line that is still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def done_in(journal: list[dict[str, Any]]) -> set[str]:
    """Names of the photos that are done according to a journal."""
    last = {line["name"]: line for line in journal}
    return {name for name, line in last.items() if "reason" not in line and None not in line["targets"].values()}


def files(folder: Path) -> dict[str, bytes]:
    """Files in an output folder, except in the program's hidden folder: name -> contents."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in paths}
    return {str(name): path.read_bytes() for name, path in names.items() if HIDDEN not in name.parts}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """File name -> (modification time, inode) in an output folder; both change when a file is rewritten."""
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).stat().st_ino) for name in files(folder)}


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


def children(pid: int) -> list[int]:
    """Process ids of the live children of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in _read(task).split()]


def is_alive(pid: int) -> bool:
    return "State:" in (status := _read(Path(f"/proc/{pid}/status"))) and "zombie" not in status


def wait_for_exit(processes: list[int]) -> None:
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
