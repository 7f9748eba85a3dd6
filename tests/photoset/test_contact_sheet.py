"""From a command's outcome to its page: what the cards of the contact sheet lead to, and what is said above them."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from cyclestyle.errors import DiskError
from cyclestyle.photoset.contact_sheet import cards as showing
from cyclestyle.photoset.journal import FOLDER
from cyclestyle.photoset.runner import JobResult, thumbnail_names
from tests.translation.sets import run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos of different shapes, one of them below a folder with an odd name."""
    folder = tmp_path / "my photos"
    (folder / "Süd #1").mkdir(parents=True)
    for name, shape in (("a.png", (20, 30, 3)), ("Süd #1/b.png", (24, 8, 3))):
        Image.fromarray(np.full(shape, 90, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "set"


def thumbnails(output: Path) -> Path:
    return output / FOLDER / "thumbnails"


def translated(photos: Path, output: Path, *, count: int = 1, **options) -> JobResult:
    return run(photos, output, count=count, sheet=thumbnails(output), workers=0, **options)


def shown(outcome: JobResult, output: Path, *, facts: tuple[str, ...] = (), labels: tuple[str, ...] = ()) -> str:
    where = showing.write_contact_sheet(output, outcome, thumbnails=thumbnails(output), facts=facts, labels=labels)
    assert where == output / "index.html"
    return where.read_text(encoding="utf-8")


def data(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def cards(html: str) -> dict[str, list[str | None]]:
    """The name of each card, and where it leads: half of it thumbnails, half of it files."""
    seen = data(html)
    return {
        name: [
            None if rest is None else unquote(start + rest + end)
            for start, rest, end in zip(seen["starts"], rests, seen["ends"], strict=True)
        ]
        for name, _width, _height, _note, *rests in seen["cards"]
    }


def facts(html: str) -> list[str]:
    head = html[html.index('<ul class="facts">') :]
    return [re.sub("<.*?>", "", fact) for fact in re.findall(r"<li>(.*?)</li>", head[: head.index("</ul>")])]


def test_all_that_a_page_leads_to_is_there_and_is_the_right_picture(photos: Path, output: Path) -> None:
    html = shown(translated(photos, output), output)
    found = cards(html)
    assert list(found) == ["Süd #1/b.png", "a.png"]
    for name, (before, after, original, result) in found.items():
        assert all((output / str(path)).is_file() for path in (before, after, original, result))
        assert (output / str(original)).samefile(photos / name)
        assert not Path(str(original)).is_absolute()
        assert result == name
        for small, brightness in ((before, 90), (after, 255 - 90)):
            with Image.open(output / str(small)) as image:
                assert abs(np.asarray(image.convert("RGB")).mean() - brightness) < 4
    assert [row[1:3] for row in data(html)["cards"]] == [[8, 24], [30, 20]]


def test_a_page_leads_to_its_photos_from_a_relative_output_too(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = Path("out")
    html = shown(translated(Path(photos.name), output), output)
    assert cards(html)["a.png"][2] == "../my photos/a.png"
    assert "<h1>out</h1>" in html


def test_the_files_stand_in_for_thumbnails_that_are_missing(photos: Path, output: Path) -> None:
    outcome = translated(photos, output)
    before, after = thumbnail_names(["a.png"])
    (thumbnails(output) / before).unlink()
    assert cards(shown(outcome, output))["a.png"][:2] == [None, f"{FOLDER}/thumbnails/{after}"]

    (thumbnails(output) / after).unlink()
    assert cards(shown(outcome, output))["a.png"] == [None, None, "../../my photos/a.png", "a.png"]


def test_photos_that_failed_are_told_below_with_their_reason(photos: Path, output: Path) -> None:
    (photos / "broken.jpg").write_text("<html>not found")
    html = shown(translated(photos, output), output)
    assert list(cards(html)) == ["Süd #1/b.png", "a.png"]
    assert facts(html)[:2] == ["2 photos", "1 failed"]
    told = html[html.index('id="failures"') :]
    assert re.search(r"<li><b>.*/my photos/broken\.jpg</b> a web page, not a picture that can be read</li>", told)


def test_a_set_of_which_nothing_could_be_read_has_a_page_that_says_so(photos: Path, output: Path) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    html = shown(translated(photos, output), output)
    assert facts(html)[:2] == ["0 photos", "2 failed"]
    assert "no photo was translated" in html


def test_files_of_others_that_were_kept_are_counted_and_not_shown(photos: Path, output: Path) -> None:
    output.mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(output / "a.png")
    html = shown(translated(photos, output), output)
    assert list(cards(html)) == ["Süd #1/b.png"]
    assert facts(html)[:2] == ["1 photo", "1 kept as they were, not shown"]


def test_a_second_command_that_finds_all_done_shows_all_of_it(photos: Path, output: Path) -> None:
    first = cards(shown(translated(photos, output), output))
    again = translated(photos, output)
    assert again.count("up to date") == 2
    assert cards(shown(again, output)) == first


def test_a_page_of_somebody_else_is_left_alone_with_a_warning(
    photos: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = translated(photos, output)
    (output / "index.html").write_text("<!doctype html><title>My garden</title>")
    assert showing.write_contact_sheet(output, outcome, thumbnails=thumbnails(output), facts=[]) == output
    assert (output / "index.html").read_text() == "<!doctype html><title>My garden</title>"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"cyclestyle: {output}/index.html is not ours and stays as it is: move it away for a contact sheet"


def test_a_page_that_cannot_be_written_is_the_disk_s_fault(photos: Path, output: Path) -> None:
    outcome = translated(photos, output)
    gone = output.parent / "nowhere"
    with pytest.raises(DiskError, match=r"cannot write .*nowhere/index\.html"):
        showing.write_contact_sheet(gone, outcome, thumbnails=gone / "thumbnails", facts=[])


def test_a_sweep_s_photos_have_a_translation_for_each_label_and_a_name_without_its_folder(
    photos: Path, output: Path
) -> None:
    html = shown(translated(photos, output, count=3), output, labels=("25%", "50%", "100%"))
    assert data(html)["labels"] == ["25%", "50%", "100%"]
    found = cards(html)
    assert list(found) == ["Süd #1/b.png", "a.png"]
    for name, paths in found.items():
        assert paths[5:] == [f"{number}/{name}" for number in range(3)]
        assert (output / str(paths[4])).samefile(photos / name)
        assert len({*paths[:4]}) == 4
        assert all((output / str(path)).is_file() for path in paths)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "in 0 s"), (59.6, "in 1 min 0 s"), (754, "in 12 min 34 s"), (3 * 3600 + 5 * 60 + 40, "in 3 h 5 min")],
)
def test_facts_end_with_the_time_in_words(photos: Path, output: Path, seconds: float, told: str) -> None:
    outcome = translated(photos, output)._replace(elapsed_s=seconds)
    assert facts(shown(outcome, output, facts=("photo2monet", "runs/x"))) == ["2 photos", "photo2monet", "runs/x", told]


def test_what_was_noted_about_a_photo_is_in_its_card(photos: Path, output: Path) -> None:
    outcome = translated(photos, output)
    lines = [line._replace(notes=("first frame only", "no GPS")) for line in outcome.lines]
    assert {row[3] for row in data(shown(outcome._replace(lines=lines), output))["cards"]} == {
        "first frame only; no GPS"
    }
