"""The translate and evaluate commands, started as on a command line."""

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


def test_translate_with_failed_photos_lists_them_and_exits_with_6(tmp_path: Path) -> None:
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
