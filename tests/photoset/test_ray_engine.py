"""Tests of the Ray engine: its addresses and cores, and its limit on repeated calls."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cyclestyle.errors import CommandError
from cyclestyle.photoset import ray_engine
from cyclestyle.photoset.ray_engine import check_address, cores_of_each
from cyclestyle.photoset.runner import Settings
from cyclestyle.photoset.worker_tasks import Reading, Writing
from tests.translation.models import write_picture
from tests.translation.sets import planned

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(("actors", "cores", "share"), [(1, 2, 1), (2, 2, 0.66), (2, 16, 1), (1, 1, 0.5), (8, 2, 0.22)])
def test_ray_actors_together_reserve_fewer_cores_than_available(actors: int, cores: float, share: float) -> None:
    assert cores_of_each(actors, cores) == share
    assert share > 0
    assert actors * share < cores


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "127.0.0.1:port", "no.invalid:1"])
def test_ray_address_where_no_cluster_answers_is_refused_within_10_seconds(address: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # reserved, but nothing listens
        began = time.monotonic()
        with pytest.raises(CommandError, match="no Ray cluster answers at RAY_ADDRESS="):
            check_address(address.format(port=free.getsockname()[1]))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("address", ["local", "auto", "127.0.0.1:{port}"])
def test_ray_address_that_answers_or_has_no_port_is_accepted(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(address.format(port=server.getsockname()[1]))


class KillsActor:
    """Pipeline that kills its process at a photo of 7 rows, and returns other photos unchanged."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, pixels: Tensor, *, advance: Callable[[float], object] | None = None) -> Sequence[Tensor]:
        if pixels.shape[-2] == 7:
            with self.log.open("a") as stream:
                stream.write("killed\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return [pixels.clone()]

    def max_batch(self, height: int, width: int) -> int:
        return 1


@pytest.mark.slow  # Ray takes twenty seconds to start
def test_photo_that_kills_its_actor_is_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="engine=ray needs Ray")
    for number in range(3):
        write_picture(tmp_path / "in" / f"{number}.png", size=(8, 7 if number == 1 else 8))
    log = tmp_path / "log"
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ray") as name:  # short, as socket paths are limited
        monkeypatch.setenv("RAY_TMPDIR", name)
        plan = planned(tmp_path / "in", tmp_path / "out")
        settings = Settings(Reading(), Writing(plan.folder), "settings")
        outcome = ray_engine.run_plan(plan, lambda: KillsActor(log), settings, workers=2)  # type: ignore[arg-type, return-value]
    reasons = {row.source.name: row.reason for row in outcome.lines}
    assert reasons == {"0.png": "", "1.png": ray_engine.LOST, "2.png": ""}
    assert log.read_text().splitlines() == ["killed"] * (1 + ray_engine.RETRIES)
