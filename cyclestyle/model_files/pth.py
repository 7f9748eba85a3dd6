"""Reading of tensors from `.pth` files, without executing any code that the files contain."""

import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from cyclestyle.checkpoints.model import tensor_bytes
from cyclestyle.errors import CheckpointError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a `.pth` file by name; the file may have the zip or the legacy format of `torch.save`.

    Raises:
        CheckpointError: the file is damaged, contains more than names and tensors, or describes tensors with more bytes
            than the file has.
    """
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:  # torch.save never compresses
                    raise CheckpointError(f"{path} cannot be read: it is compressed, which torch.save never does")
        with warnings.catch_warnings(action="ignore"):  # warnings about tensor layouts, which are rejected below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path} cannot be read: it is damaged, or it holds more than weights") from None
    except Exception as error:  # torch does not document its errors for malformed files
        raise CheckpointError(f"{path} cannot be read: is it a whole .pth file? ({type(error).__name__})") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path} is not a file of weights: expected names and tensors")
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if len(tensors) < len(content) or any(tensor.layout != torch.strided for tensor in tensors.values()):
        raise CheckpointError(f"{path} is not a file of weights: expected names and tensors, and nothing else")
    if tensor_bytes(tensors) > size:  # expanded views, which repeat few stored bytes
        raise CheckpointError(f"{path} is not a file of weights: its tensors have more numbers than the file")
    return tensors
