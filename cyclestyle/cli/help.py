"""Help texts of the commands, generated from the YAML files in the folder `configs`."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

WIDTH = 112  # columns of the help text


def header(path: Path) -> list[str]:
    """Comment lines at the top of a YAML file, without their hash signs and without Hydra's `@package` line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:end] if "@package" not in line]


class Entry(NamedTuple):
    """One key of a YAML file, with its default value and its comment."""

    key: str  # dotted path from the root of the file
    value: str  # text in the file; empty for a node with keys below it
    comment: str


def yaml_entries(path: Path) -> Iterator[Entry]:
    """Yield the keys of a YAML file that has one key per line, each with the comment at the end of its line."""
    above: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)(\w+):(?: +([^#\s].*?))?(?: +# *(.*))?$", line)
        if not match or match[2] == "defaults":
            continue
        depth = len(match[1])
        above = [parent for parent in above if parent[0] < depth] + [(depth, match[2])]
        yield Entry(".".join(name for _, name in above), match[3] or "", match[4] or "")


def usage(directory: Path, command: str) -> str:
    """Short usage text: header of the command's YAML file in `directory` (a sentence and examples), hint to --help."""
    return "\n".join([*header(directory / f"{command}.yaml"), "", "Everything else that can be set: --help"])


def help_text(directory: Path, command: str, groups: Mapping[str, str | None]) -> str:
    """Full help text for `--help`: the command's keys, groups, experiments and flags, from YAML files in `directory`.

    Args:
        groups: the command's config groups and their default options; None for a group without a default.
    """
    root = [entry for entry in yaml_entries(directory / f"{command}.yaml") if entry.value]
    rows = [(entry.key, entry.value, entry.comment) for entry in root]
    for group, default in groups.items():
        if default:
            file = directory / group / f"{default}.yaml"
            entries = [e for e in yaml_entries(file) if e.value and e.key.rpartition(".")[2] != "_target_"]
            rows += [(f"{group}.{entry.key}", entry.value, entry.comment) for entry in entries]

    group_usage = " [group=option ...]" if groups else ""
    text = [f"Usage: python -m cyclestyle.{command}{group_usage} [key=value ...]", ""]
    text += [*header(directory / f"{command}.yaml"), ""]
    text += ["Keys, their defaults and what they mean (??? must be given):", *table(rows)]
    if groups:
        text += ["", "Groups and their options (the first is the default); an option may have keys of its own:"]
        text += table(
            (f"{group}={option}", describe_option(directory / group, option, default))
            for group, default in groups.items()
            for option in sorted(options(directory / group), key=lambda name: (name != default, name))
            if group != "experiment"
        )
    if "experiment" in groups:
        text += ["", "Experiments (experiment=demo); other keys on the command line override them:"]
        text += table(
            (name, describe_option(directory / "experiment", name)) for name in options(directory / "experiment")
        )
    text += ["", "Flags:", *table(FLAG_ROWS if "run_dir" in [key for key, _, _ in rows] else FLAG_ROWS[:-1])]
    return "\n".join(text)


FLAG_ROWS = (
    ("--help, -h", "this text"),
    ("--cfg job", "print the config that the other arguments make, and stop"),
    ("--multirun, -m", "train once for each value of key=1,2,3, one after the other, in run_dir/0, run_dir/1, ..."),
)


def options(group: Path) -> list[str]:
    """Sorted names of the options in the folder `group`: one YAML file per option."""
    return sorted(file.stem for file in group.glob("*.yaml"))


def describe_option(group: Path, option: str, default: str | None = None) -> str:
    """Describe an option of a config group: its first comment line, and its keys that the default option lacks."""
    first = header(group / f"{option}.yaml")[0]
    if default in (None, option):
        return first
    common = {entry.key for entry in yaml_entries(group / f"{default}.yaml")}
    extra = [entry.key for entry in yaml_entries(group / f"{option}.yaml") if entry.key not in common]
    return first + (f" Keys: {', '.join(extra)}." if extra else "")


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines of a text table with aligned columns; long texts in the last column are wrapped."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines: list[str] = []
    for *cells, last in rows:
        start = "  " + "".join(cell.ljust(width + 2) for cell, width in zip(cells, widths, strict=True))
        lines += textwrap.wrap(last, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [start]
    return lines
