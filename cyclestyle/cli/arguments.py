"""Parsing of command-line arguments, and suggestions for mistyped words."""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cyclestyle.cli.keys import PATHS, RENAMED
from cyclestyle.errors import CommandError, CyclestyleError

FLAGS = ("--help", "--cfg", "--config-dir", "--multirun", "--version", "--info", "--shell-completion")
SHORT = {"-h": "--help", "-c": "--cfg", "-cd": "--config-dir", "-m": "--multirun", "-sc": "--shell-completion",
         "--config-path": "--config-dir", "-cp": "--config-dir"}  # fmt: skip


class Argument(NamedTuple):
    """One `key=value` argument as typed, without the leading plus signs that Hydra accepts."""

    key: str
    text: str


class Removal(NamedTuple):
    """Argument `~key` or `~key=value`, which removes a key; `=value` requires that the key has this value."""

    key: str
    text: str | None


@dataclass
class Flags:
    """Command line, split into its flags and its other arguments (`key=value`)."""

    arguments: list[str] = field(default_factory=list)
    help: bool = False
    print_config: bool = False  # --cfg job
    multirun: bool = False
    resolve: bool = True  # --resolve: without effect, since `--cfg job` always resolves interpolations
    version: bool = False
    info: bool = False
    config_dirs: list[str] = field(default_factory=list)  # --config-dir
    shell: str | None = None  # --shell-completion
    complete: str | None = None  # --complete: the word to complete, from the completion script


def split_flags(argv: Iterable[str]) -> Flags:
    """Separate the flags in `argv` from the other arguments; raise a CommandError for an unknown flag."""
    words, flags = list(argv), Flags()
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            flags.arguments.append(word)
            continue
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if name in ("--help", "--multirun", "--version", "--info", "--resolve") and not equals:
            setattr(flags, name.removeprefix("--"), True)
        elif name == "--cfg":
            flags.print_config = True
            has_value = equals or (words and "=" not in words[0] and not words[0].startswith("-"))
            _check_printed(value if equals else words.pop(0) if has_value else "job")
        elif name in ("--config-dir", "--shell-completion", "--complete"):
            if not equals and not words:
                raise CommandError(f"{word} needs a value: {EXAMPLES[name]}")
            value = value if equals else words.pop(0)
            if name == "--config-dir":
                flags.config_dirs.append(value)
            else:
                setattr(flags, {"--complete": "complete"}.get(name, "shell"), value)
        else:
            raise CommandError(f"no flag {word}: there are {', '.join(FLAGS)}")
    return flags


EXAMPLES = {
    "--config-dir": "a folder such as --config-dir configs",
    "--shell-completion": "--shell-completion bash or zsh",
    "--complete": "the word to complete",
}


def _check_printed(kind: str) -> None:
    if kind == "hydra":
        raise CommandError(
            "--cfg hydra: Hydra's own config has no effect here; --cfg job prints the config of the command"
        )
    if kind != "job":
        raise CommandError(f"--cfg {kind}: there is --cfg job, which prints the config of the command")


def split(argument: str) -> Argument:
    """Split `key=value`, `+key=value` or `++key=value`; raise a CommandError for anything else."""
    key, equals, text = argument.partition("=")
    key = key.removeprefix("+").removeprefix("+").strip()
    if not equals or not key:
        raise CommandError(f"{argument}: expected key=value, such as name=mine or trainer.steps=2000")
    if not text.strip():
        raise CommandError(f"{key}= has no value: write one after the =, or leave {key} out")
    return Argument(key, text)


def split_removal(argument: str) -> Removal | None:
    """Split `~key` or `~key=value`; return None for an argument without a leading `~`.

    Raises:
        CommandError: the key or the value is empty.
    """
    if not argument.startswith("~"):
        return None
    key, equals, text = argument[1:].partition("=")
    if not key.strip() or (equals and not text.strip()):
        raise CommandError(f"{argument}: expected ~key or ~key=value, such as ~logger.tensorboard")
    return Removal(key.strip(), text if equals else None)


def literal(argument: Argument) -> str | None:
    """Return the value of an argument as typed, but expand `~` if the key takes a path; None for the text `null`."""
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

    A word without dots may also match the last part of a dotted choice. A dotted word such as `trainer.stepz` is
    compared only with choices of the same node (`trainer`), if there are any.
    """
    choices = list(choices)
    node, dot, name = word.rpartition(".")
    siblings = {choice.rpartition(".")[2]: choice for choice in choices if choice.rpartition(".")[0] == node}
    if dot and siblings:
        return next((siblings[close] for close in difflib.get_close_matches(name, siblings, 1)), "")
    close = difflib.get_close_matches(word, choices, 1)
    if "." not in word and word not in choices:
        leaves = {choice.rpartition(".")[2]: choice for choice in reversed(choices)}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(word, leaves, 1, 0.7)] or close
    return close[0] if close else ""


def unknown_key_error(kind: str, word: str, choices: Iterable[str], *, otherwise: str = "") -> CommandError:
    """Create the error for a `word` that is not among `choices`.

    The message suggests the closest choice. If `word` is the former name of a renamed key, the message gives the
    present name instead.

    Args:
        kind: noun before `word` in the message: `key`, or the name of a config group, such as `generator`.
        otherwise: text to show if no choice is close; "" shows a list of all choices.
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
