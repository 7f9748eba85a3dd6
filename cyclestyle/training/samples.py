"""Samples: translations and reconstructions of the probe images of both domains."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cyclestyle.hardware.device import Hardware
from cyclestyle.images import tensors
from cyclestyle.monitor.logger import Samples


@torch.no_grad()
def translate_probes(generators: nn.Module, hardware: Hardware, a: Tensor, b: Tensor) -> tuple[Samples, Samples]:
    """Return translations, reconstructions and identity outputs for the probe images of both domains.

    Probe images are fixed images that show progress. A reconstruction is an image translated there and back. An
    identity output is a generator's output for an image of its target domain.

    Args:
        generators: both generators in evaluation mode, as `.ab` and `.ba`.
        a, b: probe images, uint8 (N, C, H, W). If C differs between `a` and `b`, there are no identity outputs.

    Returns:
        Samples for `a` and samples for `b`, as uint8 images on the CPU.
    """
    has_identity = a.shape[1] == b.shape[1]
    ab, ba = hardware.autocast(generators.ab), hardware.autocast(generators.ba)  # type: ignore[arg-type]

    def on_cpu(images: Tensor) -> Tensor:
        return tensors.to_uint8(images).cpu()

    def translate(probes: Tensor, forward: Callable[..., Tensor], backward: Callable[..., Tensor]) -> Samples:
        real = tensors.to_float(hardware.upload(probes))
        translated = forward(real)
        reconstructed = backward(translated)
        identity = on_cpu(backward(real)) if has_identity else None
        return Samples(on_cpu(real), on_cpu(translated), on_cpu(reconstructed), identity)

    return translate(a, ab, ba), translate(b, ba, ab)
