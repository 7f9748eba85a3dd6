"""Instance norm that keeps the memory layout of its pictures (Ulyanov, Vedaldi, Lempitsky 2016)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm


class InstanceNorm(nn.InstanceNorm2d):
    """`nn.InstanceNorm2d(channels)`: every channel of every picture of (N, C, H, W) to mean 0 and variance 1 over H, W.

    PyTorch computes it as the batch norm of one picture of N * C channels. In channels last that means a copy before
    it and one after it, and on CPUs, up to torch 2.15, gradients of a single picture that are wrong. Here such pictures
    are batches of one, one after the other: the same numbers without the copies.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  PyTorch's name for it
        if torch.compiler.is_compiling() or (len(input) > 1 and input.is_contiguous()):
            return super().forward(input)
        pictures = torch.split(input, 1)
        made = [batch_norm(picture, None, None, training=True, eps=self.eps) for picture in pictures]
        return made[0] if len(made) == 1 else torch.cat(made)
