"""Table of the functions that make up the GPU check: each checks one claim, on a GPU or in a dry run on a CPU."""

from collections.abc import Callable

from gpu_numbers import fp32, precisions, resume
from gpu_processes import ranks, tests, training
from gpu_report import Report
from gpu_scale import Scale
from gpu_speed import graphs, tables

PARTS: dict[str, Callable[[Report, Scale], None]] = {
    part.__name__: part for part in (tests, fp32, precisions, resume, ranks, graphs, tables, training)
}
