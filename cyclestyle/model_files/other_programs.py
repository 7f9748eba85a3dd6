"""Recognition of generators in files of other programs, by the names and shapes of their tensors.

Many programs use the ResNet of the reference, the 2017 PyTorch implementation of CycleGAN, but with other layer names
and with prefixes. Such weights are renamed to the reference's names. Generators of other architectures are rejected,
and the error text names the reason.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

Tensors = Mapping[str, Tensor]
Side = Literal["ab", "ba"]

_BLOCK = re.compile(r"^model\.(\d+)\.block\.(\d+)\.(weight|bias)$")  # a residual block as PyTorch-GAN names it

# Names of generators by their direction. Only names that state both domains are known in all programs; `G_A` is the
# name of the reference, whose generator A translates from domain A to domain B.
_SIDES: dict[Side, re.Pattern[str]] = {
    "ab": re.compile(
        r"A_?(?:2|to)_?B(?![A-Za-z])"
        r"|(?<![A-Za-z0-9])a_?(?:2|to)_?b(?![A-Za-z0-9])"
        r"|(?:^|[._-])(?:net)?(?:G|g|Gen|gen|Generator|generator|generators)?[._]?(?:AB|ab)(?![A-Za-z0-9])"
        r"|(?:^|[._-])(?:net)?[Gg]_[Aa](?![A-Za-z0-9])"
    ),
    "ba": re.compile(
        r"B_?(?:2|to)_?A(?![A-Za-z])"
        r"|(?<![A-Za-z0-9])b_?(?:2|to)_?a(?![A-Za-z0-9])"
        r"|(?:^|[._-])(?:net)?(?:G|g|Gen|gen|Generator|generator|generators)?[._]?(?:BA|ba)(?![A-Za-z0-9])"
        r"|(?:^|[._-])(?:net)?[Gg]_[Bb](?![A-Za-z0-9])"
    ),
}


def side_in(name: str) -> Side | None:
    """Return the direction, "ab" or "ba", in the name of a file or of a generator; it is "ab" for `netG_A2B`.

    Returns None if the name contains no direction or both.
    """
    sides: list[Side] = [side for side, pattern in _SIDES.items() if pattern.search(name)]
    return sides[0] if len(sides) == 1 else None


def generator_prefixes(tensors: Tensors) -> list[str]:
    """Find all generators that have the layers of the reference or of our ResNet; return their name prefixes.

    A prefix distinguishes the tensors of one generator from all others in the file. It is empty or ends with a dot: the
    tensor `netG_A.model.1.weight`, for example, has the prefix `netG_A.`. The prefix excludes `model.`, with which all
    names in the reference's generators begin.
    """
    prefixes = []
    for name, tensor in tensors.items():
        for start, side in ((".model.model.0.weight", 4), (".stem.conv.weight", 7), (".1.weight", 7)):
            if not f".{name}".endswith(start) or tensor.ndim != 4 or tensor.shape[-1] != side:
                continue
            prefix = name[: len(name) - len(start) + 1]
            follows = {4: "model.model.3.weight", 7: "4.weight" if start == ".1.weight" else "down.0.conv.weight"}
            if prefix + follows[side] in tensors:
                prefixes.append(prefix.removesuffix("model.") if start == ".1.weight" else prefix)
    return list(dict.fromkeys(prefixes))


def under(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of the generator whose tensor names begin with `prefix`; remove the prefix from the names.

    `model.` is put before names that begin with a layer number, such as `1.weight`. PyTorch-GAN's names of residual
    blocks are replaced by those of the reference. Generators that `_resizes` recognizes keep PyTorch-GAN's names, since
    they are rejected later. Names of our own networks stay unchanged.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not any(name.startswith(("model.", "stem.")) for name in own):
        own = {f"model.{name}": tensor for name, tensor in own.items()}
    if _resizes(own):
        return own
    return {_BLOCK.sub(r"model.\1.conv_block.\2.\3", name): tensor for name, tensor in own.items()}


def is_own(tensors: Tensors) -> bool:
    """Return whether the tensors have the names of our ResNet generator."""
    return {"stem.conv.weight", "down.1.conv.weight", "up.0.conv.weight", "head.conv.weight"} <= tensors.keys()


def describe_own(tensors: Tensors) -> dict[str, str | int | float | bool]:
    """Return the architecture of our ResNet generator with these weights; its dropout rate is unknown and set to 0.

    Raises:
        KeyError: a layer is missing.
    """
    blocks = {name.split(".")[1] for name in tensors if re.fullmatch(r"trunk\.\d+\.first\.conv\.weight", name)}
    stem, head, up = (tensors[f"{layer}.conv.weight"] for layer in ("stem", "head", "up.0"))
    return {
        "name": "resnet",
        "channels": stem.shape[0],
        "blocks": len(blocks),
        "dropout": 0.0,
        # A transposed convolution has shape (in, out, height, width), a convolution (out, in, height, width).
        "upsample": "transposed" if up.shape[0] > up.shape[1] else "resize",
        "in_channels": stem.shape[1],
        "out_channels": head.shape[0],
    }


def foreign_reason(tensors: Tensors) -> str | None:
    """Return why these weights fit no generator of this program; None if they may fit one."""
    for applies, reason in _FOREIGN:
        if name := next(filter(applies, tensors), None):
            return reason.format(name=name[:80])
    if _resizes(tensors):
        return (
            "its generator is PyTorch-GAN's, which pads with zeros after resizing; generators here have transposed "
            "convolutions, or reflect after resizing"
        )
    if norm := next((name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.ndim == 1), None):
        layer = norm.removesuffix(".weight")
        kind = "batch norm" if f"{layer}.running_var" in tensors else "norms with a learned scale"
        instead = "instance norm" if kind == "batch norm" else "instance norm without one"
        remedy = ": train it with --norm instance" if kind == "batch norm" else ""
        return f"it has {kind} ({layer} has weights of its own), and generators here have {instead}{remedy}"
    return None


def _resizes(tensors: Tensors) -> bool:
    """Return whether these are weights of the ResNet in PyTorch-GAN, which upsamples by resizing.

    The layers are numbered. In PyTorch-GAN, a resizing layer follows the last residual block, so the number of the next
    convolution is that of the block plus 2. In the reference, it is that of the block plus 1.
    """
    numbers = [int(match[1]) for name in tensors if (match := _BLOCK.match(name))]
    first = tensors.get(f"model.{max(numbers) + 2}.weight") if numbers else None
    return first is not None and first.ndim == 4


def _ends(*endings: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(endings)


def _contains(*parts: str) -> Callable[[str], bool]:
    return lambda name: any(part in f".{name}" for part in parts)


_FOREIGN: tuple[tuple[Callable[[str], bool], str], ...] = (  # test of a tensor's name, reason for the rejection
    (
        _ends(".filt"),
        "it has the anti-aliased layers of CUT ({name}), which generators here lack: train it with "
        "--no_antialias --no_antialias_up",
    ),
    (
        _contains(".conv2d."),
        "it is a network of fast-neural-style ({name}), which transfers one style without a CycleGAN and has norms "
        "with a learned scale",
    ),
    (_contains(".gap_fc.", ".DownBlock"), "it is a generator of U-GAT-IT ({name}), which has attention layers"),
    (_contains(".enc_content.", ".enc_style."), "it is a generator of MUNIT ({name}), which has two encoders"),
    (_contains(".lora_", ".transformer_blocks."), "it is a diffusion model or an addition to one ({name})"),
    (_ends(".weight_orig", ".weight_u"), "it has spectral norm ({name}), which generators here lack"),
    (_contains(".features.0.", ".fc.weight", ".classifier."), "it is a network that classifies images ({name})"),
)
