"""Provenance of exported models: a short summary of the training, read from the run folder of a checkpoint."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from cyclestyle.cli.keys import EXPORTED
from cyclestyle.errors import warn

_LOSS = "loss/"  # prefix of losses in metrics.jsonl
_MAX_LOSSES = 40
_MAX_BYTES = 2**20  # maximum bytes that are read from an untrusted config
_MAX_LENGTH = 80  # maximum characters of a text


def run_folder(model: Path) -> Path | None:
    """Return the run folder that a model file belongs to; None if the file is not in a checkpoint of a run folder."""
    checkpoints = model.parent.parent
    run = checkpoints.parent
    return run if checkpoints.name == "checkpoints" and (run / "config.yaml").is_file() else None


def training_summary(run: Path, *, step: int) -> dict[str, Any]:
    """Return a summary of a training run: its name, number of steps, main config values and last logged losses.

    JSON can represent all values in the summary. Missing values are left out.

    Args:
        run: run folder.
        step: step of the exported checkpoint; log lines of later steps are ignored.
    """
    config = _config(run / "config.yaml")
    recipe = {key: value for key in EXPORTED if (value := _plain(_at(config, key))) is not None}
    if isinstance(target := _at(config, "adversarial._target_"), str):
        recipe["adversarial"] = target.rpartition(".")[2][:_MAX_LENGTH]  # for display only, never imported
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
            config = yaml.safe_load(stream.read(_MAX_BYTES))
        if isinstance(config, Mapping):
            return config
    except (OSError, UnicodeError, ValueError, RecursionError, yaml.YAMLError):
        pass
    warn(f"{path} cannot be read: the exported files will have no summary of the training")
    return {}


def _at(config: Mapping[str, Any], key: str) -> object:
    """Return the value of a dotted key, such as `adversarial._target_`; None if the config does not have this key."""
    value: object = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _plain(value: object) -> str | float | bool | None:
    """Return `value` if it is a text, a boolean or a number that JSON can represent, else None; long texts are cut."""
    if isinstance(value, str):
        return value[:_MAX_LENGTH]
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def _losses(path: Path, step: int) -> dict[str, float]:
    """Return the losses of the last logged step up to `step` that has losses; empty if there is none.

    A step may have several log lines: one from the training step, and one from each periodic task.
    """
    losses, last = dict[str, float](), -1.0
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for text in stream:
                line = _line(text)
                found = {key.removeprefix(_LOSS): value for key, value in line.items() if key.startswith(_LOSS)}
                if found and 0 <= line.get("step", -1) <= step:
                    losses = losses | found if line["step"] == last else found
                    last = line["step"]
    except OSError:
        return {}
    return dict(list(losses.items())[:_MAX_LOSSES])


def _line(text: str) -> dict[str, float]:
    """Return the finite numbers in a log line; empty for an incomplete line, which a killed process may leave."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        key[:_MAX_LENGTH]: value
        for key, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**63
    }
