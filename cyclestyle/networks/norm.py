"""Instance norm whose output keeps the memory layout of its input (Ulyanov, Vedaldi, Lempitsky 2016)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm


class InstanceNorm(nn.InstanceNorm2d):
    """`nn.InstanceNorm2d(channels)`: normalises each channel of each image (N, C, H, W) to mean 0 and variance 1.

    PyTorch computes instance norm as the batch norm of one image with N * C channels. For tensors in channels-last
    layout, this needs a copy before and after. On CPUs, up to torch 2.15, `nn.InstanceNorm2d` also yields wrong
    gradients for a batch of one image.

    For batches in channels-last layout, and for a batch of one image in any layout, this class therefore calls
    `batch_norm` once per image. The outputs have the same values, without the copies. Under `torch.compile`, PyTorch's
    instance norm is used.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name in PyTorch
        if torch.compiler.is_compiling() or (len(input) > 1 and input.is_contiguous()):
            return super().forward(input)
        images = torch.split(input, 1)
        outputs = [batch_norm(image, None, None, training=True, eps=self.eps) for image in images]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
