"""One direction of a trained model, ready to translate pictures of any size."""

from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from cyclestyle import checkpoint, images, networks
from cyclestyle.checkpoint import Model
from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.hardware import Hardware


class Translator:
    """Translates pictures from one domain to the other; every picture keeps its size.

    Args:
        generator: the bare network; it is moved to the hardware and set to evaluation.
        hardware: where it runs, and in what precision.
        direction: what it does, such as `photo2monet`.
        directions: the two that its model has.
        weights: which of the model's weights these are.
        path: of the model file.
        step: at which it was saved.
    """

    def __init__(
        self,
        generator: nn.Module,
        *,
        hardware: Hardware,
        direction: str,
        directions: tuple[str, str],
        weights: Literal["ema", "raw"],
        path: Path,
        step: int,
    ) -> None:
        self.generator, self.hardware = generator.eval().requires_grad_(False), hardware
        self.direction, self.directions, self.weights = direction, directions, weights
        self.path, self.step = path, step
        hardware.place(generator)
        self._call = hardware.autocast(generator)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        direction: str | None = None,
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        weights: Literal["ema", "raw"] = "ema",
    ) -> "Translator":
        """A translator from what training has saved; all that it needs to know is in the model file.

        Args:
            path: a run's folder, a checkpoint's folder or a safetensors file.
            direction: such as `photo2monet`, by the model's own domains; `a2b` and `b2a` work as well.
            weights: `ema` is the moving average where the model has one, else the weights of the last step.

        Raises:
            CommandError: no such direction, device or precision.
            CheckpointError: no model there, or one that is damaged or does not translate RGB pictures.
        """
        model = checkpoint.read_model(Path(path))
        side = _side(direction, model.domains)
        averaged = weights == "ema" and bool(model.part(f"ema.{side}."))

        return cls(
            _generator(model, f"ema.{side}." if averaged else f"generators.{side}."),
            hardware=Hardware(device, precision=precision),
            direction=_directions(model.domains)[side == "ba"],
            directions=_directions(model.domains),
            weights="ema" if averaged else "raw",
            path=model.path,
            step=model.step,
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        """The translation of one picture of any colour mode, its pixels taken as they stand, as RGB."""
        return images.from_pixels(self.batch(images.to_pixels(images.to_rgb(image))[None])[0])

    @torch.inference_mode()
    def batch(self, pixels: Tensor) -> Tensor:
        """The translations of pictures of one size, uint8 (N, 3, H, W) both ways, on the CPU.

        Instance norm looks at one picture at a time: what else is in the batch changes nothing but the rounding.
        """
        translated: Tensor = self._call(images.to_float(self.hardware.send(pixels)))
        return images.to_uint8(translated).cpu()

    def __str__(self) -> str:
        return f"{self.path} (step {self.step}), {self.direction}, {self.weights} weights, on {self.hardware}"


def _directions(domains: tuple[str, str]) -> tuple[str, str]:
    a, b = domains
    return f"{a}2{b}", f"{b}2{a}"


def _side(direction: str | None, domains: tuple[str, str]) -> Literal["ab", "ba"]:
    """Which generator a direction means; the domains' own names come before `a2b` and `b2a`."""
    ab, ba = _directions(domains)
    if ab == ba:  # domains x and x2x, for one: only the letters tell the two apart
        ab, ba = "a2b", "b2a"
    names: dict[str | None, Literal["ab", "ba"]] = {"a2b": "ab", "b2a": "ba"}
    names |= {ab: "ab", ba: "ba"}
    if direction not in names:
        wrong = "direction= is missing" if direction is None else f"direction={direction} is unknown"
        raise CommandError(f"{wrong}: this model translates {ab} or {ba}")
    return names[direction]


def _generator(model: Model, prefix: str) -> nn.Module:
    """The network that the model file describes, with the weights that it has below a prefix."""
    name = model.generator.get("name")
    if name not in networks.GENERATORS:
        known = " or ".join(networks.GENERATORS)
        raise CheckpointError(f"{model.path}: its generator is called {str(name)[:40]!r}, expected {known}")
    if any(model.generator.get(key, 3) != 3 for key in ("in_channels", "out_channels")):
        raise CheckpointError(
            f"{model.path}: its generator does not translate RGB pictures, the only kind there is here"
        )
    generator = networks.build(model.generator)

    weights = model.part(prefix)
    differences = checkpoint.misfits(generator.state_dict(), weights)
    if differences:
        fault = f"{model.path}: its weights {prefix}* do not fit the {name} generator that its header describes"
        raise CheckpointError("\n  ".join([fault, *differences]))
    generator.load_state_dict(weights)
    return generator
