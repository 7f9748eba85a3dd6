"""Grid of probe images and the generators' outputs for them, for inspection by eye."""

import io
import re

from PIL import Image, ImageDraw, ImageFont

from cyclestyle.images import tensors
from cyclestyle.monitor.logger import Samples

_GAP, _HEADER, _LINE = 4, 22, 13  # px: between images; header with one line of text; each further line
_FONT_SIZES = {120: 13, 60: 12, 0: 8}  # smallest width of the images -> height of the font, both in px
_MAX_LINES = 3  # per title
_PAPER, _INK = (250, 250, 248), (60, 60, 60)

# JPEG quality; a grid then takes a quarter of its size as PNG, with errors of 1.7 of 255 on average.
_QUALITY = 90

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def column_titles(domain: str, other: str) -> tuple[str, str, str, str]:
    """Titles of the four columns of `grid`, for images of `domain` that are translated to `other`."""
    return domain, f"to {other}", "and back", "identity"


def encoded_grid(samples: Samples, titles: tuple[str, str, str, str]) -> bytes:
    """Return the image that `grid` draws, encoded as JPEG without chroma subsampling."""
    stream = io.BytesIO()
    grid(samples, titles).save(stream, format="JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def grid(samples: Samples, titles: tuple[str, str, str, str]) -> Image.Image:
    """Draw a row for each probe image, with four columns: real, translated, reconstructed, identity.

    A title that is wider than its column is broken into lines, and the header is as high as the longest title needs.
    The column of identity outputs is left out if `samples` has none.
    """
    columns = [images for images in samples if images is not None]
    count, _, height, width = samples.real.shape
    font = ImageFont.load_default(next(size for smallest, size in _FONT_SIZES.items() if width >= smallest))
    headings = [wrapped(title, font, width) for title in titles[: len(columns)]]
    header = _HEADER + _LINE * (max(map(len, headings)) - 1)
    sheet = Image.new("RGB", (len(columns) * (width + _GAP) + _GAP, header + count * (height + _GAP) + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (images, lines) in enumerate(zip(columns, headings, strict=True)):
        left = _GAP + column * (width + _GAP)
        for number, line in enumerate(lines):
            pen.text((left, _HEADER // 2 + number * _LINE), line, fill=_INK, font=font, anchor="lm")
        for row, image in enumerate(images):
            sheet.paste(tensors.uint8_to_pil(image), (left, header + row * (height + _GAP)))
    return sheet


def wrapped(title: str, font: _Font, width: int) -> list[str]:
    """Break a title into at most three lines, each at most `width` px wide; a longer title is cut and ends in `...`.

    A line may end at a space, after `_`, `-` or `.`, and between a lower-case and an upper-case letter. Text without
    such a place that is too wide for one line may be broken after any character.
    """
    lines = [""]
    for part in re.findall(r"\s+|.+?(?:(?<=[_.-])|(?<=[a-z])(?=[A-Z])|(?=\s)|$)", title):
        for piece in [part] if font.getlength(part) <= width else part:
            if font.getlength(lines[-1] + piece) <= width:
                lines[-1] += piece
            elif piece.strip():
                lines.append(piece)
    lines = [line.strip() for line in lines if line.strip()] or [""]
    if len(lines) <= _MAX_LINES:
        return lines
    last = lines[_MAX_LINES - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: _MAX_LINES - 1], f"{last}..."]
