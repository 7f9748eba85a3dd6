"""Probe pictures side by side, for eyes."""

from typing import NamedTuple, Protocol

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cyclestyle import images

_GAP, _HEADER = 4, 22  # px
_PAPER, _INK = (250, 250, 248), (60, 60, 60)


class Probed(Protocol):
    """Probe pictures and what became of them, (N, 3, H, W) uint8 each."""

    @property
    def real(self) -> Tensor: ...
    @property
    def translated(self) -> Tensor: ...
    @property
    def cycled(self) -> Tensor: ...
    @property
    def same(self) -> Tensor: ...


class Titles(NamedTuple):
    """What stands above the columns."""

    real: str
    translated: str
    cycled: str
    same: str


def titles(here: str, there: str) -> Titles:
    """For pictures of domain `here` that are translated to `there`."""
    return Titles(here, f"to {there}", f"and back to {here}", f"{here} to {here}")


def grid(probes: Probed, above: Titles) -> Image.Image:
    """A row for each probe picture; columns: real, translated, reconstructed, identity."""
    columns = [probes.real, probes.translated, probes.cycled, probes.same]
    count, _, height, width = probes.real.shape
    sheet = Image.new("RGB", (len(columns) * (width + _GAP) + _GAP, _HEADER + count * (height + _GAP) + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13 if width >= 120 else 9)
    for column, (pictures, title) in enumerate(zip(columns, above, strict=True)):
        left = _GAP + column * (width + _GAP)
        pen.text((left, _HEADER // 2), title, fill=_INK, font=font, anchor="lm")
        for row, picture in enumerate(pictures):
            sheet.paste(images.from_pixels(picture), (left, _HEADER + row * (height + _GAP)))
    return sheet
