"""Where the time of a training step goes: a few steps recorded once, as a trace to look into and as a small table."""

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

OTHER, STEP = "other", "whole step"  # rows of the table beside the parts
_UNITS_PER_S = 1e6  # the times of a trace are microseconds


class ProfileWindow(NamedTuple):
    """Which steps of a process are recorded, once."""

    wait: int = 5  # in which networks are compiled and convolutions chosen
    warmup: int = 3  # in which the profiler runs and what it says is thrown away
    steps: int = 5  # recorded

    @property
    def before(self) -> int:
        """Steps that come first."""
        return self.wait + self.warmup

    @property
    def end(self) -> int:
        """Steps after which all is recorded."""
        return self.before + self.steps


USUAL = ProfileWindow()


class Profile:
    """Records some steps of this process with PyTorch's profiler; writes `profile/` in the run's folder and says so.

    What cannot be written is told in a line, and training goes on.

    Args:
        folder: of the run.
        parts: the names that the parts of a step are marked with; parts do not overlap.
        device: type of the one that trains; a CUDA device's own times are recorded too.
        window: which steps; counted from the start of this process, not of the run.
        tell: is warned.
    """

    def __init__(
        self,
        folder: Path,
        *,
        parts: Sequence[str],
        device: str = "cpu",
        window: ProfileWindow = USUAL,
        tell: Callable[[str], None] = warn,
    ) -> None:
        self._folder, self._parts, self._window, self._tell = folder / "profile", parts, window, tell
        self._done = self._last = 0  # steps of this process, and the number of the latest in the run
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints lines of its own that concern nobody
        self._profiler: profile | None = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])],
            schedule=schedule(wait=window.wait, warmup=window.warmup, active=window.steps, repeat=1),
        )
        self._profiler.start()

    def on_step(self, step: int) -> None:
        """One step more."""
        if self._profiler is None:
            return
        self._done, self._last = self._done + 1, step
        self._profiler.step()
        if self._done == self._window.end:
            self._finish(self._profiler)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Nothing: how long logging takes is seen in the trace."""

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Nothing, likewise."""

    def close(self) -> None:
        """The end of training, maybe before all is recorded."""
        if self._profiler is None:
            return
        recorded = max(self._done - self._window.before, 0)
        self._tell(
            f"trainer.profile: {recorded} of {self._window.steps} steps recorded: they are steps "
            f"{self._window.before + 1} to {self._window.end} of this start, and training ended after {self._done}; "
            f"set trainer.steps higher"
        )
        self._finish(self._profiler)

    def _finish(self, profiler: profile) -> None:
        """Stop, write what has been recorded, if anything, and show it."""
        self._profiler = None
        profiler.stop()
        recorded = self._done - self._window.before
        if recorded < 1:
            return
        try:
            trace = _exported(profiler)
            found = breakdown(json.loads(trace)["traceEvents"], self._parts, steps=recorded)
            self._folder.mkdir(exist_ok=True)
            with atomic_write(self._folder / "trace.json.gz") as stream:
                stream.write(gzip.compress(trace))
            title = f"Where the time goes: means of {_steps(self._last - recorded + 1, self._last)}"
            write_text(
                self._folder / "table.md", "\n".join([f"# {title}", "", *markdown(found), "", *_notes(found), ""])
            )
        except (OSError, ValueError, KeyError) as error:  # the disk; a trace that broke off, or of another shape
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._tell(f"trainer.profile cannot be written: {reason.lower()}; training goes on without it")
            return
        files = f"{self._folder}: table.md, and trace.json.gz for https://ui.perfetto.dev or chrome://tracing"
        with contextlib.suppress(OSError):  # whoever reads it may have gone before
            print("\n".join([title, *(f"  {line}" for line in plain(found)), files]), flush=True)


class Times(NamedTuple):
    """Mean seconds of a step: on the clock, and those that a GPU was busy with what was begun meanwhile."""

    clock_s: float
    device_s: float


class Breakdown(NamedTuple):
    """What a step's time goes into: its parts and OTHER, whose times on the clock add up to the step's."""

    parts: Mapping[str, Times]
    step: Times


def breakdown(events: Iterable[Mapping[str, Any]], parts: Sequence[str], *, steps: int) -> Breakdown:
    """Add up a trace.

    A GPU's work belongs to the part whose mark was open when it was begun, on whatever thread, since the GPU runs
    behind; work at the same time counts once.

    Args:
        events: of a Chrome trace as PyTorch writes it.
        parts: names of the marks.
        steps: how many steps of the trace count: the first ones, as the last may have broken off.

    Raises:
        ValueError: it has no steps.
    """
    marks, begun, work = _parse_events(events, parts)
    spans = [mark for mark in marks if mark.name.startswith("ProfilerStep#")][:steps]
    if not spans:
        raise ValueError("the trace has no steps")
    marks = [mark for mark in marks if mark.name in parts and spans[0].start <= mark.start < spans[-1].end]
    starts = [mark.start for mark in marks]

    def part_at(time: float) -> str:
        index = bisect_right(starts, time) - 1
        return marks[index].name if index >= 0 and time < marks[index].end else OTHER

    busy: dict[str, list[Span]] = {name: [] for name in (*parts, OTHER)}
    for correlation, span in work:
        if spans[0].start <= begun.get(correlation, float("-inf")) < spans[-1].end:
            busy[part_at(begun[correlation])].append(span)

    def mean(clock: float, device: list[Span]) -> Times:
        return Times(clock / _UNITS_PER_S / len(spans), _union_length(device) / _UNITS_PER_S / len(spans))

    clocks = {name: sum(mark.end - mark.start for mark in marks if mark.name == name) for name in parts}
    whole = sum(span.end - span.start for span in spans)
    clocks[OTHER] = whole - sum(clocks.values())
    return Breakdown(
        {name: mean(clock, busy[name]) for name, clock in clocks.items()},
        mean(whole, [span for group in busy.values() for span in group]),
    )


def markdown(found: Breakdown) -> list[str]:
    """The table in Markdown, readable as it is."""
    head, *rows = _rows(found)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    lines = [" | ".join(_padded(row, widths)) for row in (head, *rows)]
    return [f"| {lines[0]} |", rule, *(f"| {line} |" for line in lines[1:])]


def plain(found: Breakdown) -> list[str]:
    """The table for the screen."""
    rows = _rows(found)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths)) for row in rows]


class Span(NamedTuple):
    """From `start` to `end`, microseconds; `name` where it has a meaning."""

    start: float
    end: float
    name: str = ""


def _exported(profiler: profile) -> bytes:
    """The trace as Chrome's JSON; PyTorch can write it to a file only, and raises nothing if it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return file.read_bytes()


def _parse_events(
    events: Iterable[Mapping[str, Any]], parts: Sequence[str]
) -> tuple[list[Span], dict[int, float], list[tuple[int, Span]]]:
    """The marks in order, when each piece of the GPU's work was begun, and these pieces, both by their number."""
    marks: list[Span] = []
    begun: dict[int, float] = {}
    work: list[tuple[int, Span]] = []
    for event in events:
        kind, name = event.get("cat"), str(event.get("name"))
        if kind == "user_annotation" and (name in parts or name.startswith("ProfilerStep#")):
            marks.append(Span(event["ts"], event["ts"] + event["dur"], name))
        elif kind in ("cuda_runtime", "cuda_driver"):
            begun[event["args"]["correlation"]] = event["ts"]
        elif kind in ("kernel", "gpu_memcpy", "gpu_memset"):
            work.append((event["args"]["correlation"], Span(event["ts"], event["ts"] + event["dur"])))
    return sorted(marks), begun, work


def _union_length(spans: Iterable[Span]) -> float:
    """How long at least one of them lasts, microseconds."""
    covered, until = 0.0, float("-inf")
    for span in sorted(spans):
        covered += max(span.end - max(span.start, until), 0.0)
        until = max(until, span.end)
    return covered


def _rows(found: Breakdown) -> list[list[str]]:
    """What stands in the table, the head first; nothing of a GPU where none was seen at work."""
    rows = [["part", "s/step", "share", "GPU s/step"]]
    for name, times in {**found.parts, STEP: found.step}.items():
        share = times.clock_s / found.step.clock_s
        rows.append([name, f"{times.clock_s:.4f}", f"{share:.1%}", f"{times.device_s:.4f}"])
    return rows if found.step.device_s else [row[:-1] for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    name, *numbers = row
    return [name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True))]


def _notes(found: Breakdown) -> list[str]:
    notes = [
        f"`{OTHER}` is what no mark covers. Being recorded makes a step slower, most of all one of small networks.",
        "",
        "`trace.json.gz` has each operation of these steps: open it in https://ui.perfetto.dev or chrome://tracing.",
    ]
    if found.step.device_s:
        notes[1:1] = [
            "The processor hands work to the GPU and goes on: s/step is the processor's time, waiting included, GPU",
            "s/step is how long the GPU was busy with what that part gave it.",
        ]
    return notes


def _steps(first: int, last: int) -> str:
    return f"steps {first} to {last}" if last > first else f"step {first}"
