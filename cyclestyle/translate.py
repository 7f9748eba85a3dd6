"""Translate one picture or a whole photo set: `python -m cyclestyle.translate checkpoint=... input=... output=...`."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclestyle import config

if TYPE_CHECKING:
    from omegaconf import DictConfig

FINISHED_WITH_FAILURES = 6


def main() -> None:
    config.launch("translate", run)


def run(cfg: "DictConfig") -> int:
    return translate(**config.pick(cfg, translate))


def translate(
    checkpoint: str | Path,
    input: str | Path,  # noqa: A002
    output: str | Path,
    *,
    direction: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    batch_size: int = 8,
    weights: Literal["ema", "raw"] = "ema",
    existing: Literal["keep", "overwrite"] = "keep",
) -> int:
    """Translate a picture or a folder of pictures, and print what was done.

    Args:
        checkpoint: a run's folder, a checkpoint's folder or a safetensors file.
        input, output, existing: see `photoset.plan`.
        direction, device, precision, weights: see `Translator.load`.
        batch_size: pictures of one size that are translated together, at most.

    Returns:
        The exit code: 0, or 6 if pictures failed.
    """
    from cyclestyle.translation import Translator, photoset  # torch takes seconds; --help and typing errors need none

    planned = photoset.plan(Path(input), Path(output), existing=existing)
    translator = Translator.load(checkpoint, direction=direction, device=device, precision=precision, weights=weights)

    print(f"{translator}: {len(planned.jobs)} to translate", flush=True)
    outcome = photoset.translate(planned, translator.batch, batch_size=batch_size)
    print(photoset.summary(outcome, planned))
    return FINISHED_WITH_FAILURES if outcome.failures else 0


if __name__ == "__main__":
    main()
