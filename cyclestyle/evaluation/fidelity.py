"""Feature extractors of the library torch-fidelity as rulers, for scores that are comparable with other papers.

A ruler is a pretrained network that turns images into features, see `evaluation.rulers`. The library fetches the
weights of its extractors itself, into the folder of `torch.hub`. For DINOv2 it also fetches the code of the network.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.filesystem.listing import one_line, printable
from cyclestyle.model_files.weights import Missing

PREFIX = "fidelity:"
# Short names for the extractors that papers use: FID and KID; FD-DINOv2 (Stein et al. 2023); CMMD (Jayasumana et al.
# 2024). Other extractors have the names of the library, such as `fidelity:clip-vit-b-32`.
SHORT_NAMES = {"inception": "inception-v3-compat", "dinov2": "dinov2-vit-l-14", "clip": "clip-vit-l-14-336px"}
LAYER = "features"  # the single layer of a `FidelityNetwork`

_HASH = 64 * "[0-9a-f]"


class FidelityNetwork(nn.Module):
    """An extractor of torch-fidelity with the interface of a pretrained network, see `PretrainedNetwork`.

    Its only layer, named `LAYER`, is the pooled vector: one vector per image.

    Args:
        extractor: extractor that maps uint8 images (N, 3, H, W) to a tuple of one tensor (N, d).
        size: side in px of the square images that the extractor's network sees. The extractor does not resize images of
            this size.
    """

    def __init__(self, extractor: nn.Module, *, size: int) -> None:
        super().__init__()
        self.extractor, self.size = extractor, size

    def forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return a dict with one entry: `LAYER` -> features (N, d) of `images`, floating point (N, 3, H, W) in 0..1.

        `layers` is ignored.
        """
        (features,) = self.extractor((images * 255).round().to(torch.uint8))
        return {LAYER: features}

    def pooled(self, activations: Mapping[str, Tensor]) -> Tensor:
        return activations[LAYER]


def load(name: str, *, missing: Missing, default_size: int, report: Callable[[str], object]) -> FidelityNetwork | None:
    """Load an extractor of torch-fidelity.

    Args:
        name: `fidelity:` followed by a short name, such as `inception` (see `SHORT_NAMES`), or by the library's own
            name for the extractor, such as `clip-vit-b-32`.
        missing: treatment of weights that are not on this machine: `fetch` lets the library fetch them, `error` raises
            a CommandError, `skip` returns None.
        default_size: side in px of the square images that the extractor gets if it has no fixed input size.
        report: function that receives a line of text before weights are fetched.

    Returns:
        The extractor on the CPU; None if its weights are missing and `missing` is `skip`.

    Raises:
        CommandError: torch-fidelity is not installed or has no such extractor, or the weights are missing or cannot be
            fetched.
    """
    try:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
        from torch_fidelity.utils import create_feature_extractor
    except ImportError:
        raise CommandError(f"{name} needs torch-fidelity: pip install 'cyclestyle[metrics]'") from None
    registered = SHORT_NAMES.get(name.removeprefix(PREFIX), name.removeprefix(PREFIX))
    if registered not in FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join([*SHORT_NAMES, *FEATURE_EXTRACTORS_REGISTRY])
        raise CommandError(f"no ruler {name}: torch-fidelity has {PREFIX} followed by one of {known}")
    if not _is_on_this_machine(registered):
        if missing == "skip":
            return None
        if missing == "error":
            raise CommandError(f"no weights of {name} on this machine: missing=fetch lets torch-fidelity fetch them")
        report(f"{name}: torch-fidelity fetches its weights into {printable(_hub())}")

    layer = FEATURE_EXTRACTORS_REGISTRY[registered].get_default_feature_layer_for_metric("fid")
    try:
        extractor = create_feature_extractor(registered, [layer], cuda=False, verbose=False)
    except (OSError, RuntimeError) as error:
        raise CommandError(
            f"cannot load {name}: {one_line(str(error))}: torch-fidelity fetches its weights from the internet once; "
            f"fill {printable(_hub())} on a machine with internet, or leave {name} out"
        ) from None
    return FidelityNetwork(extractor, size=_input_size(extractor) or default_size)


def _is_on_this_machine(registered: str) -> bool:
    """Return whether the weights of an extractor are on this machine; True for an extractor without known files.

    `registered` is the library's name for the extractor.
    """
    patterns = {
        r"inception-v3-compat": ["checkpoints/weights-inception-2015-12-05-*.pth"],
        r"vgg16": [f"checkpoints/vgg16-{8 * '[0-9a-f]'}.pth"],
        r"clip-.*": [f"checkpoints/{registered}-{_HASH}.pt"],
        r"dinov2-vit-(.)-14": [r"checkpoints/dinov2_vit\g<1>14_pretrain.pth", "facebookresearch_dinov2_*"],
    }
    for pattern, files in patterns.items():
        if match := re.fullmatch(pattern, registered):
            return all(any(_hub().glob(match.expand(file))) for file in files)
    return True


def _hub() -> Path:
    """Return the folder of `torch.hub`, which torch-fidelity uses for its weights."""
    return Path(torch.hub.get_dir())


def _input_size(extractor: Any) -> int | None:
    """Return the size in px to which an extractor resizes its images; None if it has no fixed size."""
    size = getattr(extractor, "INPUT_IMAGE_SIZE", None) or getattr(extractor, "resolution", None)
    return size if isinstance(size, int) else None
