"""The HTML page of a contact sheet: its content, odd file names, its size, thumbnails, and its script in a browser."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from cyclestyle.data.scenes.drawing import photograph
from cyclestyle.errors import CommandError
from cyclestyle.images.thumbnails import THUMBNAIL, thumbnail
from cyclestyle.photoset.contact_sheet.page import Card, is_own_page, page, url, write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NODE = shutil.which("node")

ODD_NAMES = [
    "Müller & Söhne.jpg", "😀 party.png", 'say "cheese".jpg', "it's.jpg", "</script><script>alert(1)</script>.jpg",
    "<img src=x onerror=alert(1)>.jpg", "100% #1?.jpg", "a\nb.jpg", "javascript:alert(1).jpg", "$data ${x} $$.jpg",
    os.fsdecode(b"caf\xe9.jpg"), "  spaces  .jpg", "<!--.jpg", "back\\slash.jpg", "\u2028.jpg", "&lt;.jpg",
]  # fmt: skip


class Parsed(HTMLParser):
    """Parser that records the elements of a page, and their text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: dict[str, str] = {}  # text of the last element with each tag; for scripts, with each id
        self._in = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        if tag == "a" and "href" in attributes and not attributes["href"].startswith("#"):
            self.links.append(attributes["href"])
        self._in = attributes.get("id", tag) if tag == "script" else tag
        self.text[self._in] = ""

    def handle_endtag(self, tag) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in:
            self.text[self._in] += data


def card(name: str, *, results: int = 1, original: str | None = "", failed: str = "", note: str = "") -> Card:
    """Create a card for a set whose photos and output are neighbouring folders."""
    if failed:
        return Card(name, (0, 0), "", (), None, (), failed=failed)
    stem = f"thumbnails/{name}"
    return Card(
        name,
        size=(300, 200),
        before=f"{stem}.before.webp",
        after=tuple(f"{stem}.{index}.webp" for index in range(results)),
        original=f"../photos/{name}" if original == "" else original,
        results=tuple(f"{index}/{name}" if results > 1 else name for index in range(results)),
        note=note,
    )


def html_of(cards, **options) -> str:
    return page(cards, **({"title": "Photos", "facts": ["photo2monet"]} | options))


def data(html: str) -> dict:
    return json.loads(Parsed(html).text["data"])


def paths(html: str) -> Iterator[list[bytes | None]]:
    """Yield the paths that a browser would load for each card: thumbnails first, then the full files."""
    parsed = data(html)
    for _name, _width, _height, _note, *suffixes in parsed["cards"]:
        parts = zip(parsed["starts"], suffixes, parsed["ends"], strict=True)
        yield [None if suffix is None else unquote_to_bytes(start + suffix + end) for start, suffix, end in parts]


def set_of(count: int, *, results: int = 1) -> list[Card]:
    return [card(f"Holidays 2019, Südtirol/IMG_{index:05}.jpg", results=results) for index in range(count)]


@pytest.mark.parametrize("results", [1, 3])
def test_page_holds_all_cards_in_order(results: int) -> None:
    cards = [card(f"{index % 7}/{index}.jpg", results=results, note=f"note {index}") for index in range(20)]
    html = html_of(iter(cards), labels=[f"{index} %" for index in range(results)] if results > 1 else ())
    assert [(row[0], row[3]) for row in data(html)["cards"]] == [(card.name, card.note) for card in cards]
    assert all(row[1:3] == [300, 200] for row in data(html)["cards"])
    for expected, loaded in zip(cards, paths(html), strict=True):
        files = (expected.before, *expected.after, expected.original, *expected.results)
        assert loaded == [os.fsencode(path) for path in files]


def test_card_of_unreachable_photo_has_no_photo_path() -> None:
    html = html_of([card("a.jpg"), card("b.jpg", original=None), card("c.jpg")])
    assert [loaded[2] for loaded in paths(html)] == [b"../photos/a.jpg", None, b"../photos/c.jpg"]
    assert [loaded[2] for loaded in paths(html_of([card("b.jpg", original=None)]))] == [None]


def test_missing_thumbnails_are_null_in_the_page() -> None:
    html = html_of([card("a.jpg"), card("b.jpg")._replace(before="", after=("",))])
    assert list(paths(html))[1] == [None, None, b"../photos/b.jpg", b"b.jpg"]


def test_page_of_zero_or_one_photo_has_zero_or_one_card() -> None:
    assert data(html_of([]))["cards"] == []
    assert list(paths(html_of([card("a.jpg")]))) == [
        [b"thumbnails/a.jpg.before.webp", b"thumbnails/a.jpg.0.webp", b"../photos/a.jpg", b"a.jpg"]
    ]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names_do_not_inject_markup(name: str) -> None:
    plain = Parsed(html_of([card("plain.jpg"), card("x", failed="no")]))
    odd = html_of([card(name, note=name), card(name, failed=name)], title=name, facts=[name])
    odd.encode()  # raises on lone surrogates
    parsed = Parsed(odd)
    assert parsed.tags == plain.tags
    assert parsed.text["data"].count("<") == 0
    assert len(data(odd)["cards"]) == 1
    assert "\n" not in data(odd)["cards"][0][0]
    (loaded,) = paths(odd)
    assert loaded[-1] == os.fsencode(name)
    assert [unquote_to_bytes(link) for link in parsed.links] == [os.fsencode(name)]


def test_unprintable_characters_in_names_are_escaped() -> None:
    html = html_of([card("Müller 😀 <b>.jpg"), card("a\nb.jpg"), card(os.fsdecode(b"caf\xe9.jpg"))])
    assert [row[0] for row in data(html)["cards"]] == ["Müller 😀 <b>.jpg", "a\\nb.jpg", "caf\\xe9.jpg"]


def test_url_percent_encodes_path_bytes() -> None:
    assert url("a b/ü#?%.jpg") == "a%20b/%C3%BC%23%3F%25.jpg"
    assert url(os.fsdecode(b"caf\xe9.jpg")) == "caf%E9.jpg"
    assert url("javascript:x.jpg") == "javascript%3Ax.jpg"
    assert url("../photos/a.jpg") == "../photos/a.jpg"
    assert url("/photos/a b.jpg") == "file:///photos/a%20b.jpg"


def test_page_shows_photo_count_facts_and_failures() -> None:
    cards = [card("a.jpg"), card("bad & worse.jpg", failed="damaged <picture>"), *set_of(1233)]
    html = html_of(cards, title="Photos as Monet", facts=["photo2monet", "12 min"])
    to_failures = '<a href="#failures">1 failed</a>'
    assert re.findall(r"<li>(.*?)</li>", html)[:4] == ["1,234 photos", to_failures, "photo2monet", "12 min"]
    assert 'id="failures"' in html
    assert "<h1>Photos as Monet</h1>" in html
    assert html.index("<b>bad &amp; worse.jpg</b> damaged &lt;picture&gt;") > html.index('<main id="cards">')
    assert "bad &amp; worse" not in Parsed(html).text["data"]
    assert 'class="failures"' not in html_of([card("a.jpg")])


@pytest.mark.parametrize(("results", "max_bytes"), [(1, 1_000_000), (4, 1_500_000)])
def test_page_of_5000_photos_has_less_than_1500_kilobytes(results: int, max_bytes: int) -> None:
    labels = [f"{index} %" for index in range(results)] if results > 1 else ()
    assert len(html_of(set_of(5000, results=results), labels=labels).encode()) < max_bytes


def test_page_loads_only_images() -> None:
    html = html_of(set_of(3))
    assert not re.search(r"https?:|<link|@import|url\(|\bsrc=", html)


@pytest.mark.parametrize(
    ("labels", "hint"), [((), "Left of the line is the photo"), (("1", "2"), "From left to right")]
)
def test_hint_for_comparing_images_is_shown_only_if_a_photo_was_translated(labels: tuple[str, ...], hint: str) -> None:
    failed = card("a.jpg", failed="bad")
    assert hint in html_of([card("b.jpg", results=max(1, len(labels))), failed], labels=labels)
    empty = html_of([failed], labels=labels)
    assert "no photo was translated" in empty
    assert hint not in empty


def test_page_without_scripts_is_a_list_of_links() -> None:
    html = html_of([*set_of(3), card("a.jpg", failed="bad")])
    (plain,) = re.findall(r"<noscript>(.*?)</noscript>", html, re.DOTALL)
    assert [unquote_to_bytes(link).decode() for link in Parsed(plain).links] == [card.results[0] for card in set_of(3)]

    html = html_of(set_of(2, results=3), labels=["1", "2", "3"])
    (plain,) = re.findall(r"<noscript>(.*?)</noscript>", html, re.DOTALL)
    assert Parsed(plain).links == [url(card.results[2]) for card in set_of(2, results=3)]


def test_existing_file_is_overwritten_only_if_it_is_a_contact_sheet(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    write(path, html_of([card("a.jpg")], title="$first"))
    assert is_own_page(path)
    write(path, html_of([card("ü.jpg")]))
    assert path.read_bytes() == html_of([card("ü.jpg")]).encode()

    path.write_text("<!doctype html><title>My own page</title>")
    assert not is_own_page(path)
    with pytest.raises(CommandError, match=r"index.html is not a contact sheet of cyclestyle: move it out of the way"):
        write(path, html_of([]))
    assert "My own page" in path.read_text()
    assert not is_own_page(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]


def test_earlier_page_is_recognized_despite_a_long_title(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(html_of([card("x.jpg")], title="ü<" * 300))
    assert is_own_page(path)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1200, 800), (480, 320)),
        ((800, 1200), (213, 320)),
        ((5000, 1000), (960, 192)),
        ((200, 100), (200, 100)),
        ((5000, 3), (960, 1)),
        ((1, 900), (1, 320)),
    ],
)
def test_thumbnails_are_shrunk_but_never_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    pixels = np.full((size[1], size[0], 3), 90, dtype=np.uint8)
    with Image.open(io.BytesIO(thumbnail(pixels))) as image:
        assert (image.format, image.mode, image.size) == ("WEBP", "RGB", expected)
        assert image.width <= THUMBNAIL[0]
        assert image.height <= THUMBNAIL[1]


def test_thumbnails_resemble_their_images_and_are_small() -> None:
    pixels = photograph(3, size=960)
    small = thumbnail(pixels)
    assert len(small) < 30_000
    with Image.open(io.BytesIO(small)) as image:
        rgb = np.asarray(image.convert("RGB"), dtype=float)
    means = pixels.astype(float).reshape(320, 3, 320, 3, 3).mean(axis=(1, 3))
    assert np.abs(rgb - means).mean() < 5


def test_thumbnail_of_16_bit_image_equals_thumbnail_of_8_bit_image() -> None:
    pixels = photograph(3, size=400)
    for low_byte in (0, 90, 255):
        assert thumbnail(pixels.astype(np.uint16) * 256 + low_byte) == thumbnail(pixels)


def test_transparent_images_have_transparent_thumbnails() -> None:
    pixels = np.zeros((400, 400, 3), dtype=np.uint8)
    pixels[:, :200] = 255  # black under the transparent half
    alpha = np.zeros((400, 400), dtype=np.uint16)
    alpha[:, :200] = 65535
    with Image.open(io.BytesIO(thumbnail(pixels, alpha))) as image:
        rgba = np.asarray(image)
    assert rgba.shape == (320, 320, 4)
    assert rgba[:, :155, 3].min() > 250
    assert rgba[:, 165:, 3].max() < 5
    assert rgba[:, :155, :3].min() > 240


@pytest.mark.parametrize(("length", "is_kept"), [(548, True), (500_000, False)])
def test_thumbnails_keep_only_small_colour_profiles(length: int, is_kept: bool) -> None:
    profile = bytes(range(256)) * (length // 256)
    with Image.open(io.BytesIO(thumbnail(photograph(3, size=64), profile=profile))) as image:
        assert image.info.get("icc_profile") == (profile if is_kept else None)


def test_thumbnails_do_not_import_torch() -> None:
    code = "import sys, cyclestyle.images.thumbnails; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.skipif(NODE is None, reason="node, which parses the script, is not installed")
def test_page_script_can_be_parsed(tmp_path: Path) -> None:
    script = tmp_path / "page.js"
    script.write_text(Parsed(html_of(set_of(2))).text["script"])
    process = subprocess.run([str(NODE), "--check", str(script)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a page of 5,000 photos; the first 40 photos have thumbnails."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    folder = tmp_path_factory.mktemp("page")
    cards = set_of(5000)
    write(folder / "index.html", html_of(cards))
    small = thumbnail(photograph(3, size=64))
    for path in {path for card in cards[:40] for path in (card.before, *card.after)}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(small)
    return folder


@pytest.fixture(scope="module")
def browsed(site: Path) -> str:
    return after(site, "")


def after(site: Path, *steps: str) -> str:
    """Return the HTML of the page in Chromium after the steps of a script, which run half a second apart.

    Chromium's virtual clock does not guarantee that frames are drawn, so effects that need one, such as scrolling,
    cannot be tested here.
    """
    waits = "".join(f"setTimeout(() => {{ {step} }}, {500 * (index + 1)});" for index, step in enumerate(steps))
    path = site / "acted.html"
    path.write_text((site / "index.html").read_text() + f"<script>{waits}</script>")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
        f"--user-data-dir={site / 'browser'}", "--window-size=1280,900", "--virtual-time-budget=10000", "--dump-dom",
        path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_browser_loads_only_thumbnails_near_the_window(browsed: str) -> None:
    assert browsed.count("<article") == 5000
    assert 10 <= browsed.count("<img") - 2 <= 200  # the large view has two more img elements, both empty
    assert "IMG_00000.jpg.before.webp" in browsed
    assert "IMG_04999.jpg.before.webp" not in browsed


def test_card_in_browser_has_a_slider_and_a_linked_file_name(browsed: str) -> None:
    first = browsed[browsed.index("<article") : browsed.index("</article>")]
    assert 'type="range"' in first
    assert first.count("<img") == 2
    assert "Südtirol/IMG_00000.jpg</a>" in first
    assert f'href="{url("Holidays 2019, Südtirol/IMG_00000.jpg")}"' in first


def test_click_in_browser_opens_large_view_and_arrow_keys_change_its_photo(site: Path) -> None:
    click = "document.querySelectorAll('.name')[3].click()"
    key = "document.getElementById('room').dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}))"
    for steps, number in (([click], 3), ([click, key % "ArrowRight"], 4), ([click, key % "ArrowLeft"], 2)):
        html = after(site, *steps)
        large = html[html.index("<dialog") : html.index("</dialog>")]
        name = f"Holidays 2019, Südtirol/IMG_{number:05}.jpg"
        assert re.match(r"<dialog[^>]* open", large)
        assert f'<span id="what">{name}</span>' in large
        assert f'<small id="where">{number + 1} of 5,000</small>' in large
        assert f'href="{url(name)}"' in large
        assert f'href="{url("../photos/" + name)}"' in large


def test_browser_filter_shows_matching_names(site: Path) -> None:
    typed = "const f = document.getElementById('filter'); f.value = 'img_0012'; f.dispatchEvent(new Event('input'))"
    html = after(site, typed)
    assert '<span id="count" role="status">10 of 5,000</span>' in html
    assert len(re.findall(r"<article[^>]* hidden", html)) == 4990


def test_browser_shows_copies_of_files_that_it_cannot_open(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    shown = card("x.tif")._replace(original="x.tif", copies=("copy0.webp", "copy1.webp"))
    for path in (shown.before, *shown.after, *shown.copies):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(thumbnail(photograph(3, size=64)))
    (tmp_path / "x.tif").write_bytes(b"II*\0")
    write(tmp_path / "index.html", html_of([shown, card("y.jpg")]))
    html = after(tmp_path, "document.querySelectorAll('.name')[0].click()")
    large = html[html.index("<dialog") : html.index("</dialog>")]
    assert re.findall(r'src="(.*?)"', large) == ["copy0.webp", "copy1.webp"]
    assert "Shown small" not in large
    assert re.findall(r'id="(?:original|result)"[^>]* href="(.*?)"', large) == ["x.tif", "x.tif"]
