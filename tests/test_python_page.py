"""Tests that the examples of docs/python.md and of the docstrings of the public names run as printed."""

import doctest
import re
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cyclestyle
from cyclestyle import api
from tests.python_workspace import fill

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
PUBLIC = [getattr(cyclestyle, name) for name in cyclestyle.__all__]
WITH_EXAMPLE = [public for public in PUBLIC if public is not api.TrainingResult]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    fill(folder)
    return folder


def test_python_page_examples_run_in_order(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    script = types.ModuleType("script_of_page")
    monkeypatch.setitem(sys.modules, script.__name__, script)  # a component of the page is found by this name
    names = vars(script)
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)

    assert (names["result"].status, names["result"].step) == ("finished", 6)
    assert len(names["losses"]) == len(set(names["losses"])) == 2
    assert names["painting"].size == (48, 32)
    assert (names["pixels"] == np.asarray(names["painting"])).all()
    assert names["batch"].shape == names["values"].shape == (2, 3, 32, 48)
    assert all(file.is_file() for file in names["files"])


@pytest.mark.parametrize("public", WITH_EXAMPLE, ids=lambda public: public.__name__)
def test_docstring_example_gives_printed_output(
    workspace: Path, tmp_path: Path, public: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    if public is cyclestyle.run_training:
        workspace = tmp_path  # without images and runs of earlier examples
    monkeypatch.chdir(workspace)
    if public is not cyclestyle.run_training and not Path("runs/mine").exists():
        cyclestyle.run_training("+experiment=smoke", "name=mine", "trainer.steps=6")
    shutil.rmtree("models", ignore_errors=True)
    names = {name: getattr(cyclestyle, name) for name in cyclestyle.__all__}
    tests = doctest.DocTestFinder(recurse=False).find(
        public, public.__name__, globs={**names, "Image": Image, "np": np, "torch": torch}
    )
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    (failed, attempted) = runner.run(tests[0])
    assert attempted > 0, "an example"
    assert failed == 0
