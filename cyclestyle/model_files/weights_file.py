"""Files of converted pretrained weights: safetensors with origin, licence and a checksum of the weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from cyclestyle.checkpoints.model import GARBLED_JSON
from cyclestyle.errors import CheckpointError
from cyclestyle.filesystem.atomic import write_and_sync

HEADER = "cyclestyle_weights"  # metadata key in the safetensors header; its value is JSON text
VERSION = 1  # version of the header


class WeightsFile(NamedTuple):
    """Converted weights of a pretrained network, with their origin, licence and checksum, as stored in one file."""

    architecture: str  # name of the pretrained network
    tensors: dict[str, Tensor]
    sha256: str  # checksum of names, dtypes, shapes and values of the tensors
    source: str  # package and version, or web address, of the published file
    published_sha256: str  # checksum of the published file
    licence: str


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a hexadecimal SHA-256 of the names, dtypes, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(weights: WeightsFile, path: Path) -> None:
    """Write a file of converted weights to `path`, and flush it to the disk; raise an OSError if this fails."""
    header = {"version": VERSION, **{key: value for key, value in weights._asdict().items() if key != "tensors"}}
    write_and_sync(path, lambda stream: stream.write(to_bytes(weights.tensors, {HEADER: json.dumps(header)})))


def architecture_of(path: Path) -> str | None:
    """Return the name of the network in a file of converted weights; None for any other file."""
    try:
        with safe_open(path, framework="pt") as opened:
            return str(json.loads((opened.metadata() or {})[HEADER])["architecture"])
    except (SafetensorError, OSError, *GARBLED_JSON):
        return None


def read(path: Path) -> WeightsFile:
    """Read a file of converted weights.

    Raises:
        CheckpointError: the file is missing or damaged, or is no file of converted weights.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})[HEADER])
            # Tensors are cloned: they map the file, and this process would crash if the file were truncated later.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - not a mapping
        if header["version"] != VERSION:
            raise CheckpointError(f"{path} was written by another version of cyclestyle")
        fields = {name: str(header[name]) for name in WeightsFile._fields if name != "tensors"}
    except (SafetensorError, OSError, *GARBLED_JSON) as error:
        raise CheckpointError(f"{path} is not a whole file of pretrained weights: {error}") from None
    if checksum(tensors) != fields["sha256"]:
        raise CheckpointError(f"{path} is damaged: its weights differ from its checksum")
    return WeightsFile(tensors=tensors, **fields)
