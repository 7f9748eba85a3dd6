"""Alternative spellings of values that the command line accepts, such as `format=jpg` and `strength=50%`."""

import re
from collections.abc import Iterable
from typing import Any, Union, get_args, get_origin

from cyclestyle.cli.signatures import matches

# command and key -> other spelling in lower case -> value
WORDS: dict[tuple[str, str], dict[str, str]] = {
    ("translate", "keep"): {"color": "colour", "lightness": "luminance"},
    ("translate", "format"): {
        "jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "tif": "tiff", "heif": "heic", "hif": "heic",
        **{name: name for name in ("keep", "png", "jpeg", "webp", "tiff", "avif", "heic")},
    },
    ("export", "format"): {"pth": "reference", "safetensor": "safetensors"},
}  # fmt: skip
SIZES = {("translate", "memory")}  # keys whose value is text, and may be typed as a number
SHARES = {("translate", "strength"), ("evaluate", "strength")}  # keys whose numbers may be typed in percent

_PERCENT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*%")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,3})?")
_COMMA = re.compile(r"([+-]?0),([0-9]+)")


def understood(command: str, key: str, value: Any, *, annotation: Any) -> Any:
    """Replace an alternative spelling, such as `50%`, by the value that it means; return other values unchanged.

    Args:
        command, key: the command and its top-level key, such as `translate` and `strength`.
        value: value of the key, as parsed by Hydra's grammar.
        annotation: type of the key. If it accepts numbers but not text, a number in quotes becomes a number.
    """
    place = command, key
    if isinstance(value, list):
        return [understood(command, key, item, annotation=annotation) for item in value]
    if place in SIZES and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if not isinstance(value, str):
        return value
    if place in WORDS:
        return WORDS[place].get(value.strip().lower().removeprefix("."), value)
    if place in SHARES and (percent := _PERCENT.fullmatch(value.strip())):
        return float(percent[1]) / 100
    return number(value) if place in SHARES or _is_number(annotation) else value


def number(text: str) -> Any:
    """Return the number that `text` holds; return `text` itself if it is no number."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return text
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)


def with_point(text: str) -> str | None:
    """Return `0.5` for the text `0,5`, and likewise for other numbers below 1 with a decimal comma; else None."""
    match = _COMMA.fullmatch(text.strip())
    return f"{match[1]}.{match[2]}" if match else None


def _is_number(annotation: Any) -> bool:
    """Return whether an annotation accepts numbers but not every text; it may accept certain words, such as `auto`."""
    kinds: Iterable[Any] = get_args(annotation) if get_origin(annotation) in (Union, type(int | None)) else [annotation]
    return any(kind in (int, float) for kind in kinds) and not matches("text", annotation)
