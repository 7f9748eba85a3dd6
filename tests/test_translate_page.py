"""Tests that every command in docs/translate.md works as printed on the page."""

import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cyclestyle import export, translate
from tests.translation.models import write_model, write_picture

ROOT = Path(__file__).parent.parent
COMMANDS = {"cyclestyle.translate": translate, "cyclestyle.export": export}
LINES = re.findall(r"^\$ (.+)$", (ROOT / "docs" / "translate.md").read_text(), re.MULTILINE)
EXTRAS = {"onnx": "onnxruntime", "engine=ray": "ray"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the files that the page assumes: a run, photos, a list of photos, a model file of the 2017 code."""
    folder = tmp_path_factory.mktemp("page")
    write_model(folder / "runs" / "mine", architecture={"name": "resnet", "channels": 4, "blocks": 6})
    names = ["beach.jpg", "harbour.png", "2019/alps.jpg", "2019/hut.webp"]
    for seed, name in enumerate(names):
        write_picture(folder / "photos" / name, size=(70 + seed, 60), seed=seed)
        write_picture(folder / "masks" / Path(name).with_suffix(".png"), size=(70 + seed, 60), seed=seed)
    (folder / "list.txt").write_text("".join(f"photos/{name}\n" for name in names[:2]))
    shutil.copy(ROOT / "tests" / "golden" / "weights" / "resnet9_zip.pth", folder / "latest_net_G_A.pth")
    return folder


def test_translate_page_shows_each_feature() -> None:
    text = "\n".join(LINES)
    keys = "strength= keep= format= quality= resize= metadata= tile= memory= weights= backend=onnx engine=ray torchrun"
    keys += " mask= feather= existing= sheet= batch_size= format=reference format=onnx"
    for key in [*keys.split(), "input=-", "list.txt", ".pth", "cyclestyle.export", "cyclestyle.translate"]:
        assert key in text


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.removeprefix("python -m cyclestyle.")[:90])
def test_command_of_translate_page_works_as_printed(
    workspace: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, module in EXTRAS.items():
        if word in line:
            pytest.importorskip(module, reason=f"the extra with {module} is not installed")
    monkeypatch.chdir(workspace)
    if line.startswith("torchrun"):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line)[1:]]
        subprocess.run(command, check=True, timeout=300, capture_output=True)
        assert len(list((workspace / "shared").rglob("*.*g"))) == 3
        return
    producer, _, consumer = line.rpartition(" | ")
    if producer:
        piped = subprocess.run(producer, shell=True, check=True, capture_output=True).stdout
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    python, flag, module, *arguments = shlex.split(consumer)
    assert (python, flag) == ("python", "-m")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as caught:
        COMMANDS[module].main()
    assert caught.value.code == 0, capsys.readouterr().err
    outputs = [argument.partition("=")[2] for argument in arguments if argument.startswith("output=")]
    assert all((workspace / output).exists() for output in outputs)
