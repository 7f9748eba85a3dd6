"""What users type and read: arguments taken apart, the nearest right word, help written from the YAML files."""

import difflib
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from cyclestyle.cli.keys import PATHS, RENAMED
from cyclestyle.errors import CommandError, CyclestyleError

FLAGS = "--help, --cfg job, --multirun"


class Argument(NamedTuple):
    """One `key=value` as typed, without the pluses before it that Hydra's users are used to."""

    key: str
    text: str


class Flags(NamedTuple):
    """The command line, flags and arguments apart."""

    help: bool
    print_config: bool  # --cfg job
    multirun: bool
    arguments: list[str]


def split_flags(argv: Iterable[str]) -> Flags:
    """Take the flags out of `argv`; CommandError for one that there is not."""
    words = iter(argv)
    wanted, rest = {"help": False, "print_config": False, "multirun": False}, []
    for word in words:
        if not word.startswith("-"):
            rest.append(word)
        elif word in ("--help", "-h"):
            wanted["help"] = True
        elif word in ("--multirun", "-m"):
            wanted["multirun"] = True
        elif word == "--cfg=job" or (word in ("--cfg", "-c") and next(words, "") == "job"):
            wanted["print_config"] = True
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


def escape_interpolation(text: str) -> str:
    """Text that OmegaConf reads back as `text`, even where that holds ${...}."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def closest_match(word: str, choices: Iterable[str]) -> str:
    """The choice that `word` was probably meant to be, by its last part where `word` has one part only; or nothing."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, 1)
    if "." not in word and word not in choices:
        leaves = {choice.rpartition(".")[2]: choice for choice in reversed(choices)}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(word, leaves, 1, 0.7)] or close
    return close[0] if close else ""


def unknown_key_error(kind: str, word: str, choices: Iterable[str], *, otherwise: str = "") -> CommandError:
    """The error for a word that there is not: the nearest one, or all of them where they are few, or `otherwise`."""
    if (renamed := RENAMED.get(word)) is not None:
        values = "".join(f", {old} is {new}" for old, new in renamed.values.items())
        return CommandError(f"{word} was renamed to {renamed.key}{values}")
    choices = list(choices)
    guess = closest_match(word, choices)
    listed = otherwise or f"there are {', '.join(choices)}"
    return CommandError(f"no {kind} {word}: " + (f"did you mean {guess}?" if guess else listed))


def report(command: str, error: CyclestyleError) -> str:
    """An error as users see it: one line, and at most five more below it."""
    first, *more = str(error).splitlines() or [type(error).__name__]
    return "\n".join([f"cyclestyle {command}: {first}", *more[:5]])
