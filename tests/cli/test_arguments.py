"""Tests of argument parsing, of suggestions for mistyped words, and of help generated from the YAML files."""

from pathlib import Path

import pytest

from cyclestyle.cli import arguments, compose
from cyclestyle.cli import help as help_pages
from cyclestyle.errors import CommandError, DataError

CONFIGS = compose.config_dir()
FILES = sorted(CONFIGS.rglob("*.yaml"))
EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("typed", ["data.a=x=y", "+data.a=x=y", "++data.a=x=y"])
def test_argument_is_split_at_first_equals_sign_without_leading_pluses(typed: str) -> None:
    assert arguments.split(typed) == ("data.a", "x=y")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("foo", "foo: expected key=value"),
        ("=3", "=3: expected key=value"),
        ("data.root=", "data.root= has no value"),
        ("input=  ", "input= has no value"),
    ],
)
def test_malformed_argument_error_names_argument(typed: str, message: str) -> None:
    with pytest.raises(CommandError) as caught:
        arguments.split(typed)
    assert message in str(caught.value)


def test_tilde_is_expanded_in_path_arguments_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert arguments.literal(arguments.split("input=~/photos/")) == "/home/ada/photos/"
    assert arguments.literal(arguments.split("input=~")) == "/home/ada"
    assert arguments.literal(arguments.split("input=a~/b")) == "a~/b"
    assert arguments.literal(arguments.split("input=~nobody at all/b")) == "~nobody at all/b"
    assert arguments.literal(arguments.split("name=~")) == "~"


def test_flags_are_separated_from_arguments() -> None:
    flags = arguments.split_flags(["a=1", "--cfg", "job", "-m", "b=2"])
    assert (flags.help, flags.print_config, flags.multirun, flags.arguments) == (False, True, True, ["a=1", "b=2"])
    assert arguments.split_flags(["-h"]).help
    assert arguments.split_flags(["--cfg=job"]).print_config


@pytest.mark.parametrize("words", [["--hlep"], ["-x"]])
def test_unknown_flag_error_names_flag(words: list[str]) -> None:
    with pytest.raises(CommandError, match=f"no flag {words[0]}: there are --help"):
        arguments.split_flags(words)


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("trainer.stesp", "trainer.steps"),
        ("steps", "trainer.steps"),
        ("stpes", "trainer.steps"),
        ("genrator", "generator"),
        ("qqq", ""),
    ],
)
def test_closest_match_considers_last_part_of_dotted_key(word: str, right: str) -> None:
    assert arguments.closest_match(word, ["name", "generator", "trainer.steps", "trainer.epochs", "ema.decay"]) == right


def test_unknown_word_error_lists_all_choices() -> None:
    assert (
        str(arguments.unknown_key_error("generator", "qqq", ["resnet", "unet"]))
        == "no generator qqq: there are resnet, unet"
    )


def test_error_report_has_at_most_six_lines() -> None:
    error = DataError("\n".join(["broken files:", *"abcdefgh"]))
    assert arguments.report("train", error).splitlines() == ["cyclestyle train: broken files:", *"abcde"]


def test_key_value_and_comment_are_read_from_lines_of_yaml_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "# head\ndefaults:\n  - a: b\n\na: 1 # one\nb: # nodes\n  c: [1, 2] # two: 2\n  d: x#y\ne: http://x # z\n"
    )
    assert [entry[:3] for entry in help_pages.yaml_entries(file)] == [
        ("a", "1", "one"),
        ("b", "", "nodes"),
        ("b.c", "[1, 2]", "two: 2"),
        ("b.d", "x#y", ""),
        ("e", "http://x", "z"),
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_config_file_has_header_and_a_comment_for_every_key(file: Path) -> None:
    keys = [entry for entry in help_pages.yaml_entries(file) if entry.value]
    assert [entry.key for entry in keys if not entry.comment and not entry.key.endswith("_target_")] == []
    first = help_pages.header(file)[0]
    assert first.endswith((".", "?"))
    assert len(first) < 110


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_help_reads_every_key_of_config_file(file: Path) -> None:
    lines = file.read_text().splitlines()
    keys = [line for line in lines if ":" in line.split("#")[0] and not line.lstrip().startswith(("-", "defaults:"))]
    assert len(list(help_pages.yaml_entries(file))) == len(keys)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiment_header_states_command_hardware_time_and_result(file: Path) -> None:
    head = help_pages.header(file)
    assert f"  python -m cyclestyle.train experiment={file.stem}" in head
    for word in ("Hardware:", "Time:", "Expected:"):
        assert any(line.startswith(word) and line.removeprefix(word).strip() for line in head)


@pytest.mark.parametrize("command", ["train", "translate", "evaluate"])
def test_help_text_is_complete_and_fits_120_columns(command: str) -> None:
    text = help_pages.help_text(CONFIGS, command, compose.groups(command))
    cfg = compose.compose(command, [])
    rows = [line.split() for line in text.splitlines()]
    keys = [
        key
        for key, value in compose.walk(compose.to_plain(cfg))
        if not isinstance(value, dict) and "_target_" not in key
    ]
    assert [key for key in keys if not any(row[:1] == [key] and len(row) > 2 for row in rows)] == []
    for group in compose.groups(command):
        for option in help_pages.option_files([CONFIGS], group):
            label = option if group == "experiment" else f"{group}={option}"
            assert any(row[:1] == [label] and len(row) > 2 for row in rows)
    assert max(map(len, text.splitlines())) <= 120
    assert f"python -m cyclestyle.{command} " in text


def test_help_lists_keys_of_non_default_options() -> None:
    assert "Keys: levels, detail." in help_pages.describe_option(
        help_pages.option_files([CONFIGS], "generator"), "unet", "resnet"
    )
    assert "Keys" not in help_pages.describe_option(help_pages.option_files([CONFIGS], "generator"), "resnet", "resnet")
