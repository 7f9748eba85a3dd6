"""Fixtures of all tests: one thread per process, no internet access, a separate cache, pretrained networks."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # inherited by processes that tests start; the networks are tiny

import pytest
import torch
from torch import nn

from cyclestyle.filesystem.cache import cache_folder

torch.set_num_threads(1)
USERS_CACHE = cache_folder()  # before the tests set a cache of their own


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reject connections to other machines, so that a test that needs a connection always fails."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):  # type: ignore[index]
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the cache in the temporary folder of the tests."""
    monkeypatch.delenv("CYCLESTYLE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Compute networks, images and losses in float64, so that mathematically equal values agree to many digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def pretrained(_own_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], nn.Module]:
    """Function that loads a pretrained network with its published weights, or skips the test if they are missing.

    The test and the processes that it starts use a new cache, which contains the weights of the user's cache.
    """
    from cyclestyle.model_files import weights

    cache = tmp_path / "cache_with_weights"
    cache.mkdir()
    if (USERS_CACHE / "weights").is_dir():
        (cache / "weights").symlink_to(USERS_CACHE / "weights")
    monkeypatch.setenv("CYCLESTYLE_CACHE", str(cache))

    def load(name: str) -> nn.Module:
        network = weights.load(name, missing="skip")
        if network is None:
            pytest.skip(f"no weights of {name}: python -m cyclestyle.download features={name}")
        return network

    return load
