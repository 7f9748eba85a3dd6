"""Configs for calls from Python: Python values become command-line arguments; Hydra's global state is preserved."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath

from hydra import version
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from cyclestyle.cli.compose import check, compose, groups
from cyclestyle.cli.keys import TAKEN_AS_TYPED
from cyclestyle.errors import CommandError

_COMPOSING = threading.Lock()  # Hydra keeps its state in global variables
_PLAIN = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)  # text that needs no quotes
_KEYWORDS = {"null", "true", "false", "nan", "inf"}  # words of Hydra's grammar, in any case


def config(command: str, overrides: Sequence[str | Mapping[str, object]]) -> DictConfig:
    """Compose and check a command's config.

    Args:
        overrides: command-line arguments such as `seed=1`, and mappings from keys to Python values. Later overrides
            take precedence.

    Raises:
        CommandError: an override is a flag, a key is unknown or missing, or a value has the wrong type.
    """
    words = [word for override in overrides for word in as_words(command, override)]
    if flags := [word for word in words if word.startswith("-")]:
        raise CommandError(f"{flags[0]} is a flag of the command: from Python, give key=value")
    with _hydra_alone():
        cfg = compose(command, words)
    check(cfg)
    return cfg


def as_words(command: str, override: str | Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield the command-line arguments that set the same keys as `override`.

    Args:
        override: an argument, or a mapping from keys to values; a value that is a mapping holds the keys of a node.
        prefix: text to put before each key of a mapping, such as `optimizer.`.
    """
    if isinstance(override, str):
        yield override
        return
    for name, value in override.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from as_words(command, value, f"{key}.")
        elif isinstance(value, str | PathLike) and key.lstrip("+") in TAKEN_AS_TYPED | groups(command).keys():
            yield f"{key}={fspath(value)}"
        else:
            yield f"{key}={in_hydra_grammar(value, key)}"


def in_hydra_grammar(value: object, key: str) -> str:
    """Format a Python value as text from which Hydra's grammar parses the same value.

    Args:
        value: None, a bool, a number, text, a path, a list or tuple of these, or a scalar of NumPy or PyTorch.
        key: key that gets the value, for the error text.

    Raises:
        CommandError: the value has another type.
    """
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PathLike):
        return _quoted(str(fspath(value)))
    if isinstance(value, list | tuple):
        return f"[{','.join(in_hydra_grammar(item, key) for item in value)}]"
    raise CommandError(f"{key}: {type(value).__name__} is no value of a config: give a number, text, a list or None")


def _quoted(text: str) -> str:
    """Put text in double quotes where Hydra's grammar needs them."""
    if _PLAIN.fullmatch(text) and text.lower() not in _KEYWORDS:
        return text
    # A backslash is special only before a quote and before the closing quote.
    escaped = re.sub(r'(\\*)("|\Z)', lambda match: match[1] * 2 + ("\\" + match[2] if match[2] else ""), text)
    return f'"{escaped}"'


@contextmanager
def _hydra_alone() -> Iterator[None]:
    """Context manager: give this thread exclusive use of Hydra; restore Hydra's global state at the end."""
    with _COMPOSING:
        theirs, base = GlobalHydra.instance().hydra, version.VersionBase.instance().getbase()
        GlobalHydra.instance().hydra = None
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = theirs
            version.VersionBase.instance().version_base = base
