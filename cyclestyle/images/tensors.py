"""Images as tensors: uint8 pixels, floats in [-1, 1], and back."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def pil_to_uint8(image: Image.Image) -> "Tensor":
    """An RGB picture as uint8 (3, H, W)."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_float(pixels: "Tensor") -> "Tensor":
    """uint8 or uint16 pixels (..., H, W), 0 to 255 or 65535, as floats in [-1, 1] of PyTorch's default type."""
    import torch

    return pixels.to(torch.get_default_dtype()) / (torch.iinfo(pixels.dtype).max / 2) - 1.0


def quantize(values: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """Floats in [-1, 1] as integers, rounded; values beyond the range are clipped.

    Args:
        dtype: `torch.uint8` (0 to 255) or `torch.uint16` (0 to 65535).
    """
    import torch

    largest = torch.iinfo(dtype).max
    return ((values.float() + 1.0) * (largest / 2)).round().clamp(0, largest).to(dtype)


def to_uint8(values: "Tensor") -> "Tensor":
    """Floats in [-1, 1] as uint8, rounded; values beyond the range are clipped."""
    import torch

    return quantize(values, torch.uint8)


def uint8_to_pil(pixels: "Tensor") -> Image.Image:
    """uint8 (3, H, W) as an RGB picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
