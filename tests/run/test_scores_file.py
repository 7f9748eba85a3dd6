"""The file scores.jsonl: its lines after a resume, malformed lines, and a disk that cannot be written."""

import json
from pathlib import Path

import pytest

from cyclestyle.run.scores_file import Evaluation, ScoresFile, read_evaluations


def written(folder: Path, *steps: int) -> Path:
    file = ScoresFile(folder, start=0)
    for step in steps:
        file.append(step, {"values": {"kid": 1 / step}, "directions": {}})
    return folder / "scores.jsonl"


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_each_evaluation_has_a_line_with_its_step_and_record(tmp_path: Path) -> None:
    path = written(tmp_path, 2, 4)
    assert path.read_text().endswith('{"step": 4, "values": {"kid": 0.25}, "directions": {}}\n')
    assert read_evaluations(tmp_path) == [Evaluation(2, {"kid": 0.5}), Evaluation(4, {"kid": 0.25})]


def test_no_file_is_created_before_the_first_evaluation(tmp_path: Path) -> None:
    assert len(ScoresFile(tmp_path, start=0)) == 0
    assert list(tmp_path.iterdir()) == []
    assert read_evaluations(tmp_path) == []


def test_resume_removes_lines_from_its_first_step_on_and_keeps_earlier_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, 2, 4, 6)
    first = path.read_bytes().splitlines(keepends=True)[0]
    resumed = ScoresFile(tmp_path, start=4)
    assert (path.read_bytes(), len(resumed)) == (first, 1)  # removed at once: a killed run leaves no later line
    resumed.append(4, {"values": {}})
    assert steps(path) == [2, 4]


def test_resumed_file_equals_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    uninterrupted = written(tmp_path / "a", 2, 4, 6)
    path = written(tmp_path / "b", 2, 4)
    resumed = ScoresFile(tmp_path / "b", start=3)
    for step in (4, 6):
        resumed.append(step, {"values": {"kid": 1 / step}, "directions": {}})
    assert path.read_bytes() == uninterrupted.read_bytes()


@pytest.mark.parametrize("line", ["", '{"step": 3', "[]", '{"step": "x"}', '{"value": 3}', "[" * 100_000, "\0"])
def test_malformed_lines_are_ignored_and_removed_by_the_next_process(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, 2)
    path.write_text(f"{path.read_text()}{line}\n")
    assert [evaluation.step for evaluation in read_evaluations(tmp_path)] == [2]
    assert len(ScoresFile(tmp_path, start=5)) == 1
    assert steps(path) == [2]


@pytest.mark.parametrize("values", ['"x"', "null", '{"kid": "low"}', '{"kid": true}'])
def test_values_that_are_no_numbers_are_left_out(tmp_path: Path, values: str) -> None:
    (tmp_path / "scores.jsonl").write_text(f'{{"step": 3, "values": {values}}}\n')
    assert read_evaluations(tmp_path) == [Evaluation(3, {})]


def test_unwritable_file_gives_one_warning_and_a_later_write_has_all_lines(tmp_path: Path) -> None:
    folder, warnings = tmp_path / "run", []
    file = ScoresFile(folder, start=0, warn=warnings.append)
    for step in (2, 4):
        file.append(step, {"values": {}})
    assert warnings == [f"cannot write {folder}/scores.jsonl: no such file or directory; training continues"]
    folder.mkdir()
    file.append(6, {"values": {}})
    assert steps(folder / "scores.jsonl") == [2, 4, 6]
    assert len(file) == 3
