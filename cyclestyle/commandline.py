"""What users type and read: arguments taken apart, the nearest right word, help written from the YAML files."""

import difflib
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cyclestyle.errors import CommandError, CyclestyleError

# Values that are taken as typed, whatever characters they hold; in paths a leading ~ is expanded as well.
DATA_PATHS = frozenset({"data.root", "data.a", "data.b", "data.test_a", "data.test_b"})
PATHS = DATA_PATHS | {"checkpoint", "input", "output", "truth", "target", "init", "run_dir"}
LITERAL = PATHS | {"name", "direction", "data.domain_a", "data.domain_b"}

FLAGS = "--help, --cfg job, --multirun"
WIDTH = 112  # columns of the help text


class Argument(NamedTuple):
    """One `key=value` as typed, without the pluses before it that Hydra's users are used to."""

    key: str
    text: str


class Flags(NamedTuple):
    """The command line, flags and arguments apart."""

    help: bool
    show: bool  # --cfg job
    multirun: bool
    arguments: list[str]


def flags(argv: Iterable[str]) -> Flags:
    """Take the flags out of `argv`; CommandError for one that there is not."""
    words = iter(argv)
    wanted, rest = {"help": False, "show": False, "multirun": False}, []
    for word in words:
        if not word.startswith("-"):
            rest.append(word)
        elif word in ("--help", "-h"):
            wanted["help"] = True
        elif word in ("--multirun", "-m"):
            wanted["multirun"] = True
        elif word == "--cfg=job" or (word in ("--cfg", "-c") and next(words, "") == "job"):
            wanted["show"] = True
        else:
            raise CommandError(f"no flag {word}: there are {FLAGS}")
    return Flags(**wanted, arguments=rest)


def split(argument: str) -> Argument:
    """Take `key=value`, `+key=value` or `++key=value` apart; CommandError for anything else."""
    key, equals, text = argument.partition("=")
    if key.startswith("~"):
        raise CommandError(f"{argument}: keys are not deleted but set, such as logger.tensorboard=null")
    key = key.removeprefix("+").removeprefix("+").strip()
    if not equals or not key:
        raise CommandError(f"{argument}: expected key=value, such as name=mine or trainer.steps=2000")
    if not text.strip():
        raise CommandError(f"{key}= has no value: write one after the =, or leave {key} out")
    return Argument(key, text)


def literal(argument: Argument) -> str | None:
    """The value of a path or text key as typed; `null` is None."""
    if argument.text == "null":
        return None
    if argument.key in PATHS:
        return os.path.expanduser(argument.text)  # noqa: PTH111 - leaves a last / and the ~ of nobody's name alone
    return argument.text


def escaped(text: str) -> str:
    """Text that OmegaConf reads back as `text`, even where that holds ${...}."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that `word` was probably meant to be, by its last part where `word` has one part only; or nothing."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, 1)
    if "." not in word and word not in choices:
        leaves = {choice.rpartition(".")[2]: choice for choice in reversed(choices)}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(word, leaves, 1, 0.7)] or close
    return close[0] if close else ""


def unknown(kind: str, word: str, choices: Iterable[str], *, otherwise: str = "") -> CommandError:
    """The error for a word that there is not: the nearest one, or all of them where they are few, or `otherwise`."""
    choices = list(choices)
    guess = nearest(word, choices)
    listed = otherwise or f"there are {', '.join(choices)}"
    return CommandError(f"no {kind} {word}: " + (f"did you mean {guess}?" if guess else listed))


def report(command: str, error: CyclestyleError) -> str:
    """An error as users see it: one line, and at most five more below it."""
    first, *more = str(error).splitlines() or [type(error).__name__]
    return "\n".join([f"cyclestyle {command}: {first}", *more[:5]])


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


def entries(path: Path) -> Iterator[Entry]:
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
    root = [entry for entry in entries(directory / f"{command}.yaml") if entry.value]
    rows = [(entry.key, entry.value, entry.comment) for entry in root]
    for group, default in groups.items():
        if default:
            file = directory / group / f"{default}.yaml"
            found = [e for e in entries(file) if e.value and e.key.rpartition(".")[2] != "_target_"]
            rows += [(f"{group}.{entry.key}", entry.value, entry.comment) for entry in found]

    options_of_groups = " [group=option ...]" if groups else ""
    text = [f"Usage: python -m cyclestyle.{command}{options_of_groups} [key=value ...]", ""]
    text += [*header(directory / f"{command}.yaml"), ""]
    text += ["Keys, their defaults and what they mean (??? must be given):", *table(rows)]
    if groups:
        text += ["", "Groups and their options (the first is the default); an option may have keys of its own:"]
        text += table(
            (f"{group}={option}", described(directory / group, option, default))
            for group, default in groups.items()
            for option in sorted(options(directory / group), key=lambda name: (name != default, name))
            if group != "experiment"
        )
    if "experiment" in groups:
        text += ["", "Experiments (experiment=demo); keys given beside one win over it:"]
        text += table((name, described(directory / "experiment", name)) for name in options(directory / "experiment"))
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


def described(group: Path, option: str, default: str | None = None) -> str:
    """An option's first comment line, and the keys that the group's default option has not."""
    first = header(group / f"{option}.yaml")[0]
    if default in (None, option):
        return first
    usual = {entry.key for entry in entries(group / f"{default}.yaml")}
    own = [entry.key for entry in entries(group / f"{option}.yaml") if entry.key not in usual]
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
