"""Tensors from `.pth` files, without running any code in them."""

import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from cyclestyle.checkpoints.model import tensor_bytes
from cyclestyle.errors import CheckpointError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file of names and tensors, as torch.save writes them in either of its formats.

    Raises:
        CheckpointError: it holds anything else, code above all, or more than its bytes can be.
    """
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:  # torch.save never compresses
                    raise CheckpointError(f"{path} cannot be read: it is compressed, which torch.save never does")
        with warnings.catch_warnings(action="ignore"):  # of kinds of tensors that are refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path} cannot be read: it is damaged, or it holds more than weights") from None
    except Exception as error:  # what a file can make torch raise is documented nowhere
        raise CheckpointError(f"{path} cannot be read: is it a whole .pth file? ({type(error).__name__})") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{path} is not a file of weights: expected names and tensors")
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if len(tensors) < len(found) or any(tensor.layout != torch.strided for tensor in tensors.values()):
        raise CheckpointError(f"{path} is not a file of weights: expected names and tensors, and nothing else")
    if tensor_bytes(tensors) > size:  # views that repeat themselves
        raise CheckpointError(f"{path} is not a file of weights: its tensors have more numbers than the file")
    return tensors
