"""Tests of scripts/check_words.py: texts that the script reports, and texts that it accepts."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import check_words  # noqa: E402


def rules(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [finding.rule for finding in check_words.check(path)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""What a step makes."""', ["opening"]),
        ('def f():\n    """Of all images."""', ["opening"]),
        ('"""As quick as can be."""', ["opening"]),
        ('"""Losses of a step."""', []),
        ('"""Offer a rate."""', []),
        ("x = 1  # that was measured", ["dangling comment"]),
        ("x = 1  # whose sum is 1", ["dangling comment"]),
        ("x = 1  # seconds", []),
        ("# The run goes on.", ["`goes on`"]),
        ("# Nobody is told.", ["`told`"]),
        ("# `told` is a name here", []),
        ('raise ValueError("training stands still")', ["`stands`"]),
        ('x = "told"', []),
        ("def test_a_run_s_end() -> None: ...", ["test name"]),
        ("def test_errors_are_told() -> None: ...", ["test name"]),
        ("def test_resume_is_bit_exact() -> None: ...", []),
        ("# a standard, stand-alone saying", ["`stand`", "`saying`"]),
    ],
)
def test_docstrings_comments_strings_and_test_names_are_checked(
    source: str, expected: list[str], tmp_path: Path
) -> None:
    assert sorted(rules(tmp_path / "x.py", source + "\n")) == sorted(expected)


def test_comments_of_yaml_are_checked_and_values_are_not(tmp_path: Path) -> None:
    assert rules(tmp_path / "x.yaml", "goes on: 1 # goes on\n# of which\n") == ["`goes on`", "`of which`"]


def test_markdown_is_checked_outside_of_code(tmp_path: Path) -> None:
    page = "It tells all.\n\n```\ntold\n```\n\n`told` and name=told\n"
    assert rules(tmp_path / "x.md", page) == ["`tells`"]


def test_findings_are_printed_with_file_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "tests" / "x_words.py"
    file.write_text("# one\n# told\n")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["check_words.py", str(file)])
            assert check_words.main() == 1
        assert capsys.readouterr().out == "tests/x_words.py:2: `told`: told\n"
    finally:
        file.unlink()


def test_project_files_include_every_checked_file_type() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in check_words.project_files()}
    assert {"cyclestyle/train.py", "configs/train.yaml", "docs/gpu.md", "README.md", "tests/test_train.py"} <= names
