"""What a run's folder tells of how a model came to be, in a few numbers that go along with its exported files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from cyclestyle.cli.keys import EXPORTED, with_present_names
from cyclestyle.errors import warn

_LOSS = "loss/"  # before the names of losses in metrics.jsonl
_MOST_LOSSES = 40
_MOST_BYTES = 2**20  # of a config that somebody could have written
_LONGEST = 80  # characters of a word


def run_folder(model: Path) -> Path | None:
    """The folder of the run whose checkpoint a model file belongs to, if it does."""
    checkpoints = model.parent.parent
    run = checkpoints.parent
    return run if checkpoints.name == "checkpoints" and (run / "config.yaml").is_file() else None


def training_summary(run: Path, *, step: int) -> dict[str, Any]:
    """Name, steps, recipe and the last logged losses of a run, as plain data; what its files do not tell is left out.

    Args:
        step: of the checkpoint; what was logged after it is not looked at.
    """
    config = with_present_names(_config(run / "config.yaml"))
    recipe = {key: value for key in EXPORTED if (value := _plain(_at(config, key))) is not None}
    if isinstance(target := _at(config, "adversarial._target_"), str):
        recipe["adversarial"] = target.rpartition(".")[2][:_LONGEST]  # a word for people, which nobody imports
    name = _plain(config.get("name"))
    return {
        "name": run.absolute().name if name is None else name,
        "steps": step,
        "recipe": recipe,
        "losses": _losses(run / "metrics.jsonl", step),
    }


def _config(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as stream:
            found = yaml.safe_load(stream.read(_MOST_BYTES))
        if isinstance(found, Mapping):
            return found
    except (OSError, UnicodeError, ValueError, RecursionError, yaml.YAMLError):
        pass
    warn(f"{path} cannot be read: the exported files will not say how the model was trained")
    return {}


def _at(config: Mapping[str, Any], key: str) -> object:
    """The value of a dotted key; None where there is none."""
    found: object = config
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _plain(value: object) -> str | float | bool | None:
    """A word or a number that JSON can hold."""
    if isinstance(value, str):
        return value[:_LONGEST]
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def _losses(path: Path, step: int) -> dict[str, float]:
    """The losses of the last line up to a step."""
    last: dict[str, float] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for text in stream:
                line = _line(text)
                if _LOSS in text and 0 <= line.get("step", -1) <= step:
                    last = line
    except OSError:
        return {}
    losses = {key.removeprefix(_LOSS): value for key, value in last.items() if key.startswith(_LOSS)}
    return dict(list(losses.items())[:_MOST_LOSSES])


def _line(text: str) -> dict[str, float]:
    """The numbers of a line; none for the half line that a killed process left."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        key[:_LONGEST]: value
        for key, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**63
    }
