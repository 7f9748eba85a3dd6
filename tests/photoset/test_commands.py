"""The translate and evaluate commands, started as on a command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cyclestyle.errors import CommandError
from cyclestyle.filesystem.atomic import megabytes
from cyclestyle.hardware.memory import LIBRARY_BYTES, PHOTO_BYTES
from cyclestyle.translate import translate
from tests.translation.models import noise, write_model, write_picture


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"cyclestyle.{name}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_translate_lists_failed_photos_and_exits_with_code_6(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    photos = tmp_path / "Fotos (2019), it's ö"
    for n in range(3):
        write_picture(photos / f"sub {n}" / "x.jpg", seed=n)
    (photos / "bad.jpg").write_bytes(b"")

    process = command(
        "translate",
        f"checkpoint={tmp_path / 'model'}",
        f"input={photos}",
        f"output={tmp_path / 'aus=gabe 🎨'}",
        "direction=photo2monet",
    )

    assert process.returncode == 6, process.stderr
    first, last, failure = process.stdout.splitlines()
    assert "(step 42), photo2monet, ema weights, on " in first
    assert first.endswith(": 4 to translate")
    assert last.startswith("3 ok, 1 failed in ")
    assert last.endswith(f": {tmp_path / 'aus=gabe 🎨' / 'index.html'}")
    assert failure == f"  {photos / 'bad.jpg'}: empty, not a picture that can be read"
    assert process.stderr == ""
    assert sorted(path.parent.name for path in (tmp_path / "aus=gabe 🎨").rglob("*.jpg")) == ["sub 0", "sub 1", "sub 2"]


def test_evaluate_prints_scores_and_baselines(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    for n in range(3):
        write_picture(tmp_path / "a" / f"{n}.png", seed=n)
        write_picture(tmp_path / "b" / f"{n}.png", seed=10 + n)
    process = command(
        "evaluate",
        f"checkpoint={tmp_path / 'model'}",
        f"input={tmp_path / 'a'}",
        f"truth={tmp_path / 'b'}",
        "direction=photo2monet",
    )
    assert process.returncode == 0, process.stderr
    words = ["PSNR", "photo unchanged", "best global colour map", "this model", "content kept"]
    assert [word for word in words if word not in process.stdout] == []


def test_translate_function_returns_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    write_picture(tmp_path / "in" / "x.png")
    for expected in ("1 ok, 0 failed", "1 ok (1 up to date), 0 failed"):
        assert translate(tmp_path / "model", tmp_path / "in", tmp_path / "out", direction="a2b", device="cpu") == 0
        assert expected in capsys.readouterr().out


def test_summary_of_a_single_file_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    write_picture(tmp_path / "x.png")
    how = {"direction": "photo2monet", "device": "cpu", "workers": 0}
    for counted in ("1 ok, 0 failed", "1 ok (1 up to date), 0 failed"):
        assert translate(tmp_path / "model", tmp_path / "x.png", tmp_path / "out" / "y.png", **how) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(counted)
        assert last.endswith(f": {tmp_path / 'out' / 'y.png'}")
    assert translate(tmp_path / "model", tmp_path / "x.png", tmp_path / "folder", sheet=False, **how) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f": {tmp_path / 'folder' / 'x.png'}")


def test_ignored_files_are_counted_in_summary_report_and_contact_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model")
    write_picture(tmp_path / "in" / "x.jpg")
    write_picture(tmp_path / "in" / "X.JPG", seed=1)
    for name in ("1.CR2", "2.CR2", "3.cr2", "1.xmp"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "@eaDir").mkdir()
    how = {"direction": "photo2monet", "device": "cpu", "workers": 0}
    assert translate(tmp_path / "model", tmp_path / "in", tmp_path / "out", **how) == 0
    _, renamed, _, last = capsys.readouterr().out.splitlines()
    assert (
        renamed == "names that are taken, or differ only in capitals: 1 translation has another name, such as x-2.jpg"
    )
    text = "passed over: 4 files: 3 .CR2, 1 .xmp; 1 hidden or system folder: @eaDir"
    assert last == f"  {text}"
    assert f"<li>{text}</li>" in (tmp_path / "out" / "index.html").read_text()
    *rows, row = map(json.loads, (tmp_path / "out" / ".cyclestyle" / "report.jsonl").read_text().splitlines())
    assert len(rows) == 2
    assert row == {"status": "passed over", "files": {".CR2": 3, ".xmp": 1}, "folders": {"@eaDir": 1}}


MEASURED = """
import sys
from cyclestyle.hardware.memory import resident_peak
from cyclestyle.translation.pipeline import TranslationPipeline
from cyclestyle.translate import translate
import cyclestyle.photoset.runner, cyclestyle.photoset.ray_engine, cyclestyle.photoset.contact_sheet.cards
folder, limit = sys.argv[1], int(sys.argv[2])
how = {"direction": "photo2monet", "device": "cpu", "workers": 0, "threads": 1, "precision": "fp32"}
translate(folder + "/model", folder + "/small.png", folder + "/out", **how)
before = resident_peak()
translate(folder + "/model", folder + "/large.png", folder + "/out", memory=limit, **how)
print(before, resident_peak())
"""


@pytest.mark.parametrize(("channels", "limit_mb"), [(8, 300), pytest.param(16, 250, marks=pytest.mark.slow)])
def test_peak_memory_of_translation_respects_memory_limit(tmp_path: Path, channels: int, limit_mb: int) -> None:
    """A photo of 4 megapixels, whose network needs more than the limit when it runs on the whole photo."""
    write_model(tmp_path / "model", architecture={"name": "resnet", "channels": channels, "blocks": 1})
    write_picture(tmp_path / "small.png", size=(64, 64))
    Image.new("RGB", (2000, 2000), (120, 90, 60)).save(tmp_path / "large.png")
    limit = limit_mb * 1_000_000
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), str(limit)], capture_output=True, text=True, timeout=100
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert process.stdout.count("1 ok, 0 failed") == 2, process.stdout
    before, peak = map(int, lines[-1].split())
    assert peak <= before + limit + LIBRARY_BYTES + PHOTO_BYTES * 2000**2
    assert lines[-2].startswith(f"peak memory {megabytes(peak)}: ")
    assert f"up to memory={limit_mb} MB for the network" in lines[-2]


def test_bad_direction_is_rejected_before_output_is_created(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_picture(tmp_path / "in" / "x.png")
    with pytest.raises(CommandError, match="photo2monet or monet2photo"):
        translate(tmp_path / "model", tmp_path / "in", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["translate", "evaluate"])
def test_command_modules_do_not_import_torch(name: str) -> None:
    code = f"import sys, cyclestyle.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_translate_prints_number_of_heic_photos_that_become_jpeg(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heif = pytest.importorskip("pillow_heif", reason="HEIC needs the extra `heic`")
    heif.register_heif_opener()
    write_model(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for n in range(2):
        Image.fromarray(noise(24, 20, seed=n)).save(tmp_path / "in" / f"{n}.heic", "HEIF")
    write_picture(tmp_path / "in" / "x.png")
    how = {"direction": "photo2monet", "device": "cpu", "workers": 0}
    line = "HEIC photos that become JPEG (quality=95): 2; format=heic keeps HEIC"
    assert translate(tmp_path / "model", tmp_path / "in", tmp_path / "out", **how) == 0
    assert capsys.readouterr().out.splitlines()[1] == line
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == [
        "0.jpg", "1.jpg", "index.html", "x.png",
    ]  # fmt: skip
    for more in ({}, {"format": "heic", "existing": "overwrite"}):  # all up to date, then HEIC stays HEIC
        assert translate(tmp_path / "model", tmp_path / "in", tmp_path / "out", **how, **more) == 0
        assert "HEIC photos" not in capsys.readouterr().out
