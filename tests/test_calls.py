"""Selection of keyword arguments by the signature of the function that receives them."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from cyclestyle import assembly
from cyclestyle.calls import accepted
from cyclestyle.cli import compose
from cyclestyle.run.folder import Done, RunFolder
from tests.factories import tiny_trainer

OFFERED = {"folder": 1, "start": 2, "config": 3}


class Chosen:
    def __init__(self, folder: int, other: int = 0, *, start: int) -> None: ...


class All:
    def __init__(self, folder: int, **rest: Any) -> None: ...


class Called:
    def __call__(self, config: int) -> None: ...


def positional(folder: int, /, *start: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (Chosen, {"folder", "start"}),
        (All, {"folder", "start", "config"}),
        (Called(), {"config"}),
        (positional, set()),
        (lambda: None, set()),
        (functools.partial(Chosen, start=7), {"folder", "start"}),
        (object, set()),
    ],
)
def test_function_gets_only_offered_arguments_in_its_signature(function: Any, names: set[str]) -> None:
    assert accepted(function, OFFERED) == {name: OFFERED[name] for name in names}


class Narrow:
    """Logger whose constructor takes few of the offered arguments."""

    def __init__(self, folder: Path, *, prefix: str, config: dict[str, Any]) -> None:
        self.file = folder / f"{prefix}.json"
        self.file.write_text(json.dumps(config))

    def on_step(self, step: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def pictures(self, step: int, a: object, b: object) -> None: ...
    def close(self) -> None: ...


class Wide(Narrow):
    """Logger whose constructor takes all of the offered arguments."""

    def __init__(self, **given: Any) -> None:
        super().__init__(given["folder"], prefix="wide", config={name: str(value) for name, value in given.items()})


def test_loggers_get_only_arguments_that_they_accept(tmp_path: Path) -> None:
    cfg = compose.compose(
        "train",
        ["experiment=smoke", "logger.tensorboard._target_=tests.test_calls.Narrow", "logger.tensorboard.prefix=narrow",
         "logger.metrics._target_=tests.test_calls.Wide", "logger.console=null"],
    )  # fmt: skip
    compose.check(cfg)
    trainer = tiny_trainer(steps=9)
    recipe = compose.to_plain(cfg)
    folder = RunFolder(tmp_path)
    with assembly.opened_loggers(cfg, trainer, folder, ("x", "y"), recipe=recipe, watch=lambda: None, done=Done()):
        assert json.loads((tmp_path / "narrow.json").read_text()) == compose.to_plain(cfg)
        given = json.loads((tmp_path / "wide.json").read_text())
    assert given.pop("networks").startswith("Networks(raw=Generators(")
    assert given == {
        "folder": str(tmp_path), "domains": "('x', 'y')", "start": "0", "total": "9", "log_from": "0",
        "keep_samples": "50",
        "config": str(compose.to_plain(cfg)),
    }  # fmt: skip
