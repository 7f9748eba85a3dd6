"""Conversions between PIL images, integer tensors and float tensors in [-1, 1].

PyTorch is imported inside the functions, because some processes import this module only to read and write files, and
importing PyTorch would delay the start of these processes.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def pil_to_uint8(image: Image.Image) -> "Tensor":
    """Convert an RGB image to a uint8 tensor (3, H, W) on the CPU."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_float(pixels: "Tensor") -> "Tensor":
    """Convert uint8 (0 to 255) or uint16 (0 to 65535) pixels to floats in [-1, 1].

    The tensor can have any shape; the result has PyTorch's default dtype.
    """
    import torch

    return pixels.to(torch.get_default_dtype()) / (torch.iinfo(pixels.dtype).max / 2) - 1.0


def quantize(values: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """Map floats in [-1, 1] to integers from 0 to the largest value of `dtype`, with rounding and clipping.

    Args:
        dtype: `torch.uint8` (0 to 255) or `torch.uint16` (0 to 65535).
    """
    import torch

    largest = torch.iinfo(dtype).max
    return ((values.float() + 1.0) * (largest / 2)).round().clamp(0, largest).to(dtype)


def to_uint8(values: "Tensor") -> "Tensor":
    """Convert floats in [-1, 1] to uint8 values from 0 to 255, with rounding and clipping."""
    import torch

    return quantize(values, torch.uint8)


def uint8_to_pil(pixels: "Tensor") -> Image.Image:
    """Convert a uint8 tensor (3, H, W) on any device to an RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
