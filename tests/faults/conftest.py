"""Fixtures that start runs of +experiment=smoke (forked, relaunched or under torchrun), and one uninterrupted run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cyclestyle.data.scenes.drawing import draw
from tests.faults.commands import Command, Server, Start
from tests.faults.ports import free_port

# 40 steps with all loggers; the learning rate falls in most of them. Saves and logs are due at different steps.
RUN = (
    "trainer.steps=40", "trainer.batch_size=2", "pool.size=3", "ema.decay=0.9", "schedule.constant_epochs=2",
    "schedule.decay_epochs=8", "trainer.save_every=3", "trainer.log_every=5", "trainer.sample_every=20",
)  # fmt: skip
# Scores that need no pretrained network, at steps that are seldom those of a save.
SCORES = ("scores.every=4", "scores.names=[colours,content_ssim]", "checkpoint.best=colours")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the images of +experiment=smoke, generated once per session."""
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
        output = folder / f"output {len(list(folder.glob('output *')))}"
        output.touch()
        return server.start(folder, line, output=output, environment=environment)

    return start


@pytest.fixture
def start(session_starts: Starts, tmp_path: Path) -> Iterator[Starts]:
    """Function that starts the smoke experiment in its own process, in the test's temporary folder."""
    processes: list[Start] = []

    def start_one(*arguments: str, **options: object) -> Start:
        processes.append(session_starts(tmp_path, *arguments, **options))
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()


@pytest.fixture
def start_two(start: Starts) -> Callable[..., list[Start]]:
    """Function that starts two ranks of one run like torchrun, but without a launcher that watches them."""

    def start_both(*arguments: str) -> list[Start]:
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
        return [start(*arguments, environment=variables) for variables in ranks]

    return start_both


@pytest.fixture
def command(scenes: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Function that starts the smoke experiment with two ranks.

    The function sets trainer.devices=2 if its argument `torchrun` is None; otherwise it calls torchrun with these
    arguments.
    """
    commands: list[Command] = []
    run = tmp_path / "runs" / "smoke"

    def begin(*arguments: str, torchrun: tuple[str, ...] | None = None) -> Command:
        train = ["cyclestyle.train", "+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu"]
        first = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", *(torchrun or ()), "-m"]
        line = [*train, f"run_dir={run}", *arguments]
        line = [*first, *line] if torchrun is not None else [*line, "trainer.devices=2"]
        commands.append(Command(line, folder=tmp_path, run=run, output=tmp_path / f"output {len(commands)}"))
        return commands[-1]

    yield begin
    for job in commands:
        job.end()


@pytest.fixture(scope="session")
def uninterrupted(session_starts: Starts, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function that returns the folder of an uninterrupted run with given arguments; equal arguments share one run."""
    folders: dict[tuple[str, ...], Path] = {}

    def folder(*arguments: str) -> Path:
        if arguments not in folders:
            parent = tmp_path_factory.mktemp("uninterrupted")
            process = session_starts(parent, *arguments)
            assert process.wait() == 0, process.printed()
            folders[arguments] = parent / "runs" / "smoke"
        return folders[arguments]

    return folder
