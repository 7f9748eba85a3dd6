"""Tests of scripts/score_table.py, which summarises evaluations of several trainings."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "score_table.py"


def write_evaluation(folder: Path, *, kid: float, psnr: float) -> str:
    """Write an evaluate.json with two scores; return its folder."""
    folder.mkdir()
    measured = {"name": "kid", "ruler": "vgg16_hed", "size": 128}
    scores = [
        {**measured, "row": "translated", "value": kid},
        {**measured, "row": "floor", "value": 0.01},
        {"name": "truth_psnr", "ruler": None, "size": None, "row": "translated", "value": psnr},
        {"name": "truth_psnr", "ruler": None, "size": None, "row": "mapped", "value": 15.0},
    ]
    report = {"directions": [{"direction": "a2b", "scores": scores}]}
    (folder / "evaluate.json").write_text(json.dumps(report))
    return str(folder)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_score_table_has_mean_and_range_over_seeds(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / f"s{seed}", kid=seed / 10, psnr=20 + seed) for seed in (1, 2, 6)]
    other = write_evaluation(tmp_path / "other", kid=0.5, psnr=10)

    printed = run(f"paper={','.join(folders)}", f"ema={other}").stdout.splitlines()

    assert printed == [
        "### a2b",
        "",
        "| score | floor | mapped | paper | ema |",
        "|---|---|---|---|---|",
        "| kid, vgg16_hed, 128 px | 0.01 |  | 0.3 (0.1 to 0.6) | 0.5 |",
        "| truth_psnr |  | 15 | 23 (21 to 26) | 10 |",
        "",
    ]


def test_score_table_without_recipes_ends_with_one_line(tmp_path: Path) -> None:
    process = run()
    assert process.returncode != 0
    assert process.stderr.splitlines() == ["give recipes such as paper=scores/paper_s0,scores/paper_s1"]
