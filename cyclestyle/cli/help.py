"""Help texts of the commands, generated from the YAML files in the folder `configs`."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

WIDTH = 112  # columns of the help text


def header(path: Path) -> list[str]:
    """Comment lines at the top of a YAML file, without their hash signs and without Hydra's `@package` line."""
    lines = lines_of(path)
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:end] if "@package" not in line]


def lines_of(path: Path) -> list[str]:
    """Lines of a text file; an empty list if the file cannot be read. Invalid UTF-8 is replaced.

    Errors are ignored, so that `--help` works even if a config file of the user is unusable.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


class Entry(NamedTuple):
    """One key of a YAML file, with its default value and its comment."""

    key: str  # dotted path from the root of the file
    value: str  # text in the file; empty for a node with keys below it
    comment: str
    section: str = ""  # heading above the key in the file, such as `quality`


def yaml_entries(path: Path) -> Iterator[Entry]:
    """Yield the keys of a YAML file that has one key per line, each with the comment at the end of its line.

    A comment line of one word and a colon, such as `# quality:`, is the heading of the keys below it.
    """
    above: list[tuple[int, str]] = []
    section = ""
    for line in lines_of(path):
        if heading := re.fullmatch(r"# (\w+):", line):
            section = heading[1]
        match = re.match(r"( *)(\w+):(?: +([^#\s].*?))?(?: +# *(.*))?$", line)
        if not match or match[2] == "defaults":
            continue
        depth = len(match[1])
        above = [parent for parent in above if parent[0] < depth] + [(depth, match[2])]
        yield Entry(".".join(name for _, name in above), match[3] or "", match[4] or "", section)


def usage(directory: Path, command: str) -> str:
    """Short usage text: header of the command's YAML file in `directory` (a sentence and examples), hint to --help."""
    return "\n".join([*header(directory / f"{command}.yaml"), "", "Everything else that can be set: --help"])


def help_text(directory: Path, command: str, groups: Mapping[str, str | None], *, folders: Sequence[Path] = ()) -> str:
    """Full help text for `--help`: the command's keys, groups, experiments and flags, from YAML files in `directory`.

    Args:
        groups: the command's config groups and their default options; None for a group without a default.
        folders: all folders in which options are searched; of two options with the same name, the first folder's
            counts. Options from folders other than `directory` are listed with their folder.
    """
    files = {group: option_files(folders or [directory], group) for group in groups}
    root = [entry for entry in yaml_entries(directory / f"{command}.yaml") if entry.value]
    rows = list(root)
    for group, default in groups.items():
        if default:
            entries = [e for e in yaml_entries(files[group][default]) if e.value and e.key != "_target_"]
            rows += [entry._replace(key=f"{group}.{entry.key}") for entry in entries]

    group_usage = " [group=option ...]" if groups else ""
    text = [f"Usage: python -m cyclestyle.{command}{group_usage} [key=value ...]", ""]
    text += [*header(directory / f"{command}.yaml"), ""]
    text += ["Keys, their defaults and what they mean (??? must be given):", *key_table(rows)]
    if groups:
        text += ["", "Groups and their options (the first is the default); an option may have keys of its own:"]
        text += table(
            (f"{group}={name}", describe_option(files[group], name, default) + origin(files[group][name], directory))
            for group, default in groups.items()
            for name in sorted(files[group], key=lambda name: (name != default, name))
            if group != "experiment"
        )
    if experiments := files.get("experiment"):
        text += ["", "Experiments (experiment=demo, or experiment=path/to/mine.yaml); other keys override them:"]
        text += table(
            (name, describe_option(experiments, name) + origin(experiments[name], directory)) for name in experiments
        )
    text += ["", "Flags:", *table(FLAG_ROWS if "run_dir" in [entry.key for entry in rows] else FLAG_ROWS[:-1])]
    return "\n".join(text)


def key_table(entries: Iterable[Entry]) -> list[str]:
    """Lines of a table of keys, with a heading above each section or config node."""
    entries = list(entries)
    rows = table((entry.key, entry.value, entry.comment) for entry in entries)
    starts = [number for number, row in enumerate(rows) if not row.startswith("   ")]  # the other lines continue a row
    lines, former = [], ""
    for entry, start, end in zip(entries, starts, [*starts[1:], len(rows)], strict=True):
        node = entry.key.partition(".")[0] if "." in entry.key else ""
        heading = entry.section or node
        if heading != former:
            lines += [f" {heading}:"] if heading else [""]
        former = heading
        lines += rows[start:end]
    return lines


FLAG_ROWS = (
    ("--help, -h", "this text"),
    ("--version", "print the version of the package"),
    ("--info", "print versions, devices and the folders of config files"),
    ("--cfg job", "print the config that the other arguments make, and stop; experiment=FILE reads it again"),
    (
        "--config-dir, -cd DIR",
        "folder with further experiments and options, such as DIR/experiment/mine.yaml and DIR/data/mine.yaml; "
        "the folder `configs` in the working directory needs no flag",
    ),
    ("--shell-completion bash", 'script for completion: eval "$(cyclestyle-train --shell-completion bash)"; or zsh'),
    ("--multirun, -m", "train once for each value of key=1,2,3, one after the other, in run_dir/key=1, run_dir/key=2"),
)


def option_files(folders: Sequence[Path], group: str) -> dict[str, Path]:
    """Map the names of a group's options to their files; for equal names, the file in the first folder is taken."""
    files = [file for folder in reversed(folders) for file in (folder / group).glob("*.yaml") if file.is_file()]
    return dict(sorted((file.stem, file) for file in files))


def origin(file: Path, directory: Path) -> str:
    """Return the folder of an option's file, for `--help`; "" for files in `directory`."""
    folder = file.parent.parent
    return "" if folder.resolve() == directory.resolve() else f" (from {folder})"


def describe_option(files: Mapping[str, Path], option: str, default: str | None = None) -> str:
    """Describe an option of a config group: its first comment line, and its keys that the default option lacks.

    Args:
        files: option of the group -> its YAML file.
        option: option to describe.
        default: default option of the group; None for a group without a default, which omits the keys.
    """
    first = next(iter(header(files[option])), "no description")
    if default in (None, option):
        return first
    common = {entry.key for entry in yaml_entries(files[default])}
    extra = [entry.key for entry in yaml_entries(files[option]) if entry.key not in common]
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
