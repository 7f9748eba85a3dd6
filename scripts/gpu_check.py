"""Run all that waits for a GPU, as one command of a few minutes; docs/gpu.md has how to bring it to a bare machine.

    python scripts/gpu_check.py                  # on a machine with a GPU
    python scripts/gpu_check.py --data horses/   # its last part trains on trainA and trainB in there
    python scripts/gpu_check.py --rehearse       # on a CPU, tiny: can all this run?

Every part runs in a process of its own and writes what it finds at once: OUT/PART.json, OUT/PART.log, and OUT/gpu.md
with all tables and pictures. The same command again does only what is missing; --again repeats what is there.

Exits with 0 if every part passed, with 1 otherwise, and with 2 where there is no GPU.
"""

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpu_report import FAILED, NOT_RUN, PASSED, Record, Report, markdown  # noqa: E402

from cyclestyle.filesystem.atomic import write_text  # noqa: E402


class Part(NamedTuple):
    """Something to find out; it is not begun with less than `least_s` seconds, and stopped after `most_s`."""

    name: str  # of the function in gpu_parts.py
    claim: str
    least_s: float
    most_s: float


PARTS = (
    Part("tests", "The tests marked `gpu` pass.", 20, 100),
    Part("fp32", "A step in fp32 has a CPU's losses and gradients.", 15, 60),
    Part("precisions", "bf16 and fp16 have losses near those of fp32.", 20, 90),
    Part("resume", "A deterministic run resumes bit for bit.", 20, 90),
    Part("ranks", "Training over NCCL has the losses of training without.", 20, 90),
    Part("graphs", "CUDA graphs have the losses of plain steps, and are faster.", 20, 90),
    Part("tables", "Time and memory of a step, beside the textbook's.", 45, 180),
    Part("training", "A real training learns, stops when asked to, and translates.", 60, 300),
)
Command = Callable[[Part, float], list[str]]


def main() -> int:
    """Run what is missing; the exit code."""
    since = time.monotonic()
    arguments = parsed()
    if arguments.part:
        return be_a_part(arguments)
    device = device_name(rehearse=arguments.rehearse)
    if device is None:
        print("gpu_check.py: PyTorch finds no GPU here; --rehearse runs all parts on the CPU, tiny", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no part is left behind
    code = code_version(ROOT)
    records = carry_out(
        PARTS,
        arguments.out,
        only=arguments.only,
        keys={part.name: key_of(part.name, code, device, arguments.data) for part in PARTS},
        until=since + 60 * arguments.minutes,
        again=arguments.again,
        command=lambda part, seconds: [
            *(sys.executable, __file__, *sys.argv[1:], f"--part={part.name}", f"--seconds={seconds}"),
            *(f"--out={arguments.out}", f"--code={code}", f"--device={device}"),
        ],
    )
    print(f"\n{summary(records)}\n{arguments.out / 'gpu.md'} has the tables")
    return 0 if all(record.outcome == PASSED for record in records) else 1


def parsed() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="parts, in this order:\n" + "\n".join(f"  {part.name:11} {part.claim}" for part in PARTS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--out", type=Path, help="folder for what is found (default: runs/gpu-check, or runs/gpu-rehearsal)"
    )
    parser.add_argument(
        "--minutes", type=float, default=8, help="for all parts; what does not fit is left (default: 8)"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with trainA and trainB for the real training (default: drawn)"
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help="these parts alone")
    parser.add_argument("--again", action="store_true", help="repeat what an earlier call has finished")
    parser.add_argument("--rehearse", action="store_true", help="run everything on the CPU, with tiny networks")
    for name in ("part", "code", "device"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.out is None:
        arguments.out = ROOT / "runs" / ("gpu-rehearsal" if arguments.rehearse else "gpu-check")
    if arguments.data is not None and not all((arguments.data / name).is_dir() for name in ("trainA", "trainB")):
        parser.error(f"--data {arguments.data}: there are no folders trainA and trainB in it")
    return arguments


def device_name(*, rehearse: bool) -> str | None:
    """The device that parts run on, with PyTorch's version; None where there is no GPU."""
    import torch

    if rehearse:
        return f"CPU (rehearsal), PyTorch {torch.__version__}"
    if not torch.cuda.is_available():
        return None
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, PyTorch {torch.__version__}"


def code_version(root: Path) -> str:
    """A fingerprint of all code and configs, as there may be no git where this runs."""
    found = hashlib.sha256()
    for folder in ("cyclestyle", "configs", "scripts", "tests"):
        for file in sorted((root / folder).rglob("*")):
            if file.suffix in (".py", ".yaml"):
                found.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def key_of(part: str, code: str, device: str, data: Path | None) -> dict[str, str]:
    """All that a part's result depends on."""
    return {"code": code, "device": device, **({"data": str(data or "drawn")} if part == "training" else {})}


def be_a_part(arguments: argparse.Namespace) -> int:
    """Run one part in this process."""
    import gpu_parts
    import gpu_scale

    key = key_of(arguments.part, arguments.code, arguments.device, arguments.data)
    report = Report(arguments.out, arguments.part, key=key, seconds=arguments.seconds)
    scale = gpu_scale.rehearsal() if arguments.rehearse else gpu_scale.gpu(data=arguments.data)
    gpu_parts.PARTS[arguments.part](report, scale)
    report.end()
    return 0


def carry_out(
    parts: Sequence[Part],
    folder: Path,
    *,
    keys: Mapping[str, dict[str, str]],
    until: float,
    command: Command,
    only: Sequence[str] | None = None,
    again: bool = False,
) -> list[Record]:
    """Run parts one after the other, whatever becomes of each; their records are in the folder at every moment.

    Args:
        keys: what the result of each part depends on; an earlier one with the same is kept.
        until: when all has to be over, in seconds of `time.monotonic`.
        command: that runs a part, given the seconds that it has.
        only: the names of the parts to run, else all.
        again: repeat what is finished.

    Returns:
        The records of the parts that were to be run.
    """
    chosen = [part for part in parts if only is None or part.name in only]
    records: list[Record] = []
    for number, part in enumerate(chosen, 1):
        left, key = until - time.monotonic(), keys[part.name]
        before = Record.read(folder, part.name)
        print(f"[{number}/{len(chosen)}] {part.name}: {part.claim}", flush=True)
        if before is not None and before.is_finished and before.key == key and not again:
            record = before
            print(f"    {record.outcome}, by an earlier call", flush=True)
        elif left < part.least_s:
            record = Record(part.name, key, NOT_RUN, "out of time")
            print(f"    not run: {max(left, 0):.0f} s are left, it needs {part.least_s:g}", flush=True)
        else:
            seconds = min(left, part.most_s)
            record = run_child(part, folder, key=key, seconds=seconds, command=command(part, seconds))
            print(f"    {record.outcome} in {record.seconds:.0f} s {record.reason}".rstrip(), flush=True)
        record.write(folder)
        records.append(record)
        write_page(parts, folder, keys)
    return records


def write_page(parts: Sequence[Part], folder: Path, keys: Mapping[str, dict[str, str]]) -> None:
    """Gather what is known of all parts in gpu.md."""
    known = [record for part in parts if (record := Record.read(folder, part.name)) and record.key == keys[part.name]]
    write_text(folder / "gpu.md", markdown(known, {part.name: part.claim for part in parts}))


def run_child(part: Part, folder: Path, *, key: dict[str, str], seconds: float, command: Sequence[str]) -> Record:
    """Run a part in a process of its own, and end that with all that it started when its time is up.

    Returns:
        What the part has written; where it did not come to its end, as a failure with the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part.name}.json").unlink(missing_ok=True)
    since = time.monotonic()
    with (folder / f"{part.name}.log").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # a line is shown when it is printed
            start_new_session=True,  # so that it can be ended with all that it started
        )
        assert child.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=pass_on, args=(child.stdout, log, lines), daemon=True)
        reader.start()
        reason = ""
        try:
            code = child.wait(seconds)
            if code:
                reason = f"ended with {code}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            reader.join(5)
    record = Record.read(folder, part.name) or Record(part.name, key)
    if reason or record.outcome not in (PASSED, FAILED, NOT_RUN):
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        record = record._replace(outcome=FAILED, reason=f"{reason or 'did not come to its end'}: {last}")
    return record._replace(seconds=time.monotonic() - since)


def pass_on(stream: Iterable[str], log: IO[str], lines: list[str]) -> None:
    """Show what a part prints, line by line, and keep it."""
    for line in stream:
        lines.append(line)
        print(f"    {line}", end="", flush=True)
        with contextlib.suppress(ValueError):  # closed, as something that the part started has outlived it
            log.write(line)
            log.flush()


def summary(records: Sequence[Record]) -> str:
    """A line for each part."""
    lines = []
    for record in records:
        missed = [check.name for check in record.checks if not check.passed]
        why = record.reason or "; ".join(missed)
        lines.append(f"{record.outcome:8} {record.part:11} {why}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
