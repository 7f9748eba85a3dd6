"""Profile of a few training steps: a trace of all operations, and a table with the time of each phase."""

import contextlib
import gzip
import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile, schedule

from cyclestyle.errors import warn
from cyclestyle.filesystem.atomic import atomic_write, write_text
from cyclestyle.monitor.logger import Samples

OTHER, STEP = "other", "whole step"  # rows of the table after the phases
_UNITS_PER_S = 1e6  # times in a trace are in microseconds


class ProfileWindow(NamedTuple):
    """Window of recorded steps, counted from the start of the process; a process records only once."""

    wait: int = 5  # steps without profiler, in which networks are compiled and convolution algorithms are chosen
    warmup: int = 3  # steps with profiler whose events are discarded
    steps: int = 5  # recorded steps

    @property
    def before(self) -> int:
        """Number of steps before the first recorded step."""
        return self.wait + self.warmup

    @property
    def end(self) -> int:
        """Number of the last recorded step, counted from the start of the process."""
        return self.before + self.steps


DEFAULT_WINDOW = ProfileWindow()


class Profile:
    """Records some steps of this process with PyTorch's profiler; writes `profile/` in the run folder, prints a table.

    If the files cannot be written, one warning is given and training continues.

    Args:
        folder: run folder.
        phases: names of the phases of a step, as marked in the trace; phases do not overlap.
        device: type of the training device; GPU times are recorded only for `cuda`.
        window: which steps to record, counted from the start of this process, not from the start of the run.
        warn: function that receives the text of each warning.
    """

    def __init__(
        self,
        folder: Path,
        *,
        phases: Sequence[str],
        device: str = "cpu",
        window: ProfileWindow = DEFAULT_WINDOW,
        warn: Callable[[str], None] = warn,
    ) -> None:
        self._folder, self._phases, self._window, self._warn = folder / "profile", phases, window, warn
        self._done = self._last = 0  # number of steps of this process; number of the latest step in the run
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences Kineto's own log lines
        self._profiler: profile | None = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])],
            schedule=schedule(wait=window.wait, warmup=window.warmup, active=window.steps, repeat=1),
        )
        self._profiler.start()

    def on_step(self, step: int) -> None:
        """Advance the profiler; write the profile after the last recorded step."""
        if self._profiler is None:
            return
        self._done, self._last = self._done + 1, step
        self._profiler.step()
        if self._done == self._window.end:
            self._finish(self._profiler)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Do nothing: the profiler saves no metrics."""

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Do nothing: the profiler saves no sample images."""

    def close(self) -> None:
        """If recording is not complete, end it, warn, and write the steps that were recorded."""
        if self._profiler is None:
            return
        recorded = max(self._done - self._window.before, 0)
        self._warn(
            f"trainer.profile: {recorded} of {self._window.steps} steps recorded: they are steps "
            f"{self._window.before + 1} to {self._window.end} of this start, and training ended after {self._done}; "
            f"set trainer.steps higher"
        )
        self._finish(self._profiler)

    def _finish(self, profiler: profile) -> None:
        """Stop the profiler; if any steps were recorded, write their trace and table, and print the table."""
        self._profiler = None
        profiler.stop()
        recorded = self._done - self._window.before
        if recorded < 1:
            return
        try:
            trace = _exported(profiler)
            times = breakdown(json.loads(trace)["traceEvents"], self._phases, steps=recorded)
            self._folder.mkdir(exist_ok=True)
            with atomic_write(self._folder / "trace.json.gz") as stream:
                stream.write(gzip.compress(trace))
            title = f"Where the time goes: means of {_steps(self._last - recorded + 1, self._last)}"
            write_text(
                self._folder / "table.md", "\n".join([f"# {title}", "", *markdown(times), "", *_notes(times), ""])
            )
        except (OSError, ValueError, KeyError) as error:  # a disk error, or a trace that is incomplete or malformed
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._warn(f"trainer.profile cannot be written: {reason.lower()}; training continues without it")
            return
        files = f"{self._folder}: table.md, and trace.json.gz for https://ui.perfetto.dev or chrome://tracing"
        with contextlib.suppress(OSError):  # stdout may be a closed pipe
            print("\n".join([title, *(f"  {line}" for line in plain(times)), files]), flush=True)


class Times(NamedTuple):
    """Mean seconds per step in one phase: wall-clock time, and the GPU's busy time for work launched in the phase."""

    clock_s: float
    device_s: float


class Breakdown(NamedTuple):
    """Mean times of the whole step, of each phase and of OTHER (the rest of the step).

    `phases` includes OTHER, so the sum of its wall-clock times is the wall-clock time of `step`.
    """

    phases: Mapping[str, Times]
    step: Times


def breakdown(events: Iterable[Mapping[str, Any]], phases: Sequence[str], *, steps: int) -> Breakdown:
    """Compute the mean times per step of each phase from a trace.

    GPU work counts for the phase during which it was launched (by any thread), even if the GPU executes it in a
    later phase. Time in which several GPU operations run concurrently counts once.

    Args:
        events: events of a Chrome trace as PyTorch writes it.
        phases: names of the phases, as marked in the trace.
        steps: number of steps to use, beginning with the first in the trace. Later steps are ignored, since the last
            step in a trace may be incomplete.

    Raises:
        ValueError: the trace has no steps.
    """
    marks, launch_times, work = _parse_events(events, phases)
    spans = [mark for mark in marks if mark.name.startswith("ProfilerStep#")][:steps]
    if not spans:
        raise ValueError("the trace has no steps")
    marks = [mark for mark in marks if mark.name in phases and spans[0].start <= mark.start < spans[-1].end]
    starts = [mark.start for mark in marks]

    def phase_at(time: float) -> str:
        index = bisect_right(starts, time) - 1
        return marks[index].name if index >= 0 and time < marks[index].end else OTHER

    busy: dict[str, list[Span]] = {name: [] for name in (*phases, OTHER)}
    for correlation, span in work:
        if spans[0].start <= launch_times.get(correlation, float("-inf")) < spans[-1].end:
            busy[phase_at(launch_times[correlation])].append(span)

    def mean(clock: float, device: list[Span]) -> Times:
        return Times(clock / _UNITS_PER_S / len(spans), _union_length(device) / _UNITS_PER_S / len(spans))

    clocks = {name: sum(mark.end - mark.start for mark in marks if mark.name == name) for name in phases}
    whole = sum(span.end - span.start for span in spans)
    clocks[OTHER] = whole - sum(clocks.values())
    return Breakdown(
        {name: mean(clock, busy[name]) for name, clock in clocks.items()},
        mean(whole, [span for group in busy.values() for span in group]),
    )


def markdown(times: Breakdown) -> list[str]:
    """Format the mean times as a Markdown table with aligned columns; return its lines."""
    head, *rows = _rows(times)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    lines = [" | ".join(_padded(row, widths)) for row in (head, *rows)]
    return [f"| {lines[0]} |", rule, *(f"| {line} |" for line in lines[1:])]


def plain(times: Breakdown) -> list[str]:
    """Format the mean times as a table for a terminal, without borders; return its lines."""
    rows = _rows(times)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths)) for row in rows]


class Span(NamedTuple):
    """Interval in a trace, in microseconds; `name` is set only if the interval is the mark of a phase or step."""

    start: float
    end: float
    name: str = ""


def _exported(profiler: profile) -> bytes:
    """Recorded trace as the content of a file in Chrome's JSON format."""
    # PyTorch exports to files only, and raises no error if the export fails: reading the file then raises one.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return file.read_bytes()


def _parse_events(
    events: Iterable[Mapping[str, Any]], phases: Sequence[str]
) -> tuple[list[Span], dict[int, float], list[tuple[int, Span]]]:
    """Sort the events of a trace into marks of phases and steps, launches of GPU work, and the GPU work itself.

    Returns:
        Sorted marks; launch times in microseconds, keyed by correlation id; pairs of correlation id and span, one for
        each piece of GPU work. The correlation id connects GPU work with its launch.
    """
    marks: list[Span] = []
    launch_times: dict[int, float] = {}
    work: list[tuple[int, Span]] = []
    for event in events:
        kind, name = event.get("cat"), str(event.get("name"))
        if kind == "user_annotation" and (name in phases or name.startswith("ProfilerStep#")):
            marks.append(Span(event["ts"], event["ts"] + event["dur"], name))
        elif kind in ("cuda_runtime", "cuda_driver"):
            launch_times[event["args"]["correlation"]] = event["ts"]
        elif kind in ("kernel", "gpu_memcpy", "gpu_memset"):
            work.append((event["args"]["correlation"], Span(event["ts"], event["ts"] + event["dur"])))
    return sorted(marks), launch_times, work


def _union_length(spans: Iterable[Span]) -> float:
    """Time in microseconds that at least one of the spans covers."""
    covered, until = 0.0, float("-inf")
    for span in sorted(spans):
        covered += max(span.end - max(span.start, until), 0.0)
        until = max(until, span.end)
    return covered


def _rows(times: Breakdown) -> list[list[str]]:
    """Rows of the table of mean times, as lists of cells, header first; no GPU column if the GPU did no work."""
    rows = [["part", "s/step", "share", "GPU s/step"]]
    for name, row in {**times.phases, STEP: times.step}.items():
        share = row.clock_s / times.step.clock_s
        rows.append([name, f"{row.clock_s:.4f}", f"{share:.1%}", f"{row.device_s:.4f}"])
    return rows if times.step.device_s else [cells[:-1] for cells in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    name, *numbers = row
    return [name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True))]


def _notes(times: Breakdown) -> list[str]:
    notes = [
        f"`{OTHER}` is time outside all marks. Recording makes a step slower, most of all with small networks.",
        "",
        "`trace.json.gz` has each operation of these steps: open it in https://ui.perfetto.dev or chrome://tracing.",
    ]
    if times.step.device_s:
        notes[1:1] = [
            "The processor launches work on the GPU without waiting for it: s/step is the processor's time, including",
            "its waits; GPU s/step is how long the GPU was busy with work launched in that part.",
        ]
    return notes


def _steps(first: int, last: int) -> str:
    return f"steps {first} to {last}" if last > first else f"step {first}"
