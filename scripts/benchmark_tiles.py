"""Compare tiled translation with full (untiled) passes in time, peak memory and result; each case has its own process.

    python scripts/benchmark_tiles.py                            # print
    python scripts/benchmark_tiles.py --write docs/tiling.md     # also write the table

Needs 12 GB of memory and, on two cores, half an hour or more. Exits with 1 when the result of a tiled pass
differs too much from that of a full pass.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  PyTorch's usual alias
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from measuring import circumstances, write_section  # noqa: E402

from cyclestyle.hardware.device import Hardware  # noqa: E402
from cyclestyle.hardware.memory import resident_peak  # noqa: E402
from cyclestyle.networks import ResNetGenerator, initialize  # noqa: E402
from cyclestyle.translation.tiled.layers import NormStatistics  # noqa: E402
from cyclestyle.translation.tiled.tiling import parse_memory, run_tiled  # noqa: E402

GOAL = {"fp32": 1e-4, "bf16": 0.25}  # largest difference to a full pass, for values in [-1, 1]
CROP, MARGIN = 256, 96  # px; the receptive field is at most 90 px around a pixel


class Case(NamedTuple):
    """An image size, and the memory limit and precision of the pass over it."""

    width: int  # px
    height: int  # px
    memory: str  # `whole` for a full pass
    precision: Any = "fp32"


class Row(NamedTuple):
    """Measured time and memory of a case, and the difference between its result and that of a full pass."""

    seconds: float
    processor_seconds: float  # processor time of all threads
    peak: int  # bytes of the process, including PyTorch, the image and its translation
    difference: float | None  # largest difference to a full pass; None for a full pass
    compared: str = ""  # pixels that were compared


CASES = [  # a full pass precedes the cases that are compared with it
    Case(1224, 816, "whole"),
    Case(1224, 816, "4GB"),
    Case(6000, 4000, "4GB"),
    Case(2448, 1632, "whole"),
    Case(2448, 1632, "4GB"),
    Case(4240, 2832, "whole"),
    Case(4240, 2832, "4GB"),
    Case(6000, 4000, "4GB", "bf16"),
    Case(6000, 4000, "1GB"),
]


def main() -> int:
    """Measure and print the table, write it if --write is given; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a Markdown file to write the table into")
    parser.add_argument(
        "--folder", type=Path, help="parent folder for temporary images and results (default: the system's)"
    )
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)  # used by the child processes
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(measured(CASES[arguments.case], arguments.folder)))
        return 0

    rows: dict[Case, Row] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for number, case in enumerate(CASES):
            image_file = _file(folder, "image", case)
            if not image_file.exists():
                torch.save(photo_like(case.height, case.width), image_file)
            command = [sys.executable, __file__, "--case", str(number), "--folder", folder]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows[case] = Row(*json.loads(output.splitlines()[-1]))
            print(as_table({case: rows[case]}).splitlines()[-1], flush=True)
            if arguments.write:  # after each row, since all of them take half an hour
                write_section(arguments.write, "Measured", page(as_table(rows)))
    print(f"\n{as_table(rows)}")
    return int(any((row.difference or 0) > GOAL[case.precision] for case, row in rows.items()))


def measured(case: Case, folder: Path) -> Row:
    """Measure one case in this process, which must be new, since its peak memory is counted from its start."""
    generator = ResNetGenerator()
    initialize(generator, generator=torch.Generator().manual_seed(0))
    generator.eval().requires_grad_(False)
    hardware = Hardware("cpu", precision=case.precision)
    image = torch.load(_file(folder, "image", case))
    statistics: dict[nn.Module, NormStatistics] = {}

    since, processor_since = time.perf_counter(), time.process_time()
    if case.memory == "whole":
        with torch.inference_mode():
            translated: Tensor = hardware.autocast(generator)(image)
    else:
        memory = parse_memory(case.memory)
        translated = run_tiled(
            generator,
            image,
            hardware=hardware,
            rows=None,
            memory=memory,
            folder=folder,
            observe=statistics.__setitem__,
        )
    elapsed_s = time.perf_counter() - since, time.process_time() - processor_since
    peak = resident_peak()

    whole_file = _file(folder, "whole", case)
    if case.memory == "whole":
        torch.save(translated, whole_file)
        return Row(*elapsed_s, peak, None)
    if whole_file.exists():
        return Row(*elapsed_s, peak, _difference(translated, torch.load(whole_file)), "every pixel")
    crops = _crops(case)
    fixed = with_statistics(generator, statistics)
    differences = [_difference_of_crop(fixed, hardware, image, translated, *crop) for crop in crops]
    return Row(*elapsed_s, peak, max(differences), f"{len(crops)} crops of {CROP} px")


def with_statistics(generator: nn.Module, statistics: dict[nn.Module, NormStatistics]) -> nn.Module:
    """Copy a generator; the copy's instance norms use `statistics` instead of the statistics of their input."""
    memo: dict[int, Any] = {}
    for layer, (mean, variance) in statistics.items():
        fixed = nn.BatchNorm2d(len(mean), affine=False, eps=getattr(layer, "eps", 1e-5))
        fixed.running_mean, fixed.running_var = mean.clone(), variance.clone()
        memo[id(layer)] = fixed
    return copy.deepcopy(generator, memo).eval()


def photo_like(height: int, width: int) -> Tensor:
    """A random image, (1, 3, H, W) in [-1, 1], with structure of all sizes and a smooth sky at the top."""
    random = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 3, height, width)
    for cells in (3, 9, 27, 81, 243, 729):
        coarse = torch.randn(1, 3, cells, -(-cells * width // height), generator=random)
        image += F.interpolate(coarse, (height, width), mode="bilinear") / cells**0.5
    image += 0.02 * torch.randn(image.shape, generator=random)
    image[:, :, : height // 4] = torch.linspace(0.2, 0.8, height // 4).reshape(1, 1, -1, 1)
    return image.clamp_(-1, 1)


def as_table(rows: dict[Case, Row]) -> str:
    """A Markdown table with a row for each case, sorted by image size."""
    lines = [
        "| megapixels | px | precision | computed | s | processor s | peak, GB | largest difference | compared |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in sorted(rows, key=lambda case: (case.width, case.precision != "fp32", case.memory != "whole")):
        row = rows[case]
        how = "whole" if case.memory == "whole" else f"in pieces, memory={case.memory}"
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        lines.append(
            f"| {case.width * case.height / 1e6:.0f} | {case.width} x {case.height} | {case.precision} | {how} | "
            f"{row.seconds:.0f} | {row.processor_seconds:.0f} | {row.peak / 1e9:.2f} | {difference} | {row.compared} |"
        )
    return "\n".join(lines)


def page(table: str) -> str:
    """Section of docs/tiling.md that contains `table`."""
    return f"""ResNet-9 with 64 channels and random weights on a drawn picture; every row in a process of its own, whose
peak also holds PyTorch (about 0.5 GB), the picture and its translation (24 bytes a pixel). Differences are of values in
[-1, 1]. Where a whole pass does not fit, {CROP} px crops are computed whole with {MARGIN} px around them and the
statistics of the whole picture. The machine was shared with other work, so only the processor's time is reliable: that
of all threads together.

{circumstances("python scripts/benchmark_tiles.py --write docs/tiling.md")}
* OMP_WAIT_POLICY: {os.environ.get("OMP_WAIT_POLICY", "not set")}

{table}
"""


def _crops(case: Case) -> list[tuple[int, int]]:
    """(top, left) of the compared crops in px: the corners and eight random places, at multiples of 4.

    Places must be multiples of 4 because the network halves the size twice.
    """
    random = torch.Generator().manual_seed(1)
    bottom, right = case.height - CROP, case.width - CROP
    anywhere = [
        (
            int(torch.randint(bottom // 4, (), generator=random)) * 4,
            int(torch.randint(right // 4, (), generator=random)) * 4,
        )
        for _ in range(8)
    ]
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), *anywhere]


@torch.inference_mode()
def _difference_of_crop(
    fixed: nn.Module, hardware: Hardware, image: Tensor, translated: Tensor, top: int, left: int
) -> float:
    above, before = min(top, MARGIN), min(left, MARGIN)
    around = image[..., top - above : top + CROP + MARGIN, left - before : left + CROP + MARGIN]
    whole = hardware.autocast(fixed)(around)[..., above : above + CROP, before : before + CROP]
    return _difference(translated[..., top : top + CROP, left : left + CROP], whole)


def _difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _file(folder: str | Path, what: str, case: Case) -> Path:
    return Path(folder) / f"{what} {case.width} x {case.height} {case.precision if what == 'whole' else ''}.pt"


if __name__ == "__main__":
    sys.exit(main())
