"""The contact sheet for one run of a command: the links in its cards, and the facts in its header."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.errors import DiskError
from cyclestyle.photoset import runner
from cyclestyle.photoset.contact_sheet import cards as contact_sheet
from cyclestyle.photoset.journal import FOLDER
from cyclestyle.photoset.runner import JobResult, Settings, thumbnail_names
from cyclestyle.photoset.worker_tasks import Reading, Writing
from tests.translation.models import Inverted
from tests.translation.sets import planned, run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Create two photos of different shapes, one of them in a folder with an odd name."""
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


def html_of(outcome: JobResult, output: Path, *, facts: tuple[str, ...] = (), labels: tuple[str, ...] = ()) -> str:
    where = contact_sheet.write_contact_sheet(
        output, outcome, thumbnails=thumbnails(output), facts=facts, labels=labels
    )
    assert where == output / "index.html"
    return where.read_text(encoding="utf-8")


def data(html: str) -> dict:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def cards(html: str) -> dict[str, list[str | None]]:
    """Return the paths in each card, keyed by the card's name; thumbnails come first, then the full files."""
    parsed = data(html)
    return {
        name: [
            None if suffix is None else unquote(start + suffix + end)
            for start, suffix, end in zip(parsed["starts"], suffixes, parsed["ends"], strict=True)
        ]
        for name, _width, _height, _note, *suffixes in parsed["cards"]
    }


def facts(html: str) -> list[str]:
    head = html[html.index('<ul class="facts">') :]
    return [re.sub("<.*?>", "", fact) for fact in re.findall(r"<li>(.*?)</li>", head[: head.index("</ul>")])]


def test_page_links_lead_to_the_right_files(photos: Path, output: Path) -> None:
    html = html_of(translated(photos, output), output)
    paths_by_name = cards(html)
    assert list(paths_by_name) == ["Süd #1/b.png", "a.png"]
    for name, (before, after, original, result) in paths_by_name.items():
        assert all((output / str(path)).is_file() for path in (before, after, original, result))
        assert (output / str(original)).samefile(photos / name)
        assert not Path(str(original)).is_absolute()
        assert result == name
        for small, brightness in ((before, 90), (after, 255 - 90)):
            with Image.open(output / str(small)) as image:
                assert abs(np.asarray(image.convert("RGB")).mean() - brightness) < 4
    assert [row[1:3] for row in data(html)["cards"]] == [[8, 24], [30, 20]]


def test_page_links_work_for_relative_output(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = Path("out")
    html = html_of(translated(Path(photos.name), output), output)
    assert cards(html)["a.png"][2] == "../my photos/a.png"
    assert "<h1>out</h1>" in html


def test_card_shows_full_size_images_if_thumbnails_are_missing(photos: Path, output: Path) -> None:
    outcome = translated(photos, output)
    before, after = thumbnail_names(["a.png"])
    (thumbnails(output) / before).unlink()
    assert cards(html_of(outcome, output))["a.png"][:2] == [None, f"{FOLDER}/thumbnails/{after}"]

    (thumbnails(output) / after).unlink()
    assert cards(html_of(outcome, output))["a.png"] == [None, None, "../../my photos/a.png", "a.png"]


def test_failed_photos_are_listed_with_reason(photos: Path, output: Path) -> None:
    (photos / "broken.jpg").write_text("<html>not found")
    html = html_of(translated(photos, output), output)
    assert list(cards(html)) == ["Süd #1/b.png", "a.png"]
    assert facts(html)[:2] == ["2 photos", "1 failed"]
    section = html[html.index('id="failures"') :]
    assert re.search(r"<li><b>broken\.jpg</b> a web page, not a picture that can be read</li>", section)


def test_page_is_written_if_all_photos_failed(photos: Path, output: Path) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    html = html_of(translated(photos, output), output)
    assert facts(html)[:2] == ["0 photos", "2 failed"]
    assert "no photo was translated" in html


def test_photo_whose_output_path_holds_another_file_is_counted_but_has_no_card(photos: Path, output: Path) -> None:
    output.mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(output / "a.png")
    html = html_of(translated(photos, output), output)
    assert list(cards(html)) == ["Süd #1/b.png"]
    assert facts(html)[:2] == ["1 photo", "1 kept as they were, not shown"]


def test_repeated_command_writes_the_same_cards(photos: Path, output: Path) -> None:
    first = cards(html_of(translated(photos, output), output))
    again = translated(photos, output)
    assert again.count("up to date") == 2
    assert cards(html_of(again, output)) == first


def test_existing_index_html_is_kept_with_a_warning(
    photos: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = translated(photos, output)
    (output / "index.html").write_text("<!doctype html><title>My garden</title>")
    assert contact_sheet.write_contact_sheet(output, outcome, thumbnails=thumbnails(output), facts=[]) == output
    assert (output / "index.html").read_text() == "<!doctype html><title>My garden</title>"
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"cyclestyle: {output}/index.html is not a contact sheet of cyclestyle and is kept: move it away to get one"
    )


def test_unwritable_page_is_a_disk_error(photos: Path, output: Path) -> None:
    outcome = translated(photos, output)
    missing = output.parent / "nowhere"
    with pytest.raises(DiskError, match=r"cannot write .*nowhere/index\.html"):
        contact_sheet.write_contact_sheet(missing, outcome, thumbnails=missing / "thumbnails", facts=[])


def test_card_has_one_translation_per_strength(photos: Path, output: Path) -> None:
    html = html_of(translated(photos, output, count=3), output, labels=("25%", "50%", "100%"))
    assert data(html)["labels"] == ["25%", "50%", "100%"]
    paths_by_name = cards(html)
    assert list(paths_by_name) == ["Süd #1/b.png", "a.png"]
    for name, paths in paths_by_name.items():
        assert paths[5:] == [f"{number}/{name}" for number in range(3)]
        assert (output / str(paths[4])).samefile(photos / name)
        assert len({*paths[:4]}) == 4
        assert all((output / str(path)).is_file() for path in paths)


@pytest.mark.parametrize(
    ("seconds", "duration"),
    [(0.2, "in 0 s"), (59.6, "in 1 min 0 s"), (754, "in 12 min 34 s"), (3 * 3600 + 5 * 60 + 40, "in 3 h 5 min")],
)
def test_page_header_ends_with_duration(photos: Path, output: Path, seconds: float, duration: str) -> None:
    outcome = translated(photos, output)._replace(elapsed_s=seconds)
    assert facts(html_of(outcome, output, facts=("photo2monet", "runs/x"))) == [
        "2 photos",
        "photo2monet",
        "runs/x",
        duration,
    ]


def test_notes_are_shown_in_the_card(photos: Path, output: Path) -> None:
    outcome = translated(photos, output)
    rows = [row._replace(notes=("first frame only", "no GPS")) for row in outcome.lines]
    assert {card[3] for card in data(html_of(outcome._replace(lines=rows), output))["cards"]} == {
        "first frame only; no GPS"
    }


def test_formats_that_browsers_cannot_show_get_copies_for_the_large_view(photos: Path, output: Path) -> None:
    Image.fromarray(np.full((40, 2700, 3), 90, dtype=np.uint8)).save(photos / "c.tif")
    outcome = translated(photos, output)
    paths_by_name = cards(html_of(outcome, output))
    assert paths_by_name["a.png"][4:] == [None, None]
    *_, original, result, photo_copy, copy = paths_by_name["c.tif"]
    assert (output / str(original)).samefile(photos / "c.tif")
    assert result == "c.tif"
    for path, brightness in ((photo_copy, 90), (copy, 255 - 90)):
        with Image.open(output / str(path)) as image:
            assert (image.format, image.size) == ("WEBP", (2560, 38))
            assert abs(np.asarray(image.convert("RGB")).mean() - brightness) < 4


def test_missing_copies_for_the_large_view_are_written_by_a_later_command(photos: Path, output: Path) -> None:
    Image.fromarray(np.full((15, 30, 3), 90, dtype=np.uint8)).save(photos / "c.tif")
    outcome = translated(photos, output)
    *_, copy = cards(html_of(outcome, output))["c.tif"]
    (output / str(copy)).unlink()
    plan = planned(photos, output)
    settings = Settings(Reading(), Writing(output, sheet=thumbnails(output)), "settings")
    runner.complete_sheet(plan, runner.run_plan(plan, Inverted(), settings), settings, 0)
    plan.journal.release()
    assert (output / str(copy)).is_file()


def test_page_contains_no_absolute_path(photos: Path, output: Path, tmp_path: Path) -> None:
    (photos / "Süd #1" / "broken.jpg").write_text("<html>not found")
    outcome = translated(photos, output)
    reason = f"cannot write {output}/Süd #1/b.png: permission denied"
    rows = [row if row.status == "failed" else row._replace(notes=(f"see {photos}/a.png",)) for row in outcome.lines]
    rows.append(rows[0]._replace(source=photos / "d.png", status="failed", reason=reason))
    html = html_of(outcome._replace(lines=rows), output)
    assert str(tmp_path) not in html
    assert "<b>Süd #1/broken.jpg</b>" in html
    assert "<b>d.png</b> cannot write Süd #1/b.png: permission denied" in html


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DiskError("the disk is full")], ids=type)
def test_stopped_command_writes_a_page_of_the_finished_photos(photos: Path, output: Path, error: BaseException) -> None:
    for number in range(3):
        Image.fromarray(np.full((20, 30, 3), 90, dtype=np.uint8)).save(photos / f"{number}.png")
    plan = planned(photos, output)
    settings = Settings(Reading(), Writing(output, sheet=thumbnails(output)), "settings")
    written: list[str] = []

    class Stopped(Inverted):
        def __call__(self, pixels: torch.Tensor, *, advance: object = None) -> list[torch.Tensor]:
            if len(self.batches) == 2:
                raise error
            return super().__call__(pixels, advance=advance)

    def command() -> None:
        with runner.unfinished(plan, settings, report=lambda outcome: written.append(html_of(outcome, output))):
            runner.run_plan(plan, Stopped(), settings, batch_size=1, workers=0)

    with pytest.raises(type(error)):
        command()
    plan.journal.release()
    (html,) = written
    assert len(cards(html)) >= 1
    assert facts(html)[:2] == [f"{len(cards(html))} photo{'s' if len(cards(html)) > 1 else ''}",
                               f"stopped early: {5 - len(cards(html))} remain"]  # fmt: skip
