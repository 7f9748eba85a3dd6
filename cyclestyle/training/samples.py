"""Samples: translations and reconstructions of the probe images of both domains."""

from collections.abc import Callable

import torch
from torch import Tensor

from cyclestyle.hardware.device import Hardware
from cyclestyle.images import tensors
from cyclestyle.monitor.logger import Samples
from cyclestyle.objectives.cyclegan import Generators


@torch.no_grad()
def translate_probes(generators: Generators, hardware: Hardware, a: Tensor, b: Tensor) -> tuple[Samples, Samples]:
    """Return translations, reconstructions and identity outputs for the probe images of both domains.

    Args:
        generators: generators in evaluation mode.
        a, b: probe images, uint8 (N, 3, H, W).

    Returns:
        Samples for `a` and samples for `b`, as uint8 images on the CPU.
    """
    ab, ba = hardware.autocast(generators.ab), hardware.autocast(generators.ba)

    def translate(probes: Tensor, forward: Callable[..., Tensor], backward: Callable[..., Tensor]) -> Samples:
        real = tensors.to_float(hardware.upload(probes))
        translated = forward(real)
        images = (real, translated, backward(translated), backward(real))
        return Samples(*(tensors.to_uint8(image).cpu() for image in images))

    return translate(a, ab, ba), translate(b, ba, ab)
