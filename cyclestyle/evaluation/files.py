"""Files of an evaluation: `evaluate.json` with all scores, and the files of the plane and of robustness.

The plane is a diagram: style distance on the y axis, structure distance on the x axis. Robustness is how far
translations move if the photos are degraded.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import cyclestyle
from cyclestyle.errors import warn
from cyclestyle.evaluation import plane, robustness
from cyclestyle.evaluation.comparison import Comparison
from cyclestyle.evaluation.models import run_folder
from cyclestyle.evaluation.report import DirectionReport, Report
from cyclestyle.filesystem.atomic import write_text
from cyclestyle.filesystem.listing import printable

NAME = "evaluate.json"
FORMAT = 1  # version of the layout of evaluate.json; increase it if keys change their meaning


def write_all(comparison: Comparison, *, output: Path | None) -> list[Path]:
    """Write the reports; return the paths of the files.

    With `output`, the report of a single model is written to `output`. Reports of several models are written to its
    subfolders `model_1`, `model_2` and so on, beside the file `comparison.json`.

    If `output` is None, the report of a single model is written to the folder `evaluation` in the model's run folder.
    Reports of several models are written to subfolders of `evaluation`, such as `step_00006000`. A model outside a run
    folder gets no file. If the run folder cannot be written, a warning names the reason.

    Raises:
        OSError: a file in `output` cannot be written.
    """
    is_single = len(comparison.reports) == 1
    if output is None:
        return [file for report in comparison.reports for file in _beside_model(report, is_single=is_single)]
    if is_single:
        return write(comparison.reports[0], output)
    folders = [output / f"model_{number}" for number in range(1, len(comparison.reports) + 1)]
    lines = [str(disagreement) for disagreement in comparison.disagreements]
    content = {"format": FORMAT, "models": comparison.labels, "disagreements": lines}
    return [
        *(file for each in zip(comparison.reports, folders, strict=True) for file in write(*each)),
        _write_json(content, output / "comparison.json"),
    ]


def write(report: Report, folder: Path) -> list[Path]:
    """Write all scores of a model to `evaluate.json` in `folder`, beside the files of the plane and of robustness.

    Returns:
        Paths of the files.
    """
    versions = {"cyclestyle": cyclestyle.__version__, "torch": torch.__version__}
    content = {"format": FORMAT, "versions": versions, **report._asdict()}
    del content["robustness"]  # in files of its own
    content["directions"] = [_direction(direction) for direction in report.directions]
    files = [_write_json(content, folder / NAME)]
    files += plane.write([plane.of_report(direction) for direction in report.directions], folder)
    return [*files, *(file for moved in report.robustness for file in robustness.write(moved, folder))]


def _beside_model(report: Report, *, is_single: bool) -> list[Path]:
    """Write a report to the run folder of its model; return the paths of the files.

    If the model has no run folder, or the run folder cannot be written, the list is empty.
    """
    run = run_folder(Path(report.checkpoint))
    if run is None:
        return []
    folder = run / "evaluation" / ("" if is_single else f"step_{report.step or 0:08}")
    try:
        return write(report, folder)
    except OSError as error:  # the run may belong to another user
        warn(f"{printable(folder)} cannot be written ({(error.strerror or '').lower()}): output= gives another folder")
        return []


def _direction(report: DirectionReport) -> dict[str, Any]:
    scores = [{key: _finite(value) for key, value in score._asdict().items()} for score in report.scores]
    return {**report._asdict(), "scores": scores, "curve": [_direction(point) for point in report.curve]}


def _finite(value: object) -> object:
    """Return the text `infinite` for an infinite number, which JSON lacks."""
    return "infinite" if isinstance(value, float) and math.isinf(value) else value


def _write_json(content: Mapping[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1, allow_nan=False, default=str) + "\n")
    return path
