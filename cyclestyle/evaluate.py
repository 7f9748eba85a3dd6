"""Score the translations of a trained generator: `python -m cyclestyle.evaluate checkpoint=... input=... truth=...`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclestyle.cli import compose, dispatch
from cyclestyle.hardware.threads import spin_briefly

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from cyclestyle.evaluation.evaluator import Report


def main() -> None:
    spin_briefly()
    dispatch.launch("evaluate", run)


def run(cfg: "DictConfig") -> int:
    evaluate(**compose.arguments_for(cfg, evaluate))
    return 0


def evaluate(
    checkpoint: str | Path,
    input: str | Path,  # noqa: A002
    *,
    truth: str | Path | None = None,
    target: str | Path | None = None,
    direction: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    batch_size: int = 8,
    backend: Literal["auto", "torch", "onnx"] = "auto",
    weights: Literal["ema", "raw"] = "ema",
    plugins: Sequence[str] = (),
) -> "Report":
    """Translate the photos in a folder without writing the translations to disk, and print scores of the translations.

    The scores compare the translations with the input photos; with their ground truth, if `truth` is given; and with
    photos of the target domain, if `target` is given.

    Args:
        checkpoint, direction, device, precision, backend, weights, plugins: see `Translator.load`.
        input, truth, target: see `evaluator.evaluate`.
        batch_size: largest number of photos of one size that are translated together.

    Returns:
        The scores.
    """
    # importing torch takes seconds; --help and mistyped keys do not need it
    from cyclestyle.evaluation import evaluator
    from cyclestyle.images.tensors import with_channels
    from cyclestyle.translation import Translator

    truths, targets = (None if folder is None else Path(folder) for folder in (truth, target))
    options = {"direction": direction, "device": device, "precision": precision, "weights": weights, "backend": backend}
    translator = Translator.load(checkpoint, **options, plugins=plugins)  # type: ignore[arg-type]

    print(translator, flush=True)

    def model(pixels: "Tensor") -> "Tensor":
        return with_channels(translator.batch(pixels), 3)

    report = evaluator.evaluate(model, Path(input), truth=truths, target=targets, batch_size=batch_size)
    print(evaluator.table(report, truth=truths, target=targets))
    return report


if __name__ == "__main__":
    main()
