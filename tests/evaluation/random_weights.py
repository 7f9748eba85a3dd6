"""Files with random weights of pretrained networks, for tests of commands."""

from pathlib import Path

import torch

from cyclestyle.model_files import weights_file
from cyclestyle.networks.pretrained import PRETRAINED


def write_random_weights(folder: Path, *names: str) -> Path:
    """Write one file for each network to `folder`, which can be given as `features.path`; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        torch.manual_seed(0)
        tensors = PRETRAINED[name].build().state_dict()
        checksum = weights_file.checksum(tensors)
        content = weights_file.WeightsFile(name, tensors, checksum, "random numbers", "none", "none")
        weights_file.write(content, folder / f"{name}.safetensors")
    return folder
