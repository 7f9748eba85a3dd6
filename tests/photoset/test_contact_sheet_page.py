"""The contact sheet: what is in the page, whatever the files are called, and that it stays light."""

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
    """The elements of a page, and the text in them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: dict[str, str] = {}  # of the last element of each kind; scripts by their id
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
    """A card whose files are called as in a set that lies beside its translations."""
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


def made(cards, **options) -> str:
    return page(cards, **({"title": "Photos", "facts": ["photo2monet"]} | options))


def data(html: str) -> dict:
    return json.loads(Parsed(html).text["data"])


def paths(html: str) -> Iterator[list[bytes | None]]:
    """For each card the files that a browser would ask for: thumbnails first, then what they are thumbnails of."""
    seen = data(html)
    for _name, _width, _height, _note, *rests in seen["cards"]:
        whole = zip(seen["starts"], rests, seen["ends"], strict=True)
        yield [None if rest is None else unquote_to_bytes(start + rest + end) for start, rest, end in whole]


def of_a_set(count: int, *, results: int = 1) -> list[Card]:
    return [card(f"Holidays 2019, Südtirol/IMG_{index:05}.jpg", results=results) for index in range(count)]


@pytest.mark.parametrize("results", [1, 3])
def test_a_page_holds_every_card_in_the_order_given(results: int) -> None:
    cards = [card(f"{index % 7}/{index}.jpg", results=results, note=f"note {index}") for index in range(20)]
    html = made(iter(cards), labels=[f"{index} %" for index in range(results)] if results > 1 else ())
    assert [(row[0], row[3]) for row in data(html)["cards"]] == [(one.name, one.note) for one in cards]
    assert all(row[1:3] == [300, 200] for row in data(html)["cards"])
    for one, found in zip(cards, paths(html), strict=True):
        assert found == [os.fsencode(path) for path in (one.before, *one.after, one.original, *one.results)]


def test_a_photo_out_of_reach_has_no_file() -> None:
    html = made([card("a.jpg"), card("b.jpg", original=None), card("c.jpg")])
    assert [found[2] for found in paths(html)] == [b"../photos/a.jpg", None, b"../photos/c.jpg"]
    assert [found[2] for found in paths(made([card("b.jpg", original=None)]))] == [None]


def test_missing_thumbnails_are_left_out_of_the_page() -> None:
    html = made([card("a.jpg"), card("b.jpg")._replace(before="", after=("",))])
    assert list(paths(html))[1] == [None, None, b"../photos/b.jpg", b"b.jpg"]


def test_an_empty_set_and_a_set_of_one_have_pages() -> None:
    assert data(made([]))["cards"] == []
    assert list(paths(made([card("a.jpg")]))) == [
        [b"thumbnails/a.jpg.before.webp", b"thumbnails/a.jpg.0.webp", b"../photos/a.jpg", b"a.jpg"]
    ]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_no_name_breaks_the_page_or_gets_into_it_as_markup(name: str) -> None:
    plain = Parsed(made([card("plain.jpg"), card("x", failed="no")]))
    odd = made([card(name, note=name), card(name, failed=name)], title=name, facts=[name])
    odd.encode()  # no halves of characters
    parsed = Parsed(odd)
    assert parsed.tags == plain.tags
    assert parsed.text["data"].count("<") == 0
    assert len(data(odd)["cards"]) == 1
    assert "\n" not in data(odd)["cards"][0][0]
    (found,) = paths(odd)
    assert found[-1] == os.fsencode(name)
    assert [unquote_to_bytes(link) for link in parsed.links] == [os.fsencode(name)]


def test_names_are_shown_as_they_are_and_what_cannot_be_printed_is_escaped() -> None:
    html = made([card("Müller 😀 <b>.jpg"), card("a\nb.jpg"), card(os.fsdecode(b"caf\xe9.jpg"))])
    assert [row[0] for row in data(html)["cards"]] == ["Müller 😀 <b>.jpg", "a\\nb.jpg", "caf\\xe9.jpg"]


def test_paths_become_references_that_lead_to_their_bytes() -> None:
    assert url("a b/ü#?%.jpg") == "a%20b/%C3%BC%23%3F%25.jpg"
    assert url(os.fsdecode(b"caf\xe9.jpg")) == "caf%E9.jpg"
    assert url("javascript:x.jpg") == "javascript%3Ax.jpg"
    assert url("../photos/a.jpg") == "../photos/a.jpg"
    assert url("/photos/a b.jpg") == "file:///photos/a%20b.jpg"


def test_head_line_and_failures_say_how_it_went() -> None:
    cards = [card("a.jpg"), card("bad & worse.jpg", failed="damaged <picture>"), *of_a_set(1233)]
    html = made(cards, title="Photos as Monet", facts=["photo2monet", "12 min"])
    to_failures = '<a href="#failures">1 failed</a>'
    assert re.findall(r"<li>(.*?)</li>", html)[:4] == ["1,234 photos", to_failures, "photo2monet", "12 min"]
    assert 'id="failures"' in html
    assert "<h1>Photos as Monet</h1>" in html
    assert html.index("<b>bad &amp; worse.jpg</b> damaged &lt;picture&gt;") > html.index('<main id="cards">')
    assert "bad &amp; worse" not in Parsed(html).text["data"]
    assert 'class="failures"' not in made([card("a.jpg")])


@pytest.mark.parametrize(("results", "most"), [(1, 1_000_000), (4, 1_500_000)])
def test_the_page_of_5000_photos_is_light(results: int, most: int) -> None:
    labels = [f"{index} %" for index in range(results)] if results > 1 else ()
    assert len(made(of_a_set(5000, results=results), labels=labels).encode()) < most


def test_the_page_loads_nothing_but_pictures() -> None:
    html = made(of_a_set(3))
    assert not re.search(r"https?:|<link|@import|url\(|\bsrc=", html)


@pytest.mark.parametrize(
    ("labels", "told"), [((), "Left of the line is the photo"), (("1", "2"), "From left to right")]
)
def test_the_page_says_what_to_do_unless_there_is_nothing_to_look_at(labels: tuple[str, ...], told: str) -> None:
    failed = card("a.jpg", failed="bad")
    assert told in made([card("b.jpg", results=max(1, len(labels))), failed], labels=labels)
    empty = made([failed], labels=labels)
    assert "no photo was translated" in empty
    assert told not in empty


def test_without_scripts_the_page_is_a_list_of_links() -> None:
    html = made([*of_a_set(3), card("a.jpg", failed="bad")])
    (plain,) = re.findall(r"<noscript>(.*?)</noscript>", html, re.DOTALL)
    assert [unquote_to_bytes(link).decode() for link in Parsed(plain).links] == [one.results[0] for one in of_a_set(3)]

    html = made(of_a_set(2, results=3), labels=["1", "2", "3"])
    (plain,) = re.findall(r"<noscript>(.*?)</noscript>", html, re.DOTALL)
    assert Parsed(plain).links == [url(one.results[2]) for one in of_a_set(2, results=3)]


def test_a_page_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    write(path, made([card("a.jpg")], title="$first"))
    assert is_own_page(path)
    write(path, made([card("ü.jpg")]))
    assert path.read_bytes() == made([card("ü.jpg")]).encode()

    path.write_text("<!doctype html><title>My own page</title>")
    assert not is_own_page(path)
    with pytest.raises(CommandError, match=r"index.html is not a contact sheet of cyclestyle: move it out of the way"):
        write(path, made([]))
    assert "My own page" in path.read_text()
    assert not is_own_page(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]


def test_a_page_with_a_long_title_is_known_as_ours(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(made([card("x.jpg")], title="ü<" * 300))
    assert is_own_page(path)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((1200, 800), (480, 320)),
        ((800, 1200), (213, 320)),
        ((5000, 1000), (960, 192)),
        ((200, 100), (200, 100)),
        ((5000, 3), (960, 1)),
        ((1, 900), (1, 320)),
    ],
)
def test_thumbnails_are_of_one_height_however_wide_their_pictures_and_are_never_enlarged(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    pixels = np.full((size[1], size[0], 3), 90, dtype=np.uint8)
    with Image.open(io.BytesIO(thumbnail(pixels))) as image:
        assert (image.format, image.mode, image.size) == ("WEBP", "RGB", wanted)
        assert image.width <= THUMBNAIL[0]
        assert image.height <= THUMBNAIL[1]


def test_thumbnails_look_like_their_pictures_and_are_small_files() -> None:
    pixels = photograph(3, size=960)
    small = thumbnail(pixels)
    assert len(small) < 30_000
    with Image.open(io.BytesIO(small)) as image:
        seen = np.asarray(image.convert("RGB"), dtype=float)
    means = pixels.astype(float).reshape(320, 3, 320, 3, 3).mean(axis=(1, 3))
    assert np.abs(seen - means).mean() < 5


def test_thumbnails_of_16_bits_are_those_of_8() -> None:
    pixels = photograph(3, size=400)
    for rest in (0, 90, 255):
        assert thumbnail(pixels.astype(np.uint16) * 256 + rest) == thumbnail(pixels)


def test_transparent_pictures_have_transparent_thumbnails() -> None:
    pixels = np.zeros((400, 400, 3), dtype=np.uint8)
    pixels[:, :200] = 255  # black where nothing is seen of it
    alpha = np.zeros((400, 400), dtype=np.uint16)
    alpha[:, :200] = 65535
    with Image.open(io.BytesIO(thumbnail(pixels, alpha))) as image:
        seen = np.asarray(image)
    assert seen.shape == (320, 320, 4)
    assert seen[:, :155, 3].min() > 250
    assert seen[:, 165:, 3].max() < 5
    assert seen[:, :155, :3].min() > 240


@pytest.mark.parametrize(("length", "kept"), [(548, True), (500_000, False)])
def test_thumbnails_keep_a_profile_that_is_small(length: int, kept: bool) -> None:
    profile = bytes(range(256)) * (length // 256)
    with Image.open(io.BytesIO(thumbnail(photograph(3, size=64), profile=profile))) as image:
        assert image.info.get("icc_profile") == (profile if kept else None)


def test_thumbnails_need_no_torch() -> None:
    code = "import sys, cyclestyle.images.thumbnails; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.skipif(NODE is None, reason="node, which would read the script, is not installed")
def test_the_script_can_be_parsed(tmp_path: Path) -> None:
    script = tmp_path / "page.js"
    script.write_text(Parsed(made(of_a_set(2))).text["script"])
    done = subprocess.run([str(NODE), "--check", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a page with 5,000 photos, the first of which have thumbnails."""
    if CHROMIUM is None:
        pytest.skip("chromium, which would show the page, is not installed")
    folder = tmp_path_factory.mktemp("page")
    cards = of_a_set(5000)
    write(folder / "index.html", made(cards))
    small = thumbnail(photograph(3, size=64))
    for path in {path for one in cards[:40] for path in (one.before, *one.after)}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(small)
    return folder


@pytest.fixture(scope="module")
def browsed(site: Path) -> str:
    return after(site, "")


def after(site: Path, *steps: str) -> str:
    """The elements that chromium makes of the page after steps of a script, half a second apart.

    The clock is a virtual one, by which frames are not drawn for sure: what needs one, scrolling, cannot be told here.
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


def test_a_browser_asks_for_the_thumbnails_near_the_window_only(browsed: str) -> None:
    assert browsed.count("<article") == 5000
    assert 10 <= browsed.count("<img") - 2 <= 200  # the large view has two more, which are empty
    assert "IMG_00000.jpg.before.webp" in browsed
    assert "IMG_04999.jpg.before.webp" not in browsed


def test_in_a_browser_each_photo_has_a_slider_and_a_name(browsed: str) -> None:
    first = browsed[browsed.index("<article") : browsed.index("</article>")]
    assert 'type="range"' in first
    assert first.count("<img") == 2
    assert "Südtirol/IMG_00000.jpg</a>" in first
    assert f'href="{url("Holidays 2019, Südtirol/IMG_00000.jpg")}"' in first


def test_in_a_browser_a_click_opens_the_large_view_and_arrows_lead_on(site: Path) -> None:
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


def test_in_a_browser_the_filter_leaves_the_photos_whose_names_fit(site: Path) -> None:
    typed = "const f = document.getElementById('filter'); f.value = 'img_0012'; f.dispatchEvent(new Event('input'))"
    html = after(site, typed)
    assert '<span id="count" role="status">10 of 5,000</span>' in html
    assert len(re.findall(r"<article[^>]* hidden", html)) == 4990
