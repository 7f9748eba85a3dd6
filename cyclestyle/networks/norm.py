"""Instance norm whose output keeps the memory layout of its input (Ulyanov, Vedaldi, Lempitsky 2016)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm


class InstanceNorm(nn.InstanceNorm2d):
    """`nn.InstanceNorm2d(channels)`: normalises each channel of each image (N, C, H, W) to mean 0 and variance 1.

    PyTorch computes instance norm as the batch norm of one image with N * C channels. For tensors in channels-last
    layout, this needs a copy before and after. On CPUs, up to torch 2.15, PyTorch's method also yields wrong gradients
    for a single image.

    Batches in channels-last layout, and single images in any layout, are therefore normalised image by image as batches
    of size 1, which gives the same values without the copies.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name in PyTorch
        if torch.compiler.is_compiling() or (len(input) > 1 and input.is_contiguous()):
            return super().forward(input)
        images = torch.split(input, 1)
        outputs = [batch_norm(image, None, None, training=True, eps=self.eps) for image in images]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
