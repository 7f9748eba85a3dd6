"""Tests of commands whose output cannot be encoded or written."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cyclestyle.cli import dispatch
from cyclestyle.cli.streams import TolerantStream, tolerant_streams
from cyclestyle.errors import CommandError
from cyclestyle.monitor.console import Console
from cyclestyle.progress import Counter

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def latin_1() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="latin-1")


def written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("latin-1")  # type: ignore[attr-defined, no-any-return]


def test_characters_that_the_encoding_lacks_are_escaped() -> None:
    stream = latin_1()
    print("café 東", file=TolerantStream(stream))
    assert written(stream) == "café \\u6771\n"


def test_invalid_file_names_are_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    print(os.fsdecode(b"caf\xe9.jpg"), file=TolerantStream(stream), flush=True)
    assert stream.buffer.getvalue() == b"caf\\udce9.jpg\n"  # type: ignore[attr-defined]


def test_text_printed_to_closed_stream_is_discarded_without_error() -> None:
    stream = latin_1()
    stream.close()
    print("text", file=TolerantStream(stream), flush=True)  # type: ignore[arg-type]


def test_pipe_without_reader_discards_text_and_does_not_fail_later() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - closed below
    tolerant = TolerantStream(stream)
    print("first", file=tolerant, flush=True)
    print("second", file=tolerant, flush=True)
    stream.close()  # flushes: this raises a BrokenPipeError unless the file is the null device by now


def test_standard_streams_are_restored_after_use_of_tolerant_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    former = sys.stdout, sys.stderr
    with tolerant_streams():
        assert isinstance(sys.stdout, TolerantStream)
    assert (sys.stdout, sys.stderr) == former


def show_counter() -> None:
    with Counter(2, what="東") as counter:
        counter._printed -= 1000  # a line is due
        counter.advance()


def show_console() -> None:
    console = Console(Path(), domains=("a", "b"), total=2)
    console.metrics(1, {"loss/東": 1.0, "speed/images_per_s": 1.0})
    console.metrics(1, {"東": 1.0})
    console.close()


@pytest.mark.parametrize("show", [show_counter, show_console])
def test_progress_is_shown_on_a_stream_that_cannot_encode_it(
    show: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = latin_1()
    monkeypatch.setattr(sys, "stdout", stream)
    with tolerant_streams():
        show()
    assert "\\u6771" in written(stream)


@pytest.mark.parametrize("show", [show_counter, show_console])
def test_progress_bars_are_shown_on_a_terminal_that_cannot_encode_them(
    show: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = latin_1()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    with tolerant_streams():
        show()
    assert written(stream)


@pytest.mark.parametrize("rank", [0, 1])
def test_mistyped_key_error_is_printed_by_local_rank_0_only(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(sys, "argv", ["train", "trainer.stepz=1"])
    with pytest.raises(SystemExit) as ended:
        dispatch.launch("train", lambda cfg: 0)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "cyclestyle train: no key trainer.stepz: did you mean trainer.steps?\n" if rank == 0 else ""
    )


def test_error_that_concerns_one_rank_is_printed_by_that_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        error = CommandError("only here")
        error.concerns_one_rank = True
        raise error

    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        dispatch.exit_with("train", fail)
    assert "only here" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["translate", "evaluate", "export"])
def test_unencodable_file_name_in_error_does_not_change_exit_code(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cfg: object) -> int:
        raise CommandError("no picture 東.jpg")

    stream = latin_1()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(
        sys, "argv", [command, "checkpoint=東", "input=東", "output=o"][: 2 if command == "export" else 4]
    )
    if command == "evaluate":
        sys.argv.pop()
    with pytest.raises(SystemExit) as ended:
        dispatch.launch(command, fail)
    assert ended.value.code == 2
    assert written(stream) == f"cyclestyle {command}: no picture \\u6771.jpg\n"


@pytest.mark.parametrize(("arguments", "code"), [("trainer.stepz=1", 2), ("--help", 0)])
@pytest.mark.parametrize("redirection", [">&- 2>&- <&-", "| true"])
def test_exit_code_is_kept_if_standard_streams_fail(
    arguments: str, code: int, redirection: str, tmp_path: Path
) -> None:
    script = f"({sys.executable} -m cyclestyle.train {arguments}; echo $? > code) {redirection}"
    ended = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=60)
    assert (tmp_path / "code").read_text().strip() == str(code)
    assert b"Traceback" not in ended.stderr + ended.stdout
