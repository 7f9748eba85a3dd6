"""The page docs/extending.md: its code is the code of the user's folder, and its commands are accepted."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from cyclestyle.cli import compose
from cyclestyle.cli.arguments import split_flags
from cyclestyle.networks.registry import load_plugins

USER = Path(__file__).parent / "user"
PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
FILES = {path.name: path.read_text() for path in sorted(USER.glob("*.*"))}
COMMANDS = [
    shlex.split(line, comments=True)
    for language, text in BLOCKS
    if not language
    for line in text.replace("\\\n", "").splitlines()
]
TRAINING = [words for words in COMMANDS if "cyclestyle.train" in words]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with the user's files, from which their modules are imported."""
    shutil.copytree(USER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "my_configs" / "experiment").mkdir(parents=True)
    shutil.copy(USER / "mine.yaml", tmp_path / "my_configs" / "experiment")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_code_in_extending_page_equals_example_files() -> None:
    assert sorted(text for language, text in BLOCKS if language) == sorted(FILES.values())


def test_every_command_in_extending_page_trains_or_translates() -> None:
    assert len(TRAINING) >= len(FILES)
    for words in COMMANDS:
        module = words[words.index("-m") + 1]
        assert module in ("cyclestyle.train", "cyclestyle.translate"), words


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[-3:]))
def test_command_in_extending_page_passes_config_check(words: list[str], folder: Path) -> None:
    start = words.index("-m") + 1
    flags = split_flags(words[start + 1 :])
    notes: list[str] = []
    cfg = compose.compose(
        words[start].rpartition(".")[2], flags.arguments, config_dirs=flags.config_dirs, report=notes.append
    )
    compose.check(cfg)
    load_plugins(cfg.plugins)


def test_commands_in_extending_page_use_every_example_module() -> None:
    text = " ".join(word for words in TRAINING for word in words) + FILES["mine.yaml"]
    for name in FILES:
        assert re.search(rf"\b{Path(name).stem}\.", text), name


def test_links_in_extending_page_lead_to_files_and_sections() -> None:
    docs = Path(__file__).parents[2] / "docs"
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        name, _, section = target.partition("#")
        text = (docs / name).read_text() if name.endswith(".md") else PAGE
        assert (docs / name).exists(), target
        if section:
            titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target
