"""Detection of model files by their content, and one-line reasons for rejecting files of other programs."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cyclestyle.errors import CheckpointError

Kind = Literal["safetensors", "torch", "onnx"]

EXPECTED = "expected a run folder, a .safetensors file, or weights saved by PyTorch (.pth, .pt, .ckpt)"
_TENSORFLOW = f"is a file of TensorFlow, whose networks have other layers: {EXPECTED}"
_LUA = f"is a file of Lua Torch, which PyTorch no longer reads: {EXPECTED}"
_ARCHIVE = "is an archive: unpack it and give the file of weights in it"
_PAGE = "is a web page, not a model: download the file itself"

_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number that torch.save wrote before its zip format
_LEVELDB = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # last bytes of a TensorFlow checkpoint's table
_ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"  # protobuf tags that may follow the format version in an ONNX file
_STARTS = {  # first bytes of a file -> reason for its rejection
    b"\x89HDF\r\n\x1a\n": f"is an HDF5 file, as Keras writes them, whose networks have other layers: {EXPECTED}",
    b"\x03\0\0\0\x01\0\0\0": _LUA,  # a table
    b"\x04\0\0\0\x01\0\0\0": _LUA,  # an object
    b"3\n1\n": _LUA,  # the same in text format
    b"4\n1\n": _LUA,
    b"\x93NUMPY": f"is a NumPy array: {EXPECTED}",
    b"version https://git-lfs": "is a pointer of Git LFS, not the model itself: run git lfs pull, or download the file",
    b"\x1f\x8b": _ARCHIVE,
    b"BZh": _ARCHIVE,
    b"\xfd7zXZ": _ARCHIVE,
    b"7z\xbc\xaf": _ARCHIVE,
    b"Rar!": _ARCHIVE,
}
_SUFFIXES: dict[str, Kind] = {".pth": "torch", ".pt": "torch", ".safetensors": "safetensors", ".onnx": "onnx"}
_TENSORFLOW_NAME = re.compile(r"\.(pb|meta|index|data-\d{5}-of-\d{5})$")


def kind_of(path: Path) -> Kind:
    """Detect the format of a model file by its first and last bytes, or by its suffix if the bytes are unknown.

    A file with a known suffix but unknown bytes is probably damaged; the function that reads its format reports this.

    Raises:
        CheckpointError: the file cannot be read, is empty, belongs to another program, or has unknown bytes and an
            unknown suffix.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
            stream.seek(max(0, path.stat().st_size - 8))
            end = stream.read(8)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {(error.strerror or '').lower()}") from None
    if reason := _reason(path, start, end):
        raise CheckpointError(f"{path} {reason}")
    for kind, matches in _KINDS.items():
        if matches(start):
            return kind
    if by_suffix := _SUFFIXES.get(path.suffix.lower()):
        return by_suffix
    raise CheckpointError(f"{path} is no model file: {EXPECTED}")


def tensorflow_reason(path: Path) -> str | None:
    """Return the reason for rejecting a checkpoint of TensorFlow; None if there is none at `path`.

    Args:
        path: a folder that may contain the checkpoint, or the common prefix of its files, such as `model.ckpt` for
            `model.ckpt.index`.
    """
    if path.is_dir():
        written = [*path.glob("saved_model.pb"), *path.glob("*.ckpt*.index"), *path.glob("model-*.index")]
        return f"holds {written[0].name}, {_TENSORFLOW.removeprefix('is ')}" if written else None
    return _TENSORFLOW if path.with_name(f"{path.name}.index").is_file() else None


def _reason(path: Path, start: bytes, end: bytes) -> str | None:
    """Return why the file at `path` is rejected; None if it may be a model file.

    Args:
        start: first bytes of the file.
        end: last bytes of the file.
    """
    if not start:
        return "is empty: copy or download it again"
    if path.name == "training.pt" or re.fullmatch(r"rank\d+\.pt", path.name):
        return f"holds a run's state of training, not its networks: give the checkpoint folder {path.parent}"
    for first, reason in _STARTS.items():
        if start.startswith(first):
            return reason
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return _PAGE
    if start[257:262] == b"ustar":
        return _ARCHIVE
    if end == _LEVELDB or start[4:8] == b"TFL3" or _TENSORFLOW_NAME.search(path.name):
        return _TENSORFLOW
    if start.startswith(b"PK\x03\x04"):
        return _zip_reason(path)
    if re.match(rb"\x80[\x02-\x05]", start) and not start.startswith(_TORCH_MAGIC):
        return f"is a pickle of Python objects, and reading it could execute code: {EXPECTED}"
    return None


def _zip_reason(path: Path) -> str | None:
    """Return why a zip file is rejected; None if it may be a file of `torch.save`, or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return "is a program of TorchScript, and reading it would execute it: save its state_dict() by torch.save"
    if "data.pkl" in inner:
        return None
    if any(name.endswith(".weights.h5") for name in names):
        return f"is a file of Keras, whose networks have other layers: {EXPECTED}"
    if any(name.endswith(".npy") for name in names):
        return f"is an archive of NumPy arrays: {EXPECTED}"
    return _ARCHIVE


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{"


def _is_torch(start: bytes) -> bool:
    return start.startswith((b"PK\x03\x04", _TORCH_MAGIC))


def _is_onnx(start: bytes) -> bool:
    return len(start) > 2 and start[0] == 8 and start[1] < 128 and start[2] in _ONNX_FIELDS


_KINDS: dict[Kind, Callable[[bytes], bool]] = {
    "safetensors": _is_safetensors,
    "torch": _is_torch,
    "onnx": _is_onnx,
}
