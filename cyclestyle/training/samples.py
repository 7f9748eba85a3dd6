"""Sample images: the probe images of both domains, and what the generators make of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from cyclestyle.hardware.device import Hardware
from cyclestyle.images import tensors
from cyclestyle.monitor.logger import Samples
from cyclestyle.objectives.cyclegan import Generators


@torch.no_grad()
def translate_probes(generators: Generators, hardware: Hardware, a: Tensor, b: Tensor) -> tuple[Samples, Samples]:
    """Translate probe images both ways, back again, and each by the generator that should leave it alone.

    Args:
        generators: in evaluation mode.
        a, b: uint8 (N, 3, H, W).
    """
    ab, ba = hardware.autocast(generators.ab), hardware.autocast(generators.ba)

    def translate(probes: Tensor, forth: Callable[..., Tensor], back: Callable[..., Tensor]) -> Samples:
        real = tensors.to_float(hardware.upload(probes))
        translated = forth(real)
        images = (real, translated, back(translated), back(real))
        return Samples(*(tensors.to_uint8(image).cpu() for image in images))

    return translate(a, ab, ba), translate(b, ba, ab)
