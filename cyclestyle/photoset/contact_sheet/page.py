"""The contact sheet: a page that shows a whole set before and after, for people who look rather than read."""

import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path, PurePath
from string import Template
from typing import NamedTuple
from urllib.parse import quote

from cyclestyle.errors import CommandError
from cyclestyle.filesystem.atomic import write_text
from cyclestyle.filesystem.listing import one_line, printable

NAME = "index.html"
MARKER = '<meta name="generator" content="cyclestyle contact sheet">'

_HINTS = {
    "pairs": "Left of the line is the photo, right of it the translation. Drag to compare, click to see it large.",
    "sweep": "From left to right: the photo, and its translations. Click one to see it large beside the photo.",
}
_NOTHING = "There is nothing to show: no photo was translated."
_KEYS = {
    "pairs": "Drag to compare. Keys: &larr; &rarr; other photos, Esc back",
    "sweep": "Drag to compare. Keys: &larr; &rarr; other photos, &darr; &uarr; other strengths, Esc back",
}


class Card(NamedTuple):
    """One photo of the set; paths are relative to the page, as the file system has them."""

    name: str  # as it is shown; whatever cannot be printed is escaped
    size: tuple[int, int]  # width and height of the upright photo, px; their ratio is the room that is kept for it
    before: str  # thumbnail of the photo; empty where there is none, and the photo itself is shown instead
    after: tuple[str, ...]  # the same of its translations: one, or one for each strength of a sweep
    original: str | None  # the photo itself, None where a page cannot reach it
    results: tuple[str, ...]  # the translations themselves, in the order of `after`
    note: str = ""  # shown in the large view
    failed: str = ""  # why there is no translation; then all paths are empty


def page(cards: Iterable[Card], *, title: str, facts: Sequence[str], labels: Sequence[str] = ()) -> str:
    """The whole page, with nothing to load but pictures.

    What it knows of a photo is a row of JSON, and a browser makes of it what is near the window: 5,000 photos are
    5,000 empty boxes and a few dozen pictures.

    Args:
        cards: in the order in which they are shown; those that failed come last.
        title: of the window and the first heading.
        facts: in the line below it, after the counts: model, direction, strength, time.
        labels: of the translations of each photo, such as `25 %`, where there are several.
    """
    there: list[Card] = []
    failed: list[Card] = []
    for card in cards:
        (failed if card.failed else there).append(card)
    assert all(len(card.after) == len(card.results) == max(1, len(labels)) for card in there), (
        "labels, and as many files"
    )

    counts = [f"<li>{len(there):,} {'photo' if len(there) == 1 else 'photos'}</li>"]
    if failed:
        counts.append(f'<li><a href="#failures">{len(failed):,} failed</a></li>')
    kind = "sweep" if labels else "pairs"
    return Template(_asset("page.html")).substitute(
        marker=MARKER,
        style=_asset("page.css"),
        script=_asset("page.js"),
        title=_text(title),
        facts="".join([*counts, *(f"<li>{_text(fact)}</li>" for fact in facts)]),
        hint=f'<p class="hint">{_HINTS[kind] if there else _NOTHING}</p>',
        keys=_KEYS[kind],
        data=_data(there, labels),
        links="\n".join(_link(card) for card in there),
        failures=_failures(failed),
    )


def is_own_page(path: Path) -> bool:
    """Whether a page may be written here: there is nothing yet, or an earlier contact sheet.

    Raises:
        OSError: what is there cannot be read.
    """
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return MARKER.encode() in stream.read(512)


def write(path: Path, html: str) -> None:
    """Write a page, whole or not at all, and never over anything but an earlier one.

    Raises:
        CommandError: something else stands there.
        OSError: the disk does not take it.
    """
    if not is_own_page(path):
        raise CommandError(f"{printable(path.absolute())} is not a contact sheet of cyclestyle: move it out of the way")
    write_text(path, html)


def url(path: str) -> str:
    """A path, whatever bytes are in it, as a reference in a page."""
    posix = PurePath(path).as_posix()
    return ("file://" if posix.startswith("/") else "") + quote(os.fsencode(posix))


def _asset(name: str) -> str:
    """A file of this room; in `page.html` the names in $ are string.Template's."""
    return resources.files("cyclestyle.photoset.contact_sheet").joinpath(name).read_text(encoding="utf-8")


def _data(cards: Sequence[Card], labels: Sequence[str]) -> str:
    """What the page's script reads, as JSON: rows, whose paths lack what all of their column begin and end with."""
    pictures = [(card.before, *card.after) for card in cards]
    files = [(card.original, *card.results) for card in cards]
    columns = [_shortened(paths) for paths in (*zip(*pictures, strict=True), *zip(*files, strict=True))]
    rows = [
        [printable(Path(card.name)), *card.size, one_line(card.note), *(column.suffixes[index] for column in columns)]
        for index, card in enumerate(cards)
    ]
    data = {
        "labels": [one_line(label) for label in labels],
        "starts": [column.start for column in columns],
        "ends": [column.end for column in columns],
        "cards": rows,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # so that no name ends the element that it stands in


class _Column(NamedTuple):
    start: str
    suffixes: list[str | None]
    end: str


def _shortened(paths: Sequence[str | None]) -> _Column:
    """Paths as references, without what all of them begin and end with."""
    references = [url(path) if path else None for path in paths]
    start = _common([reference for reference in references if reference is not None])
    rests = [None if reference is None else reference.removeprefix(start) for reference in references]
    end = _common([rest[::-1] for rest in rests if rest is not None])[::-1]
    return _Column(start, [None if rest is None else rest.removesuffix(end) for rest in rests], end)


def _common(texts: Sequence[str]) -> str:
    return os.path.commonprefix(texts)  # noqa: RUF071, for it is about characters, not about folders


def _link(card: Card) -> str:
    """A photo's line where scripts do not run, to the last of its translations."""
    return f'<a href="{url(card.results[-1])}">{_text(printable(Path(card.name)))}</a><br>'


def _failures(cards: Sequence[Card]) -> str:
    """The last part of the page, nothing where all went well."""
    if not cards:
        return ""
    lines = "\n".join(f"<li><b>{_text(printable(Path(card.name)))}</b> {_text(card.failed)}</li>" for card in cards)
    heading = f"<h2>{len(cards):,} not translated</h2>"
    return f'<section class="failures" id="failures">{heading}\n<ul>\n{lines}\n</ul></section>'


def _text(text: str) -> str:
    return escape(one_line(text))
