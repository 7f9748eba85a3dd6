"""What watches a run: the grid of probes, the file of numbers, TensorBoard, the console, the profile."""

import collections
import gzip
import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cyclestyle.data.dataset import Batch
from cyclestyle.images import tensors
from cyclestyle.monitor import Console, MetricsFile, Profile, TensorBoard
from cyclestyle.monitor.logger import Phase, Samples
from cyclestyle.monitor.profiler import ProfileWindow, breakdown, markdown
from cyclestyle.monitor.sample_grid import column_titles, grid
from tests.factories import random_batch, tiny_trainer

DOMAINS = ("monet", "photo")
VALUES = {
    "loss/gan_ab": 0.25,
    "loss/gan_ba": 0.5,
    "loss/cycle_a": 1.0,
    "loss/cycle_b": 2.0,
    "loss/discriminator_a": 0.125,
    "speed/images_per_s": 12.34,
    "speed/waiting_for_data": 0.0,
}


def noise(seed: int, count: int = 2, height: int = 20, width: int = 30) -> Samples:
    random = torch.Generator().manual_seed(seed)
    return Samples(*(torch.randint(0, 256, (4, count, 3, height, width), dtype=torch.uint8, generator=random)))


def test_a_grid_has_a_row_for_each_probe_and_its_four_pictures_in_order() -> None:
    probes = noise(0, count=3)
    sheet = np.asarray(grid(probes, column_titles("monet", "photo")))
    assert sheet.shape == (22 + 3 * 24 + 4, 4 * 34 + 4, 3)
    for column, pictures in enumerate((probes.real, probes.translated, probes.reconstructed, probes.identity)):
        for row, picture in enumerate(pictures):
            left, top = 4 + column * 34, 22 + row * 24
            assert np.array_equal(sheet[top : top + 20, left : left + 30], picture.permute(1, 2, 0).numpy())


def test_every_column_of_a_grid_has_a_title() -> None:
    assert column_titles("monet", "photo") == ("monet", "to photo", "and back to monet", "monet to monet")
    sheet = np.asarray(grid(noise(0, width=120), column_titles("monet", "photo")))
    for column in range(4):
        title = sheet[:22, 4 + column * 124 : 124 + column * 124]
        assert (title < 128).any()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_probes_go_through_the_generators_that_they_are_shown_for(ema: float) -> None:
    trainer = tiny_trainer(ema=ema)
    for step in range(3):
        trainer.train_step(random_batch([step]))
    real_a, real_b, *_ = random_batch([7, 8])
    a, b = trainer.sample(real_a, real_b)
    assert trainer.objective.generators.training  # again

    made_by = (trainer.average.module if ema else trainer.objective.generators).eval()
    with torch.no_grad():
        for probes, real, there, back in ((a, real_a, made_by.ab, made_by.ba), (b, real_b, made_by.ba, made_by.ab)):
            pictures = tensors.to_float(trainer.hardware.upload(real))  # in the same layout: sums in the same order
            assert torch.equal(probes.real, real)
            assert torch.equal(probes.translated, tensors.to_uint8(there(pictures)))
            assert torch.equal(probes.reconstructed, tensors.to_uint8(back(there(pictures))))
            assert torch.equal(probes.identity, tensors.to_uint8(back(pictures)))


def metrics_file(folder: Path, start: int = 0) -> MetricsFile:
    return MetricsFile(folder, domains=DOMAINS, start=start)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_log_is_a_line_that_is_there_at_once(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    log.metrics(5, VALUES)
    assert lines(tmp_path) == [{"step": 5, **VALUES}]
    log.close()


def test_a_resumed_file_has_no_step_twice_and_no_half_line(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    for step in range(1, 7):
        log.metrics(step, VALUES)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "loss/ga')  # killed while writing

    log = metrics_file(tmp_path, start=4)  # where a log is due at the start, it is told again
    log.metrics(4, {"loss/gan_ab": float("nan")})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert np.isnan(lines(tmp_path)[-1]["loss/gan_ab"])

    metrics_file(tmp_path, start=5).close()  # a line that is not a number has no way to keep a run from going on
    assert len(lines(tmp_path)) == 4


def test_half_a_line_in_the_middle_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\xff{"step": 2}\n[]\n{"step": 3}\n')
    metrics_file(tmp_path, start=4).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_a_run_that_begins_again_from_the_start_begins_a_new_file(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    log.metrics(1, VALUES)
    log.close()
    metrics_file(tmp_path).close()
    assert lines(tmp_path) == []


def test_samples_are_pictures_named_for_step_and_direction(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    a, b = noise(1), noise(2)
    log.pictures(1200, a, b)
    log.close()
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["step_00001200_monet2photo.png", "step_00001200_photo2monet.png"]
    assert np.array_equal(np.asarray(Image.open(files[0])), np.asarray(grid(a, column_titles("monet", "photo"))))
    assert np.array_equal(np.asarray(Image.open(files[1])), np.asarray(grid(b, column_titles("photo", "monet"))))


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


@pytest.mark.parametrize("start", [0, 4])
def test_curves_and_pictures_of_a_resumed_run_join_without_a_step_twice(tmp_path: Path, start: int) -> None:
    for first, last in ((0, 6), (start, 8)):
        board = TensorBoard(tmp_path, domains=DOMAINS, start=first)
        for step in range(first, last):
            board.pictures(step, noise(step), noise(step))
            board.metrics(step, {"loss/gan_ab": float(last)})
        board.close()

    seen = events(tmp_path)
    curve = seen.Scalars("loss/gan_ab")
    assert [point.step for point in curve] == list(range(8))
    assert [point.value for point in curve] == [6.0] * start + [8.0] * (8 - start)
    assert [picture.step for picture in seen.Images("monet2photo")] == list(range(8))
    assert [picture.step for picture in seen.Images("photo2monet")] == list(range(8))


@pytest.fixture
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_terminal")
def test_in_a_log_the_console_prints_a_plain_line_for_each_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(tmp_path, domains=DOMAINS, start=10, total=110)
    console.on_step(11)
    console.metrics(60, VALUES)
    console.metrics(110, {**VALUES, "speed/waiting_for_data": 0.25})
    console.pictures(110, noise(0), noise(1))
    console.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 60/110  gan 0.750  cycle 3.000  disc 0.125  12.3 images/s  0:00:00 left"
    assert "25% waiting for data" in second
    assert "\x1b" not in first + second


def test_on_a_terminal_the_console_shows_a_bar_with_losses_and_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    console = Console(tmp_path, domains=DOMAINS, start=10, total=110)
    console.metrics(60, VALUES)
    console.on_step(61)
    console.close()
    shown = capsys.readouterr().out
    assert " 61/110" in shown
    assert "gan 0.750  cycle 3.000  disc 0.125  12.3 images/s" in shown
    assert "60/110  gan" not in shown


# A trace of 2 steps of 100 and 60 ms, made by hand: the third one broke off. The backward pass has a thread of its own,
# and the GPU, which runs behind, ends its work after the steps.
MARKS = [
    ("ProfilerStep#8", 1000, 100), ("forward", 1010, 40), ("backward", 1050, 30),
    ("ProfilerStep#9", 1100, 60), ("forward", 1110, 30), ("backward", 1140, 10),
    ("ProfilerStep#10", 1160, 500), ("forward", 1170, 400),
]  # fmt: skip
LAUNCHES = [(1, 995, 1), (2, 1015, 1), (3, 1020, 1), (4, 1055, 2), (5, 1085, 1), (6, 1145, 2), (7, 1175, 1)]
WORK = [(1, 1000, 5), (2, 1020, 20), (3, 1030, 20), (4, 1060, 50), (5, 1110, 6), (6, 1300, 8), (7, 1400, 90)]


def traced(*, gpu: bool) -> list[dict[str, Any]]:
    def event(cat: str, name: str, ts: int, dur: int, tid: int = 1, **args: int) -> dict[str, Any]:
        return {
            "ph": "X",
            "cat": cat,
            "name": name,
            "pid": 1,
            "tid": tid,
            "ts": 1000 * ts,
            "dur": 1000 * dur,
            "args": args,
        }

    marks = [event("user_annotation", *mark) for mark in MARKS]
    marks += [event("gpu_user_annotation", *mark) for mark in MARKS]  # the marks as the GPU saw them: not the clock's
    launches = [event("cuda_runtime", "cudaLaunchKernel", ts, 2, tid, correlation=n) for n, ts, tid in LAUNCHES]
    work = [event("kernel", "conv", ts, dur, 7, correlation=n) for n, ts, dur in WORK]
    other = [event("cpu_op", "aten::conv2d", 1012, 20), {"ph": "M", "name": "process_name", "pid": 1}]
    return [*other, *reversed(marks), *(launches + work if gpu else [])]


def test_parts_and_what_no_part_covers_add_up_to_the_step() -> None:
    found = breakdown(traced(gpu=False), ["forward", "backward", "saving"], steps=2)
    clocks = {name: times.clock_s for name, times in found.parts.items()}
    assert clocks == pytest.approx({"forward": 0.035, "backward": 0.020, "saving": 0, "other": 0.025})
    assert found.step.clock_s == pytest.approx(0.080)
    assert "GPU" not in "".join(markdown(found))


def test_work_of_a_gpu_belongs_to_the_part_that_began_it_and_counts_once_where_it_overlaps() -> None:
    found = breakdown(traced(gpu=True), ["forward", "backward"], steps=2)
    busy = {name: times.device_s for name, times in found.parts.items()}
    assert busy == pytest.approx({"forward": 0.030 / 2, "backward": 0.058 / 2, "other": 0.006 / 2})
    assert found.step.device_s == pytest.approx((0.096 - 0.010 + 0.008) / 2)  # 1020 to 1116 with a gap of 10, then 8
    assert markdown(found) == [
        "| part       | s/step |  share | GPU s/step |",
        "|------------|-------:|-------:|-----------:|",
        "| forward    | 0.0350 |  43.8% |     0.0150 |",
        "| backward   | 0.0200 |  25.0% |     0.0290 |",
        "| other      | 0.0250 |  31.2% |     0.0030 |",
        "| whole step | 0.0800 | 100.0% |     0.0470 |",
    ]


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="the trace has no steps"):
        breakdown([], ["forward"], steps=2)


LOADING_S = 0.03  # at least, for each batch
SMALL = ProfileWindow(wait=1, warmup=1, steps=3)


def slow_batches() -> Iterator[Batch]:
    for draw in itertools.count():
        time.sleep(LOADING_S)  # a disk that is known to be slow
        yield random_batch([draw])


class Clock:
    """A logger that notes when each step was over."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def on_step(self, step: int) -> None:
        self.times_s.append(time.perf_counter())

    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def pictures(self, step: int, a: Samples, b: Samples) -> None: ...
    def close(self) -> None: ...


def profiled(folder: Path, *, steps: int, **settings: Any) -> tuple[list[str], Clock]:
    """Train with a profile; what it warns of, and when the steps were over."""
    told: list[str] = []
    clock, look = Clock(), Profile(folder, parts=list(Phase), window=SMALL, tell=told.append)
    trainer = tiny_trainer(steps=steps, log_every=2, ema=0.9, **settings)
    trainer.fit(slow_batches(), save=lambda last: None, loggers=[clock, look])
    look.close()
    return told, clock


def trace_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads(gzip.decompress((folder / "profile" / "trace.json.gz").read_bytes()))["traceEvents"])


def marked(folder: Path) -> list[tuple[float, float, str]]:
    """Begin, end (seconds) and name of each mark of ours and each step in the trace, in order."""
    return sorted(
        (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6, event["name"])
        for event in trace_of(folder)
        if event.get("cat") == "user_annotation" and not event["name"].startswith("Optimizer")
    )


@pytest.mark.parametrize(("backward", "passes"), [("split", 3), ("joint", 2)])
def test_a_profile_has_the_parts_of_each_recorded_step_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backward: str, passes: int
) -> None:
    told, clock = profiled(tmp_path, steps=6, backward=backward)
    assert told == []
    marks = marked(tmp_path)
    steps = [mark for mark in marks if mark[2].startswith("ProfilerStep#")]
    parts = [mark for mark in marks if mark not in steps]
    assert len(steps) == 3
    assert collections.Counter(name for _, _, name in parts) == {
        "data": 2 * 3,  # loading, sending
        "forward": passes * 3,
        "backward": passes * 3,
        "optimizer": 3 * 3,  # of generators and of discriminators, the average
        "logging": 2,  # after steps 2 and 4
    }
    assert all(end <= begin for (_, end, _), (begin, _, _) in itertools.pairwise(parts))

    # The table, read from the screen, against sums of the marks and against the clock.
    title, _, *rows, files = capsys.readouterr().out.splitlines()
    assert title == "Where the time goes: means of steps 3 to 5"
    assert f"{tmp_path}/profile" in files
    shown = {
        name.strip(): (float(s), float(share)) for name, s, share in (re.split(r"  +", row.strip(" %")) for row in rows)
    }
    assert list(shown) == [*Phase, "other", "whole step"]
    for part in Phase:
        took = sum(end - begin for begin, end, name in parts if name == part) / 3
        assert shown[part][0] == pytest.approx(took, abs=0.6e-4)
    *of_parts, (whole, everything) = shown.values()
    assert sum(seconds for seconds, _ in of_parts) == pytest.approx(whole, abs=len(of_parts) * 0.5e-4 + 0.5e-4)
    assert sum(share for _, share in of_parts) == pytest.approx(everything, abs=len(of_parts) * 0.05 + 0.01)
    assert everything == 100
    assert shown["data"][0] >= LOADING_S
    assert min(shown["forward"][0], shown["backward"][0], shown["optimizer"][0]) > 0
    assert whole <= (clock.times_s[4] - clock.times_s[1]) / 3  # in which the profiler also started

    written = (tmp_path / "profile" / "table.md").read_text()
    for name, (seconds, share) in shown.items():
        assert re.search(rf"^\| {name} +\| +{seconds:.4f} \| +{share:.1f}% \|$", written, re.MULTILINE)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_too_short_for_a_profile_says_so_and_leaves_nothing(tmp_path: Path, steps: int) -> None:
    told, _ = profiled(tmp_path, steps=steps)
    assert told == [
        f"trainer.profile: 0 of 3 steps recorded: they are steps 3 to 5 of this start, "
        f"and training ended after {steps}; set trainer.steps higher"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_amid_its_profile_writes_the_whole_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, _ = profiled(tmp_path, steps=4)
    assert [line.partition(" of")[0] for line in told] == ["trainer.profile: 2"]
    said = capsys.readouterr().out
    assert "means of steps 3 to 4" in said
    (whole,) = re.findall(r"whole step +(\S+)", said)
    steps = [mark for mark in marked(tmp_path) if mark[2].startswith("ProfilerStep#")]
    assert float(whole) == pytest.approx(sum(end - begin for begin, end, _ in steps[:2]) / 2, abs=0.6e-4)


def test_where_a_profile_cannot_be_written_training_goes_on_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("in the way")
    told, clock = profiled(tmp_path, steps=7)
    assert told == ["trainer.profile cannot be written: file exists; training goes on without it"]
    assert len(clock.times_s) == 7
    assert capsys.readouterr().out == ""


def test_marks_that_nobody_records_cost_next_to_nothing(tmp_path: Path) -> None:
    for steps in (1, 4, 6):  # before the recorded steps, amid them, after them
        profiled(tmp_path, steps=steps)
        assert not torch.autograd._profiler_enabled()

    def one_mark_s() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            with torch.profiler.record_function(Phase.FORWARD):
                pass
        return (time.perf_counter() - began) / 1000

    assert (
        min(one_mark_s() for _ in range(5)) < 0.2e-3
    )  # some 20 us where this was written; a step has about 12 of them
