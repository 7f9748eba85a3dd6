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
    """One `key=value` argument as typed, without the leading plus signs that Hydra accepts."""

    key: str
    text: str


class Flags(NamedTuple):
    """Command line, split into its flags and its other arguments (`key=value`)."""

    help: bool
    print_config: bool  # --cfg job
    multirun: bool
    arguments: list[str]


def split_flags(argv: Iterable[str]) -> Flags:
    """Separate the flags in `argv` from the other arguments; raise a CommandError for an unknown flag."""
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
    """Return the value of a path or text argument as typed, but with `~` expanded in a path; None for `null`."""
    if argument.text == "null":
        return None
    if argument.key in PATHS:
        return os.path.expanduser(argument.text)  # noqa: PTH111 - preserves a trailing / and the ~ of an unknown user
    return argument.text


def escape_interpolation(text: str) -> str:
    """Escape each ${...} in `text`, since OmegaConf would otherwise replace it by the value of another key."""
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
    """Create the error for a `word` that is not among `choices`.

    The message suggests the closest choice. If none is close, it shows `otherwise`, or lists all choices if `otherwise`
    is empty. If `word` is the former name of a renamed key, the message gives the present name instead.

    Args:
        kind: noun before `word` in the message: `key`, or the name of a config group, such as `generator`.
        otherwise: text to show if no choice is close, in place of a list of all choices.
    """
    if (renamed := RENAMED.get(word)) is not None:
        values = "".join(f"; its value {old} is now {new}" for old, new in renamed.values.items())
        return CommandError(f"{word} was renamed to {renamed.key}{values}")
    choices = list(choices)
    guess = closest_match(word, choices)
    alternatives = otherwise or f"there are {', '.join(choices)}"
    return CommandError(f"no {kind} {word}: " + (f"did you mean {guess}?" if guess else alternatives))


def report(command: str, error: CyclestyleError) -> str:
    """Format an error of a command for the user: at most six lines of the error's message, after the command's name."""
    first, *more = str(error).splitlines() or [type(error).__name__]
    return "\n".join([f"cyclestyle {command}: {first}", *more[:5]])
