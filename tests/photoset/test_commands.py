"""The commands as people type them."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cyclestyle.errors import CommandError
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


def test_translate_does_the_good_ones_lists_the_bad_ones_and_ends_with_6(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    photos = tmp_path / "Fotos (2019), it's ö"
    for n in range(3):
        write_picture(photos / f"sub {n}" / "x.jpg", seed=n)
    (photos / "bad.jpg").write_bytes(b"")

    done = command(
        "translate",
        f"checkpoint={tmp_path / 'model'}",
        f"input={photos}",
        f"output={tmp_path / 'aus=gabe 🎨'}",
        "direction=photo2monet",
    )

    assert done.returncode == 6, done.stderr
    first, last, failure = done.stdout.splitlines()
    assert "(step 42), photo2monet, ema weights, on " in first
    assert first.endswith(": 4 to translate")
    assert last.startswith("3 ok, 1 failed in ")
    assert last.endswith(f": {tmp_path / 'aus=gabe 🎨' / 'index.html'}")
    assert failure == f"  {photos / 'bad.jpg'}: empty, not a picture that can be read"
    assert done.stderr == ""
    assert sorted(path.parent.name for path in (tmp_path / "aus=gabe 🎨").rglob("*.jpg")) == ["sub 0", "sub 1", "sub 2"]


def test_evaluate_prints_what_the_demo_asks_for(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    for n in range(3):
        write_picture(tmp_path / "a" / f"{n}.png", seed=n)
        write_picture(tmp_path / "b" / f"{n}.png", seed=10 + n)
    done = command(
        "evaluate",
        f"checkpoint={tmp_path / 'model'}",
        f"input={tmp_path / 'a'}",
        f"truth={tmp_path / 'b'}",
        "direction=photo2monet",
    )
    assert done.returncode == 0, done.stderr
    words = ["PSNR", "photo unchanged", "best global colour map", "this model", "content kept"]
    assert [word for word in words if word not in done.stdout] == []


def test_translate_in_python_returns_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    write_picture(tmp_path / "in" / "x.png")
    for expected in ("1 ok, 0 failed", "1 ok (1 up to date), 0 failed"):
        assert translate(tmp_path / "model", tmp_path / "in", tmp_path / "out", direction="a2b", device="cpu") == 0
        assert expected in capsys.readouterr().out


def test_a_wrong_direction_is_found_before_anything_is_written(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_picture(tmp_path / "in" / "x.png")
    with pytest.raises(CommandError, match="photo2monet or monet2photo"):
        translate(tmp_path / "model", tmp_path / "in", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["translate", "evaluate"])
def test_the_commands_start_without_torch(name: str) -> None:
    code = f"import sys, cyclestyle.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_translate_says_once_that_heic_becomes_jpeg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    for more in ({}, {"format": "heic", "existing": "overwrite"}):  # nothing to do, and nothing that changes
        assert translate(tmp_path / "model", tmp_path / "in", tmp_path / "out", **how, **more) == 0
        assert "HEIC photos" not in capsys.readouterr().out
