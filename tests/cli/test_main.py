"""Tests of `python -m cyclestyle`."""

import subprocess
import sys

import pytest

import cyclestyle


@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        (["--help"], 0, "cyclestyle trains"),
        (["-h"], 0, "cyclestyle trains"),
        (["--version"], 0, f"cyclestyle {cyclestyle.__version__}\n"),
        ([], 2, ""),
        (["train"], 2, ""),
    ],
)
def test_package_prints_overview_or_version(words: list[str], code: int, out: str) -> None:
    done = subprocess.run([sys.executable, "-m", "cyclestyle", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.startswith(out)
    assert bool(done.stdout) == (code == 0)
    assert ("python -m cyclestyle.train" in done.stderr) == (code == 2)
