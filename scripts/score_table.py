"""Print a Markdown table of several trainings per recipe, from their evaluate.json files: mean and range over seeds.

    python scripts/score_table.py paper=scores/paper_s0,scores/paper_s1 ema=scores/ema_s0,scores/ema_s1 > table.md

Each argument names a recipe and the folders into which `evaluate` wrote. There is one table per direction.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

Evaluation = Mapping[str, dict[str, dict[str, float]]]  # direction -> column -> row -> value


class Cell(NamedTuple):
    """Values of one score: those of the trainings of a recipe, one per seed, or a single value of real images."""

    values: tuple[float, ...]

    def __str__(self) -> str:
        mean = f"{statistics.fmean(self.values):.3g}"
        return mean if len(self.values) == 1 else f"{mean} ({min(self.values):.3g} to {max(self.values):.3g})"


def main() -> None:
    """Print the tables of the recipes that the command line names."""
    recipes = dict(read_recipe(argument) for argument in sys.argv[1:])
    if not recipes:
        sys.exit("give recipes such as paper=scores/paper_s0,scores/paper_s1")
    first = next(iter(recipes.values()))[0]
    for direction in first:
        print(f"### {direction}\n")
        print("\n".join(table(direction, recipes)), end="\n\n")


def read_recipe(argument: str) -> tuple[str, list[Evaluation]]:
    """Parse `NAME=FOLDER,FOLDER`, and read the evaluations in these folders; there is one folder for each seed."""
    name, _, folders = argument.partition("=")
    return name, [read_evaluation(Path(folder) / "evaluate.json") for folder in folders.split(",")]


def read_evaluation(path: Path) -> Evaluation:
    """Read the values in an evaluate.json: direction -> column of the table -> row, such as `floor` -> value."""
    directions: dict[str, dict[str, dict[str, float]]] = {}
    for report in json.loads(path.read_text())["directions"]:
        columns = directions.setdefault(report["direction"], {})
        for score in report["scores"]:
            network = f", {score['ruler']}, {score['size']} px" if score["ruler"] else ""
            columns.setdefault(f"{score['name']}{network}", {})[score["row"]] = score["value"]
    return directions


def table(direction: str, recipes: Mapping[str, Sequence[Evaluation]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: one row for each score, and one column for each recipe and baseline."""
    first = next(iter(recipes.values()))[0][direction]
    baselines = [row for row in ("floor", "untouched", "mapped") if any(row in values for values in first.values())]
    yield " | ".join(["| score", *baselines, *recipes]) + " |"
    yield "|" + "---|" * (1 + len(baselines) + len(recipes))
    for column, rows in first.items():
        real = [str(Cell((rows[row],))) if row in rows else "" for row in baselines]
        trained = [
            str(Cell(tuple(evaluation[direction][column]["translated"] for evaluation in evaluations)))
            for evaluations in recipes.values()
        ]
        yield " | ".join([f"| {column}", *real, *trained]) + " |"


if __name__ == "__main__":
    main()
