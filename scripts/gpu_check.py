"""Check all claims that need a GPU, in a few minutes; docs/gpu.md explains how to install it on a new machine.

    python scripts/gpu_check.py                  # on a machine with a GPU
    python scripts/gpu_check.py --data horses/   # the last part trains on horses/trainA and trainB
    python scripts/gpu_check.py --rehearse       # dry run of all parts on a CPU, with tiny networks

Each part runs in its own process and writes each finding immediately: to OUT/PART.json, to OUT/PART.log, and to
OUT/gpu.md with all tables and images. A second call runs only the missing parts; --again repeats finished parts.

Exits with 0 if every part passed, with 1 otherwise, and with 2 if there is no GPU.
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
    """A part of the check; it starts only if `least_s` seconds are left, and is stopped after `most_s` seconds."""

    name: str  # name of the function in gpu_parts.py
    claim: str
    least_s: float
    most_s: float


PARTS = (
    Part("tests", "The tests marked `gpu` pass.", 20, 100),
    Part("fp32", "In fp32, a step has the same losses and gradients as on a CPU.", 15, 60),
    Part("precisions", "In bf16 and fp16, losses are close to the losses in fp32.", 20, 90),
    Part("resume", "A deterministic run resumes bit for bit.", 20, 90),
    Part("ranks", "Training over NCCL has the same losses as training without NCCL.", 20, 90),
    Part("graphs", "Steps with CUDA graphs have the same losses as eager steps, and are faster.", 20, 90),
    Part("tables", "Time and memory of a step, compared with the baseline step.", 45, 180),
    Part("training", "A real training lowers its losses, stops on request, and translates.", 60, 300),
)
Command = Callable[[Part, float], list[str]]


def main() -> int:
    """Run the parts that have no valid result yet; return the exit code."""
    since = time.monotonic()
    arguments = parsed()
    if arguments.part:
        return run_part(arguments)
    device = device_name(rehearse=arguments.rehearse)
    if device is None:
        print("gpu_check.py: PyTorch finds no GPU here; try --rehearse, a dry run on the CPU", file=sys.stderr)
        return 2
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # SystemExit runs the `finally` clauses, which kill the running part
    code = code_version(ROOT)
    records = run_parts(
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
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="parts, in this order:\n" + "\n".join(f"  {part.name:11} {part.claim}" for part in PARTS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, help="folder for results (default: runs/gpu-check, or runs/gpu-rehearsal)")
    parser.add_argument(
        "--minutes", type=float, default=8, help="time for all parts; parts without time left are not run (default: 8)"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with trainA and trainB for the real training (default: synthetic)"
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help="run only these parts")
    parser.add_argument("--again", action="store_true", help="repeat parts that an earlier call has finished")
    parser.add_argument("--rehearse", action="store_true", help="dry run of all parts on the CPU, with tiny networks")
    for name in ("part", "code", "device"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.out is None:
        arguments.out = ROOT / "runs" / ("gpu-rehearsal" if arguments.rehearse else "gpu-check")
    if arguments.data is not None and not all((arguments.data / name).is_dir() for name in ("trainA", "trainB")):
        parser.error(f"--data {arguments.data}: has no folders trainA and trainB")
    return arguments


def device_name(*, rehearse: bool) -> str | None:
    """Name of the device that parts run on, and PyTorch's version; None without a GPU, except in a dry run."""
    import torch

    if rehearse:
        return f"CPU (rehearsal), PyTorch {torch.__version__}"
    if not torch.cuda.is_available():
        return None
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, PyTorch {torch.__version__}"


def code_version(root: Path) -> str:
    """Hash of all code and configs; git is not used, since the machine may lack it."""
    digest = hashlib.sha256()
    for folder in ("cyclestyle", "configs", "scripts", "tests"):
        for file in sorted((root / folder).rglob("*")):
            if file.suffix in (".py", ".yaml"):
                digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def key_of(part: str, code: str, device: str, data: Path | None) -> dict[str, str]:
    """Everything that a part's result depends on, as text: a finished part with an equal key is not repeated."""
    return {"code": code, "device": device, **({"data": str(data or "drawn")} if part == "training" else {})}


def run_part(arguments: argparse.Namespace) -> int:
    """Run one part of the check in this process and write its record."""
    import gpu_parts
    import gpu_scale

    key = key_of(arguments.part, arguments.code, arguments.device, arguments.data)
    report = Report(arguments.out, arguments.part, key=key, seconds=arguments.seconds)
    scale = gpu_scale.rehearsal() if arguments.rehearse else gpu_scale.gpu(data=arguments.data)
    gpu_parts.PARTS[arguments.part](report, scale)
    report.end()
    return 0


def run_parts(
    parts: Sequence[Part],
    folder: Path,
    *,
    keys: Mapping[str, dict[str, str]],
    until: float,
    command: Command,
    only: Sequence[str] | None = None,
    again: bool = False,
) -> list[Record]:
    """Run parts one after the other, and continue after a failed part; write each record immediately.

    Args:
        parts: all parts, in order.
        folder: folder for records, logs and the page.
        keys: part -> everything that the part's result depends on; a finished result with the same key is reused.
        until: value of `time.monotonic` at which the time for all parts is over.
        command: function that returns the command line for running a part with a time limit in s.
        only: names of the parts to run; None for all.
        again: repeat finished parts.

    Returns:
        The records of the selected parts.
    """
    selected = [part for part in parts if only is None or part.name in only]
    records: list[Record] = []
    for number, part in enumerate(selected, 1):
        remaining_s, key = until - time.monotonic(), keys[part.name]
        before = Record.read(folder, part.name)
        print(f"[{number}/{len(selected)}] {part.name}: {part.claim}", flush=True)
        if before is not None and before.is_finished and before.key == key and not again:
            record = before
            print(f"    {record.outcome}, by an earlier call", flush=True)
        elif remaining_s < part.least_s:
            record = Record(part.name, key, NOT_RUN, "out of time")
            print(f"    not run: {max(remaining_s, 0):.0f} s are left, it needs {part.least_s:g}", flush=True)
        else:
            seconds = min(remaining_s, part.most_s)
            record = run_child(part, folder, key=key, seconds=seconds, command=command(part, seconds))
            print(f"    {record.outcome} in {record.seconds:.0f} s {record.reason}".rstrip(), flush=True)
        record.write(folder)
        records.append(record)
        write_page(parts, folder, keys)
    return records


def write_page(parts: Sequence[Part], folder: Path, keys: Mapping[str, dict[str, str]]) -> None:
    """Write gpu.md from the current records of all parts."""
    current = [record for part in parts if (record := Record.read(folder, part.name)) and record.key == keys[part.name]]
    write_text(folder / "gpu.md", markdown(current, {part.name: part.claim for part in parts}))


def run_child(part: Part, folder: Path, *, key: dict[str, str], seconds: float, command: Sequence[str]) -> Record:
    """Run a part in a new process; after `seconds`, kill the process and all its children.

    Returns:
        The record that the part has written; if the part did not finish, a record of the failure and its reason.
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
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # Python then does not buffer the printed lines
            start_new_session=True,  # a process group of its own, which can be killed as a whole
        )
        assert child.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=copy_output, args=(child.stdout, log, lines), daemon=True)
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


def copy_output(stream: Iterable[str], log: IO[str], lines: list[str]) -> None:
    """Print the output of a part line by line, write it to the log and append it to `lines`."""
    for line in stream:
        lines.append(line)
        print(f"    {line}", end="", flush=True)
        with contextlib.suppress(ValueError):  # the log is closed if a child of the part outlives it
            log.write(line)
            log.flush()


def summary(records: Sequence[Record]) -> str:
    """One line for each part: outcome, name, and the reason or missed bounds."""
    lines = []
    for record in records:
        missed = [check.name for check in record.checks if not check.passed]
        reason = record.reason or "; ".join(missed)
        lines.append(f"{record.outcome:8} {record.part:11} {reason}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
