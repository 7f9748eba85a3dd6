"""Conversions between PIL images, integer tensors and float tensors in [-1, 1].

PyTorch is imported inside the functions, because some processes import this module only to read and write files, and
importing PyTorch would delay the start of these processes.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cyclestyle.images.photo import PixelArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def pil_to_uint8(image: Image.Image) -> "Tensor":
    """Convert an RGB image to a uint8 tensor (3, H, W) on the CPU, or a grey image (mode L) to (1, H, W)."""
    import torch

    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def array_to_tensor(pixels: PixelArray) -> "Tensor":
    """Convert an array (H, W, 3) to a tensor (3, H, W); the pixels are copied only if the array is read-only."""
    import torch

    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)


def tensor_to_array(pixels: "Tensor") -> PixelArray:
    """Convert a tensor (C, H, W) on any device to a contiguous array (H, W, C)."""
    array: PixelArray = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    return array


def to_float(pixels: "Tensor") -> "Tensor":
    """Convert uint8 (0 to 255) or uint16 (0 to 65535) pixels to floats in [-1, 1].

    The tensor can have any shape; the result has PyTorch's default dtype.
    """
    import torch

    # in place: a photo of 100 megapixels takes 1.2 GB as floats, and each copy as much again
    return pixels.to(torch.get_default_dtype(), copy=True).div_(torch.iinfo(pixels.dtype).max / 2).sub_(1.0)


def with_channels(images: "Tensor", channels: int) -> "Tensor":
    """Convert images (..., C, H, W) of any dtype to `channels` channels; C and `channels` are 1 (grey) or 3 (sRGB).

    Grey is the luma of ITU-R BT.601, as in Pillow's mode L: 0.299 red + 0.587 green + 0.114 blue. Grey colours keep
    their value. Images that have `channels` channels already are returned without a copy.
    """
    import torch

    count = images.shape[-3]
    if count == channels:
        return images
    if channels == 3:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    precise = images if images.is_floating_point() else images.to(torch.float64)
    red, green, blue = precise.unbind(-3)
    grey = (green + 0.299 * (red - green) + 0.114 * (blue - green)).unsqueeze(-3)
    return grey if images.is_floating_point() else grey.round().to(images.dtype)


def quantize(values: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """Map floats in [-1, 1] to integers from 0 to the largest value of `dtype`, with rounding and clipping.

    Args:
        dtype: `torch.uint8` (0 to 255) or `torch.uint16` (0 to 65535).
    """
    import torch

    largest = torch.iinfo(dtype).max
    return (values.float() + 1.0).mul_(largest / 2).round_().clamp_(0, largest).to(dtype)


def to_uint8(values: "Tensor") -> "Tensor":
    """Convert floats in [-1, 1] to uint8 values from 0 to 255, with rounding and clipping."""
    import torch

    return quantize(values, torch.uint8)


def uint8_to_pil(pixels: "Tensor") -> Image.Image:
    """Convert a uint8 tensor on any device to an image: (3, H, W) to RGB, (1, H, W) to grey (mode L)."""
    array = tensor_to_array(pixels)
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
