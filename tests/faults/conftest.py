"""Runs on the pictures of +experiment=smoke: forked, relaunched, under torchrun; and what an undisturbed one makes."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cyclestyle.data.scenes.drawing import draw
from tests.faults.commands import Command, Server, Start

# 40 steps, in most of which the learning rate falls, told to all loggers. Saves and logs come at different steps.
RUN = (
    "trainer.steps=40", "trainer.batch_size=2", "pool.size=3", "ema.decay=0.9", "schedule.constant_epochs=2",
    "schedule.decay_epochs=8", "trainer.save_every=3", "trainer.log_every=5", "trainer.sample_every=20",
)  # fmt: skip


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of +experiment=smoke, drawn once."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    draw(root, train=8, test=2, size=32)
    return root


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


Starts = Callable[..., Start]


@pytest.fixture(scope="session")
def session_starts(server: Server, scenes: Path) -> Starts:
    def start(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Start:
        line = ["+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu", *arguments]
        output = folder / f"said {len(list(folder.glob('said *')))}"
        output.touch()
        return server.start(folder, line, output=output, environment=environment)

    return start


@pytest.fixture
def start(session_starts: Starts, tmp_path: Path) -> Iterator[Starts]:
    """Start the smoke experiment in a process of its own, in the test's folder."""
    started: list[Start] = []

    def one(*arguments: str, **about: object) -> Start:
        started.append(session_starts(tmp_path, *arguments, **about))
        return started[-1]

    yield one
    for process in started:
        process.kill()


@pytest.fixture
def start_two(start: Starts) -> Callable[..., list[Start]]:
    """Start two processes of one run, as torchrun would, and nobody to watch over them."""

    def two(*arguments: str) -> list[Start]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
        return [start(*arguments, environment=one) for one in ranks]

    return two


@pytest.fixture
def command(scenes: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start the smoke experiment by trainer.devices=2 or, with arguments for it, by torchrun."""
    started: list[Command] = []
    run = tmp_path / "runs" / "smoke"

    def begin(*arguments: str, torchrun: tuple[str, ...] | None = None) -> Command:
        train = ["cyclestyle.train", "+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu"]
        first = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", *(torchrun or ()), "-m"]
        line = [*train, f"run_dir={run}", *arguments]
        line = [*first, *line] if torchrun is not None else [*line, "trainer.devices=2"]
        started.append(Command(line, folder=tmp_path, run=run, output=tmp_path / f"said {len(started)}"))
        return started[-1]

    yield begin
    for one in started:
        one.end()


@pytest.fixture(scope="session")
def undisturbed(session_starts: Starts, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that nothing happened to, one for each list of arguments."""
    made: dict[tuple[str, ...], Path] = {}

    def folder(*arguments: str) -> Path:
        if arguments not in made:
            place = tmp_path_factory.mktemp("undisturbed")
            process = session_starts(place, *arguments)
            assert process.wait() == 0, process.said()
            made[arguments] = place / "runs" / "smoke"
        return made[arguments]

    return folder
