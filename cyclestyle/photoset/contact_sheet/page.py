"""HTML page of a contact sheet, which shows a whole photo set before and after translation."""

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
    """One photo of the set; paths are relative to the folder of the page, and not yet percent-encoded for URLs."""

    name: str  # name to show; unprintable characters are escaped
    size: tuple[int, int]  # width and height of the upright photo, px; their ratio reserves its place on the page
    before: str  # thumbnail of the photo; if empty, the page shows the photo itself
    after: tuple[str, ...]  # thumbnails of the translations; if one is empty, the page shows the translation
    original: str | None  # the photo's file; None where a page cannot reach it
    results: tuple[str, ...]  # the translations' files, in the order of `after`
    note: str = ""  # text for the large view
    copies: tuple[
        str, ...
    ] = ()  # web-sized copies of photo and translations for the large view; empty: the file itself
    failed: str = ""  # why the photo was not translated, and then all paths are empty; empty on success


def page(cards: Iterable[Card], *, title: str, facts: Sequence[str], labels: Sequence[str] = ()) -> str:
    """Return the HTML of a contact sheet; images are the only other files that the page loads.

    The HTML stores each photo as a row of JSON. The page's script adds images only to the cards near the visible part
    of the page: a page of 5,000 photos consists of 5,000 empty boxes and a few dozen images.

    Args:
        cards: one card for each photo, in the order of the page; failed photos are listed at the end of the page.
        title: text of the window title and of the first heading.
        facts: items to show in the line below the heading, after the counts of photos; such as model, direction,
            strength and time.
        labels: one label for each translation of a photo, such as `25%`; empty if each photo has a single translation.
    """
    translated: list[Card] = []
    failed: list[Card] = []
    for card in cards:
        (failed if card.failed else translated).append(card)
    assert all(len(card.after) == len(card.results) == max(1, len(labels)) for card in translated), (
        "the number of files of a card differs from that of labels"
    )

    counts = [f"<li>{len(translated):,} {'photo' if len(translated) == 1 else 'photos'}</li>"]
    if failed:
        counts.append(f'<li><a href="#failures">{len(failed):,} failed</a></li>')
    kind = "sweep" if labels else "pairs"
    return Template(_asset("page.html")).substitute(
        marker=MARKER,
        style=_asset("page.css"),
        script=_asset("page.js"),
        title=_text(title),
        facts="".join([*counts, *(f"<li>{_text(fact)}</li>" for fact in facts)]),
        hint=f'<p class="hint">{_HINTS[kind] if translated else _NOTHING}</p>',
        keys=_KEYS[kind],
        data=_data(translated, labels),
        links="\n".join(_link(card) for card in translated),
        failures=_failures(failed),
    )


def is_own_page(path: Path) -> bool:
    """Return whether a page may be written to `path`: the file does not exist, or is an earlier contact sheet.

    Raises:
        OSError: the existing file cannot be read.
    """
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return MARKER.encode() in stream.read(512)


def write(path: Path, html: str) -> None:
    """Write a page to `path` atomically; the only file that may be overwritten is an earlier contact sheet.

    Raises:
        CommandError: `path` exists and is not an earlier contact sheet.
        OSError: the page cannot be written.
    """
    if not is_own_page(path):
        raise CommandError(f"{printable(path.absolute())} is not a contact sheet of cyclestyle: move it out of the way")
    write_text(path, html)


def url(path: str) -> str:
    """Percent-encode a path, which may contain any bytes, for links in a page.

    A relative path becomes a relative URL, an absolute path a `file://` URL.
    """
    posix = PurePath(path).as_posix()
    return ("file://" if posix.startswith("/") else "") + quote(os.fsencode(posix))


def _asset(name: str) -> str:
    """Return the text of the file `name` in the folder of this module."""
    return resources.files("cyclestyle.photoset.contact_sheet").joinpath(name).read_text(encoding="utf-8")


def _data(cards: Sequence[Card], labels: Sequence[str]) -> str:
    """Return the JSON that the page's script reads: a table with one row for each card.

    A row has the paths of the thumbnails and of the image files. Browsers cannot open some image files, such as TIFF;
    if a card has copies of such files for browsers, each row also has the paths of these copies. Each kind of path has
    a column for the photo and a column for each translation. The prefix and the suffix that all paths in a column share
    are stored once, not in each row.
    """
    thumbnails = [(card.before, *card.after) for card in cards]
    files = [(card.original, *card.results) for card in cards]
    groups: list[Sequence[tuple[str | None, ...]]] = [thumbnails, files]
    if any(card.copies for card in cards):
        groups.append([card.copies or ("",) * (1 + len(card.results)) for card in cards])
    columns = [_shortened(paths) for group in groups for paths in zip(*group, strict=True)]
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
    return text.replace("<", "\\u003c")  # else a name could end the script element


class _Column(NamedTuple):
    start: str
    suffixes: list[str | None]
    end: str


def _shortened(paths: Sequence[str | None]) -> _Column:
    """Convert the paths of a column to URLs, and split off the prefix and the suffix that all URLs share.

    None and empty paths become None.
    """
    references = [url(path) if path else None for path in paths]
    start = _common_prefix([reference for reference in references if reference is not None])
    suffixes = [None if reference is None else reference.removeprefix(start) for reference in references]
    end = _common_prefix([suffix[::-1] for suffix in suffixes if suffix is not None])[::-1]
    return _Column(start, [None if suffix is None else suffix.removesuffix(end) for suffix in suffixes], end)


def _common_prefix(texts: Sequence[str]) -> str:
    return os.path.commonprefix(texts)  # noqa: RUF071 - compares characters, not folders


def _link(card: Card) -> str:
    """Return an HTML link to the last translation of a photo, for browsers without scripts."""
    return f'<a href="{url(card.results[-1])}">{_text(printable(Path(card.name)))}</a><br>'


def _failures(cards: Sequence[Card]) -> str:
    """Return the HTML list of failed photos, given their cards; an empty string if there are none."""
    if not cards:
        return ""
    lines = "\n".join(f"<li><b>{_text(printable(Path(card.name)))}</b> {_text(card.failed)}</li>" for card in cards)
    heading = f"<h2>{len(cards):,} not translated</h2>"
    return f'<section class="failures" id="failures">{heading}\n<ul>\n{lines}\n</ul></section>'


def _text(text: str) -> str:
    return escape(one_line(text))
