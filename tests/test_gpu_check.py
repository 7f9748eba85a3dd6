"""Tests of the GPU check: its dry run on the CPU, and parts that fail, hang or have no time left."""

import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_check  # noqa: E402
import gpu_numbers  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_scale  # noqa: E402
from gpu_check import Part, code_version, run_parts  # noqa: E402
from gpu_report import FAILED, NOT_RUN, PASSED, UNFINISHED, Record, Report, markdown  # noqa: E402
from measuring import our_trainer, random_batch  # noqa: E402

from cyclestyle.training.trainer import Trainer  # noqa: E402

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
KEY = {"code": "1", "device": "none"}
# Program that starts each part of these tests; it does not import PyTorch.
REPORT = (
    f"import os, sys, time; sys.path[:0] = [{str(ROOT / 'scripts')!r}, {str(ROOT)!r}]\n"
    "from pathlib import Path; from gpu_report import Report\n"
    "folder = Path(sys.argv[1]); (folder / 'ran').open('a').write(sys.argv[2] + ' ')\n"
    f"report = Report(folder, sys.argv[2], key={KEY!r}, seconds=float(sys.argv[3]))\n"
)
PASSES = "report.check('figure', 1, 2)\nreport.end()"
MISSES = "report.check('figure', 3, 2)\nreport.end()"
CRASHES = "report.check('figure', 1, 2)\nprint('about to crash')\nraise RuntimeError('a wire is loose')"
VANISHES = "report.check('figure', 1, 2)\nos._exit(0)"
HANGS = "report.check('figure', 1, 2)\nprint('waiting')\ntime.sleep(600)"


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    """Restore, after each test, PyTorch's global switches, which parts of the GPU check set."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert not torch.are_deterministic_algorithms_enabled()


def run(folder: Path, programs: dict[str, str], *, seconds: float = 60, most_s: float = 60, **settings) -> list[Record]:
    """Run one part for each of `programs` (part name -> source code); a part executes `REPORT`, then its program."""
    folder.mkdir(exist_ok=True)
    parts = [Part(name, f"{name} is shown.", 1, most_s) for name in programs]
    keys = {name: settings.get("key", KEY) for name in programs}
    return run_parts(
        parts,
        folder,
        keys=keys,
        until=time.monotonic() + seconds,
        only=settings.get("only"),
        again=settings.get("again", False),
        command=lambda part, seconds: [
            *(sys.executable, "-c", REPORT + programs[part.name]),
            *(str(folder), part.name, str(seconds)),
        ],
    )


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split()


# -------------------------------------------------------------------------------------------------- dry run on a CPU


@pytest.fixture(scope="module")
def rehearse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Record]:
    """Function that runs a part on the CPU in this process; each part runs only once."""
    folder = tmp_path_factory.mktemp("rehearsal")
    scale = gpu_scale.rehearsal()._replace(ranks=(1,))  # the slow test runs two ranks
    records: dict[str, Record] = {}

    def rehearse_once(part: str) -> Record:
        if part not in records:
            report = Report(folder, part, key=KEY)
            gpu_parts.PARTS[part](report, scale)
            report.end()
            records[part] = report.record
        return records[part]

    return rehearse_once


@pytest.mark.parametrize("part", [part.name for part in gpu_check.PARTS])
def test_each_part_of_gpu_check_passes_dry_run_on_cpu(part: str, rehearse: Callable[[str], Record]) -> None:
    record = rehearse(part)
    assert [check for check in record.checks if not check.passed] == []
    assert record.outcome == PASSED


def test_precision_check_covers_every_loss_and_reports_loss_scale(rehearse: Callable[[str], Record]) -> None:
    record = rehearse("precisions")
    names = "\n".join(check.name for check in record.checks)
    for precision in ("bf16", "fp32, scaled"):
        assert len(re.findall(f"{precision}, mean of loss/", names)) == 8
    assert "65536 after step 1" in record.texts[-1]


def test_gpu_check_tables_have_row_for_every_variant_and_batch_size(rehearse: Callable[[str], Record]) -> None:
    text = "\n".join(rehearse("tables").texts)
    for way in gpu_scale.rehearsal().ways:
        assert len(re.findall(rf"\| \d \| {re.escape(way)} \|", text)) == 2


def test_training_check_stops_on_request_and_shows_translations(rehearse: Callable[[str], Record]) -> None:
    record = rehearse("training")
    assert {check.name: check.found for check in record.checks}["exit code, 75 for stopped on request"] == "75"
    assert record.pictures == ("translated-0.jpg", "translated-1.jpg")
    assert all(picture in markdown([record], {"training": ""}) for picture in record.pictures)


@pytest.mark.slow
def test_dry_run_passes_and_second_run_skips_finished_parts(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/gpu_check.py", "--rehearse", "--out", str(tmp_path / "out")]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 of 2 ranks" in (tmp_path / "out" / "gpu.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.log")}
    assert len(before) == len(gpu_check.PARTS) + 1  # the training writes a second log
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert again.stdout.count("by an earlier call") == len(gpu_check.PARTS)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.log")} == before


# ----------------------------------------------------------------------------------- comparisons detect differences


def test_tf32_rounding_exceeds_fp32_bounds() -> None:
    exact, rounded = (our_trainer("fp32", channels=8) for _ in range(2))
    with torch.no_grad():
        for module in (rounded.objective.generators, rounded.objective.discriminators):
            for weight in module.parameters():
                bits = weight.view(torch.int32)
                weight.copy_(((bits + 0x1000) & ~0x1FFF).view(torch.float32))
    actual, expected = (gpu_numbers.first_step(trainer, random_batch(32, 0)) for trainer in (rounded, exact))
    assert gpu_numbers.loss_difference([actual.losses], [expected.losses]) > 1e-4
    assert gpu_numbers.gradient_difference(actual.gradients["generators"], expected.gradients["generators"]) > 0.02
    assert expected.gradients.keys() == {"generators", "discriminators"}


def test_nan_misses_every_bound(tmp_path: Path) -> None:
    report = Report(tmp_path, "part")
    finite = {"loss/x": 1.0}
    assert not report.check(
        "losses", gpu_numbers.loss_difference([finite, {"loss/x": math.nan}], [finite, finite]), 1.0
    )
    weight = {"weight": torch.ones(2)}
    assert not report.check("gradients", gpu_numbers.gradient_difference({"weight": weight["weight"] / 0}, weight), 1.0)
    assert not report.check("speed", math.nan, 1.0, at_least=True)
    report.end()
    assert report.record.outcome == FAILED


def test_states_differing_in_one_bit_are_unequal() -> None:
    one, other = (gpu_numbers.state(our_trainer("fp32", channels=2, pool=2)) for _ in range(2))
    differing, compared = gpu_numbers.unequal(one, other)
    assert differing == 0
    assert compared > 100
    weight = next(iter(other["networks"][0].values()))
    weight.view(torch.int32).view(-1)[0] += 1
    assert gpu_numbers.unequal(one, other) == (1, compared)


def test_nonfinite_steps_and_loss_scale_changes_are_reported() -> None:
    trainer: Trainer = our_trainer("fp32", channels=2)
    trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # overflows in float32
    course = gpu_numbers.course(trainer, [random_batch(32, step) for step in range(3)])
    assert course.finite_steps == 3
    assert course.scales == [2.0**126, 2.0**125, 2.0**124]
    assert gpu_numbers.changes([4, 4, 2, 2, 4]) == "4 after step 1, 2 after step 3, 4 after step 5, 5 steps in all"
    with torch.no_grad():
        next(trainer.objective.generators.parameters()).fill_(math.nan)
    assert gpu_numbers.course(trainer, [random_batch(32, 3)]).finite_steps < 1


def test_gpu_test_files_are_found() -> None:
    files = gpu_scale.gpu_test_files()
    assert {
        "tests/hardware/test_cuda_graphs.py",
        "tests/hardware/test_device.py",
        "tests/networks/test_padding.py",
    } <= set(files)
    assert "tests/test_gpu_check.py" not in files


# ------------------------------------------------------------------------------------------- parts are independent


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (CRASHES, "ended with 1: RuntimeError: a wire is loose"),
        (VANISHES, "did not come to its end: ok     figure: 1 (at most 2)"),
        ("os.kill(os.getpid(), 9)", "ended with -9: no output"),
        (HANGS, "stopped after 3 s: waiting"),
    ],
    ids=["crash", "vanish", "kill", "hang"],
)
def test_failed_part_does_not_affect_others(program: str, reason: str, tmp_path: Path) -> None:
    first, bad, last = run(tmp_path, {"first": PASSES, "bad": program, "last": PASSES}, most_s=3)
    assert (first.outcome, bad.outcome, last.outcome) == (PASSED, FAILED, PASSED)
    assert bad.reason == reason
    assert Record.read(tmp_path, "bad") == bad
    if "figure" in program:
        assert [check.name for check in bad.checks] == ["figure"]  # the finding that was recorded before the failure
    assert f"| bad | failed | {bad.seconds:.0f} | {reason} |" in (tmp_path / "gpu.md").read_text()


def test_missed_bound_fails_part(tmp_path: Path) -> None:
    missed, empty = run(tmp_path, {"missed": MISSES, "empty": "report.end()"})
    assert (missed.outcome, empty.outcome) == (FAILED, FAILED)
    assert "| figure | 3 | at most 2 | FAILED |" in (tmp_path / "gpu.md").read_text()
    assert "failed   missed      figure" in gpu_check.summary([missed, empty])


def test_timeout_kills_part_and_its_children(tmp_path: Path) -> None:
    program = (
        "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "(folder / 'pid').write_text(str(child.pid))\ntime.sleep(600)"
    )
    (record,) = run(tmp_path, {"part": program}, most_s=3)
    assert record.outcome == FAILED
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < until
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_result_of_a_part_is_written_before_next_part_starts(tmp_path: Path) -> None:
    second = (
        "assert 'first' in (folder / 'first.json').read_text()\n"
        "assert '| first | passed |' in (folder / 'gpu.md').read_text()\n"
        "report.check('figure', 1, 2)\n"
        "assert 'figure' in (folder / 'second.json').read_text()\n"
        "report.end()"
    )
    records = run(tmp_path, {"first": PASSES, "second": second})
    assert [record.outcome for record in records] == [PASSED, PASSED], records


def test_finished_parts_are_skipped_until_code_or_device_change(tmp_path: Path) -> None:
    programs = {"passes": PASSES, "misses": MISSES, "crashes": CRASHES}
    before = run(tmp_path, programs)
    after = run(tmp_path, programs)
    assert ran(tmp_path) == ["passes", "misses", "crashes", "crashes"]  # an unfinished part is run again
    assert after[:2] == before[:2]
    run(tmp_path, {"passes": PASSES}, again=True)
    run(tmp_path, {"passes": PASSES}, key={**KEY, "code": "2"})
    assert ran(tmp_path)[4:] == ["passes", "passes"]


def test_result_page_keeps_results_of_earlier_calls(tmp_path: Path) -> None:
    programs = {"first": PASSES, "second": PASSES}
    run(tmp_path, programs)
    (record,) = run(tmp_path, programs, only=["second"], again=True)
    assert record.part == "second"
    assert ran(tmp_path) == ["first", "second", "second"]
    assert re.findall(r"^\| (\w+) \| passed", (tmp_path / "gpu.md").read_text(), re.MULTILINE) == ["first", "second"]


def test_parts_without_time_left_are_not_run(tmp_path: Path) -> None:
    since = time.monotonic()
    slow, late = run(tmp_path, {"slow": HANGS, "late": PASSES}, seconds=3)
    assert time.monotonic() - since < 10
    assert slow.reason.startswith("stopped after")
    assert (late.outcome, late.reason) == (NOT_RUN, "out of time")
    assert ran(tmp_path) == ["slow"]
    (late,) = run(tmp_path, {"late": PASSES})
    assert late.outcome == PASSED  # a later call has time left and runs the part


def test_damaged_or_outdated_record_reads_as_none(tmp_path: Path) -> None:
    report = Report(tmp_path, "part", key=KEY)
    assert Record.read(tmp_path, "part") == report.record
    assert report.record.outcome == UNFINISHED
    for content in ("", "[]", '{"part": "part"}', '{"checks": [{"other": 1}]}'):
        (tmp_path / "part.json").write_text(content)
        assert Record.read(tmp_path, "part") is None


def test_code_version_depends_on_code_and_configs_only(tmp_path: Path) -> None:
    for folder in ("cyclestyle", "configs", "scripts", "tests"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "cyclestyle" / "part.py"
    file.write_text("x = 1")
    first = code_version(tmp_path)
    (tmp_path / "cyclestyle" / "part.pyc").write_text("compiled")
    assert code_version(tmp_path) == first
    file.write_text("x = 2")
    assert code_version(tmp_path) != first


# -------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Function that runs scripts/gpu_check.py in this process and returns the exit code."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "out"), *arguments])
        return gpu_check.main()

    yield call
    signal.signal(signal.SIGTERM, before)


def test_gpu_check_without_time_left_runs_no_part_and_exits_1(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--rehearse", "--minutes", "0.1") == 1
    printed = capsys.readouterr().out
    assert printed.count("out of time") == len(gpu_check.PARTS)
    for part in gpu_check.PARTS:
        record = Record.read(tmp_path / "out", part.name)
        assert record is not None
        assert record.outcome == NOT_RUN


def test_exit_code_is_0_if_all_parts_passed(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--rehearse", "--only", "fp32") == 0
    assert command("--rehearse", "--only", "fp32", "--minutes", "0.01") == 0  # finished by the earlier call
    assert command("--rehearse", "--only", "fp32", "tests", "--minutes", "0.01") == 1
    assert command("--rehearse", "--only", "fp32", "--minutes", "0.01", "--again") == 1


@NO_GPU
def test_missing_gpu_gives_one_line_error(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "no GPU" in printed.err
    assert not printed.out
    assert not (tmp_path / "out").exists()


def test_data_folder_without_both_domains_is_rejected(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command("--data", str(tmp_path))
    assert exit_info.value.code == 2
    assert "trainA" in capsys.readouterr().err
