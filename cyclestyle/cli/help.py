"""Help texts, written from the YAML files of the configs."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

WIDTH = 112  # columns of the help text


def header(path: Path) -> list[str]:
    """The comment at the top of a YAML file, without the hash signs and Hydra's own first line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:end] if "@package" not in line]


class Entry(NamedTuple):
    """One key of a YAML file."""

    key: str  # dotted from the file's top
    value: str  # as written; empty where other keys follow below it
    comment: str


def yaml_entries(path: Path) -> Iterator[Entry]:
    """The keys of a YAML file that has one key a line, with the comment at the end of the line."""
    above: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)(\w+):(?: +([^#\s].*?))?(?: +# *(.*))?$", line)
        if not match or match[2] == "defaults":
            continue
        depth = len(match[1])
        above = [parent for parent in above if parent[0] < depth] + [(depth, match[2])]
        yield Entry(".".join(name for _, name in above), match[3] or "", match[4] or "")


def usage(directory: Path, command: str) -> str:
    """What to type: the comment at the top of the command's YAML, which has a sentence and examples."""
    return "\n".join([*header(directory / f"{command}.yaml"), "", "Everything else that can be set: --help"])


def help_text(directory: Path, command: str, groups: Mapping[str, str | None]) -> str:
    """Everything that can be typed, read from the YAML files below `directory`.

    `groups` maps each group that the command has to its default option, or None where there is no default.
    """
    root = [entry for entry in yaml_entries(directory / f"{command}.yaml") if entry.value]
    rows = [(entry.key, entry.value, entry.comment) for entry in root]
    for group, default in groups.items():
        if default:
            file = directory / group / f"{default}.yaml"
            found = [e for e in yaml_entries(file) if e.value and e.key.rpartition(".")[2] != "_target_"]
            rows += [(f"{group}.{entry.key}", entry.value, entry.comment) for entry in found]

    options_of_groups = " [group=option ...]" if groups else ""
    text = [f"Usage: python -m cyclestyle.{command}{options_of_groups} [key=value ...]", ""]
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
        text += ["", "Experiments (experiment=demo); keys given beside one win over it:"]
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
    """The names that can be chosen in a group."""
    return sorted(file.stem for file in group.glob("*.yaml"))


def describe_option(group: Path, option: str, default: str | None = None) -> str:
    """An option's first comment line, and the keys that the group's default option has not."""
    first = header(group / f"{option}.yaml")[0]
    if default in (None, option):
        return first
    usual = {entry.key for entry in yaml_entries(group / f"{default}.yaml")}
    own = [entry.key for entry in yaml_entries(group / f"{option}.yaml") if entry.key not in usual]
    return first + (f" Keys: {', '.join(own)}." if own else "")


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows in columns; the last column is wrapped."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines: list[str] = []
    for *cells, last in rows:
        start = "  " + "".join(cell.ljust(width + 2) for cell, width in zip(cells, widths, strict=True))
        lines += textwrap.wrap(last, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [start]
    return lines
