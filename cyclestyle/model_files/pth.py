"""Reading of tensors from files of `torch.save`, without executing any code that the files contain."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclestyle.checkpoints.model import tensor_bytes
from cyclestyle.errors import CheckpointError

_MAX_NAMES = 2**26  # bytes; maximum size of the pickle that names the tensors, some 1000 times the usual size
_MAX_LEGACY = 2**32  # bytes; maximum size of a file in the legacy format, which memory must hold whole
_MAX_DEPTH = 4  # maximum number of nested mappings around the weights of a network
_OBJECT = re.compile(r"GLOBAL ([\w.]{1,80})")  # class name in torch's message about an object that it does not read


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a `.pth` file by name; the file may have the zip or the legacy format of `torch.save`.

    The file contains a mapping from names to tensors, or such mappings inside other mappings, as in checkpoints of
    training programs. In the returned names, the keys of the outer mappings come first, joined by dots. Everything else
    in the outer mappings is ignored, such as the state of an optimizer.

    Tensors from the zip format are memory-mapped: clone them if the file may change while they are used.

    Raises:
        CheckpointError: the file is damaged, contains objects of Python classes, contains no mapping from names to
            tensors, or describes tensors with more bytes than the file has.
    """
    size = path.stat().st_size
    content = _load(path, size)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} is not a file of weights: expected names and tensors")
    if _is_container(content):
        tensors = dict(_nested(content, "", set()))
        if not tensors:
            raise CheckpointError(f"{path} is not a file of weights: none of its entries holds names and tensors")
    else:
        if not all(isinstance(name, str) for name in content):
            raise CheckpointError(f"{path} is not a file of weights: expected names and tensors")
        tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
        if len(tensors) < len(content):
            raise CheckpointError(f"{path} is not a file of weights: expected names and tensors, and nothing else")
    if any(tensor.layout != torch.strided for tensor in tensors.values()):
        raise CheckpointError(f"{path} is not a file of weights: expected names and tensors, and nothing else")
    if tensor_bytes(tensors) > size:  # expanded views, which repeat few stored bytes
        raise CheckpointError(f"{path} is not a file of weights: its tensors have more numbers than the file")
    return tensors


def _load(path: Path, size: int) -> object:
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_archive(path, size)
        elif size > _MAX_LEGACY:
            raise CheckpointError(f"{path} has {size / 2**30:.0f} GB: expected at most {_MAX_LEGACY / 2**30:.0f} GB")
        with warnings.catch_warnings(action="ignore"):  # warnings about tensor layouts, which `read_tensors` rejects
            if path.suffix == ".safetensors":  # torch.load would choose the format by this suffix
                with path.open("rb") as stream:
                    return torch.load(stream, map_location="cpu", weights_only=True)
            # A mapped file takes memory only for the tensors that are used.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        if found := _OBJECT.search(str(error)):
            raise CheckpointError(
                f"{path} cannot be read: it holds more than weights, an object of {found[1]}, and reading that could "
                f"execute code: save the weights alone, torch.save(generator.state_dict(), ...)"
            ) from None
        raise CheckpointError(f"{path} cannot be read: it is damaged, or it holds more than weights") from None
    except Exception as error:  # torch does not document its errors for malformed files
        raise CheckpointError(f"{path} cannot be read: is it a whole .pth file? ({type(error).__name__})") from None


def _check_archive(path: Path, size: int) -> None:
    """Raise a CheckpointError if a zip file is compressed, or if the pickle in it is too large to load safely.

    Args:
        size: size of the file in bytes.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > size:  # torch.save never compresses
        raise CheckpointError(f"{path} cannot be read: it is compressed, which torch.save never does")
    if any(entry.filename.endswith(".pkl") and entry.file_size > _MAX_NAMES for entry in entries):
        raise CheckpointError(f"{path} is not a file of weights: it has more names and numbers than a network")


def _is_container(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in content.values())


def _nested(content: Mapping[Any, Any], prefix: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Find the mappings inside `content` that hold only tensors; yield the name and tensor of each of their items.

    Args:
        prefix: keys of the mappings around `content`, such as `state_dict.`; a yielded name begins with these keys.
        seen: `id` of each mapping that was read before; each is read once, however often it occurs.
        depth: number of mappings around `content`; mappings nested deeper than `_MAX_DEPTH` are ignored.
    """
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or id(value) in seen or depth == _MAX_DEPTH:
            continue
        seen.add(id(value))
        inner = f"{prefix}{key}."
        if _is_container(value):
            yield from _nested(value, inner, seen, depth + 1)
        elif all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()):
            yield from ((f"{inner}{name}", tensor) for name, tensor in value.items())
