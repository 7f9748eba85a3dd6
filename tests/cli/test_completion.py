"""Tests of completion: its candidates, and the script in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cyclestyle.cli import completion, compose
from cyclestyle.errors import CommandError

BASH = shutil.which("bash")

# Calls the function that bash has registered for a command as bash does after TAB, and prints the completions.
TAB = """
COMP_LINE="$LINE"; COMP_POINT=${#LINE}
IFS=' ' read -ra COMP_WORDS <<< "$LINE"
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
spec=$(complete -p "${COMP_WORDS[0]##*/}")
function=${spec##*-F }; function=${function%% *}
"$function"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def candidates(word: str, command: str = "train") -> list[str]:
    root = compose.config_dir() / f"{command}.yaml"
    return completion.candidates(word, root, compose.config_folders(), compose.groups(command))


def test_completion_offers_keys_options_booleans_and_flags() -> None:
    assert candidates("trainer.st") == ["trainer.steps="]
    assert candidates("+generator.b") == ["+generator.blocks="]
    assert candidates("gener")[0] == "generator="
    assert candidates("generator=u") == ["generator=unet", "generator=unet_small"]
    assert "experiment=monet" in candidates("experiment=")
    assert candidates("trainer.recompute=") == ["trainer.recompute=true", "trainer.recompute=false"]
    assert candidates("data.a=pho") == []
    assert candidates("--v") == ["--version"]
    assert candidates("outp", "translate") == ["output="]
    assert candidates("generator", "translate") == []


def test_completion_for_another_shell_is_an_error() -> None:
    with pytest.raises(CommandError, match="no completion for fish"):
        completion.script("fish")
    assert completion.script("install=bash") == completion.script("bash")
    assert completion.script("zsh").endswith(completion.script("bash"))


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("python -m cyclestyle.train generator=un", ["unet", "unet_small"]),
        ("python -m cyclestyle.train seed=3 trainer.st", ["trainer.steps="]),
        ("python -m cyclestyle.translate outp", ["output="]),
        ("python -m json.tool outp", [""]),
        ("python script.py outp", [""]),
        ("cyclestyle-train experiment=mo", ["monet"]),
    ],
)
def test_bash_completes_arguments(tmp_path: Path, line: str, replies: list[str]) -> None:
    for name, module in (("python", '"$@"'), ("cyclestyle-train", '-m cyclestyle.train "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\nexec {sys.executable} {module}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LINE": line}
    environment["PYTHONPATH"] = str(Path(compose.__file__).parents[2])
    done = subprocess.run(
        ["bash", "--norc", "-c", completion.script("bash") + TAB],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout.splitlines(), done.stderr) == (replies, "")
