"""Measure the processor time of the pretrained networks per image, and print it as a Markdown table.

    python scripts/benchmark_pretrained.py
    python scripts/benchmark_pretrained.py --networks efficientnet_lite0 --sizes 128

A measurement is the forward pass of all layers that scores use, for a batch of four images. The networks have random
weights, which take as long as trained ones.
"""

import argparse
import time

import torch
from measuring import circumstances
from torch import nn

from cyclestyle.networks.pretrained import PRETRAINED

BATCH = 4
RUNS = 3
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Measure the chosen networks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(PRETRAINED), default=sorted(PRETRAINED), metavar="NAME")
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 256], metavar="PX", help="sides of the images")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    columns = [(size, precision) for size in arguments.sizes for precision in PRECISIONS]
    print("| ms per image |" + "".join(f" {size} px, {precision} |" for size, precision in columns))
    print("|---" * (len(columns) + 1) + "|")
    for name in arguments.networks:
        network = PRETRAINED[name].build()
        cells = [_range(milliseconds(name, network, size, PRECISIONS[precision])) for size, precision in columns]
        print(f"| `{name}` | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{circumstances('python scripts/benchmark_pretrained.py')}")


def milliseconds(name: str, network: nn.Module, size: int, dtype: torch.dtype) -> list[float]:
    """Return the processor times per image of `RUNS` forward passes of `network`, in ms, sorted.

    Args:
        name: key of `PRETRAINED`, whose layers are computed.
        network: the network.
        size: side of the images in px.
        dtype: dtype of the computation, by autocast.
    """
    row = PRETRAINED[name]
    layers = [*row.pooled_layers, row.structure_layer, *row.style_layers]
    images = torch.rand(BATCH, 3, size, size)
    times = []
    for _ in range(RUNS + 1):
        start = time.process_time()
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            network(images, layers)
        times.append(1000 * (time.process_time() - start) / BATCH)
    return sorted(times[1:])  # without the first, which also prepares the kernels


def _range(times: list[float]) -> str:
    return f"{times[0]:.1f} to {times[-1]:.1f}"


if __name__ == "__main__":
    main()
