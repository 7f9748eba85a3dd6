"""Parsing of command-line arguments, and suggestions for mistyped words."""

import difflib
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from cyclestyle.cli.keys import PATHS, RENAMED
from cyclestyle.errors import CommandError, CyclestyleError

FLAGS = "--help, --cfg job, --multirun"


class Argument(NamedTuple):
    """One `key=value` as typed, without the leading pluses that Hydra accepts."""

    key: str
    text: str


class Flags(NamedTuple):
    """Command line, split into flags and arguments."""

    help: bool
    print_config: bool  # --cfg job
    multirun: bool
    arguments: list[str]


def split_flags(argv: Iterable[str]) -> Flags:
    """Separate the flags in `argv` from the arguments; raise a CommandError for an unknown flag."""
    words = iter(argv)
    flags, rest = {"help": False, "print_config": False, "multirun": False}, []
    for word in words:
        if not word.startswith("-"):
            rest.append(word)
        elif word in ("--help", "-h"):
            flags["help"] = True
        elif word in ("--multirun", "-m"):
            flags["multirun"] = True
        elif word == "--cfg=job" or (word in ("--cfg", "-c") and next(words, "") == "job"):
            flags["print_config"] = True
        else:
            raise CommandError(f"no flag {word}: there are {FLAGS}")
    return Flags(**flags, arguments=rest)


def split(argument: str) -> Argument:
    """Split `key=value`, `+key=value` or `++key=value`; raise a CommandError for anything else."""
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
    """Return the value of a path or text key as typed, None for `null`; `~` expands in paths."""
    if argument.text == "null":
        return None
    if argument.key in PATHS:
        return os.path.expanduser(argument.text)  # noqa: PTH111 - preserves a trailing / and the ~ of an unknown user
    return argument.text


def escape_interpolation(text: str) -> str:
    """Escape `text` for OmegaConf, which would otherwise resolve ${...} in it."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def closest_match(word: str, choices: Iterable[str]) -> str:
    """Return the choice that is closest to `word`, or "" if none is close.

    A word without dots may also match the last part of a dotted choice.
    """
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, 1)
    if "." not in word and word not in choices:
        leaves = {choice.rpartition(".")[2]: choice for choice in reversed(choices)}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(word, leaves, 1, 0.7)] or close
    return close[0] if close else ""


def unknown_key_error(kind: str, word: str, choices: Iterable[str], *, otherwise: str = "") -> CommandError:
    """Create the error for an unknown word.

    The message suggests the closest choice. If none is close, it shows `otherwise`, or lists all choices.

    Args:
        kind: what the word should be, such as `key` or the name of a group.
        otherwise: text that replaces a long list of choices.
    """
    if (renamed := RENAMED.get(word)) is not None:
        values = "".join(f", {old} is {new}" for old, new in renamed.values.items())
        return CommandError(f"{word} was renamed to {renamed.key}{values}")
    choices = list(choices)
    guess = closest_match(word, choices)
    alternatives = otherwise or f"there are {', '.join(choices)}"
    return CommandError(f"no {kind} {word}: " + (f"did you mean {guess}?" if guess else alternatives))


def report(command: str, error: CyclestyleError) -> str:
    """Format an error for the user: one line, and at most five more below it."""
    first, *more = str(error).splitlines() or [type(error).__name__]
    return "\n".join([f"cyclestyle {command}: {first}", *more[:5]])
