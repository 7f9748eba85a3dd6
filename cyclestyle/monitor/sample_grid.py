"""Grid of probe images and the generators' outputs for them, for inspection by eye."""

from PIL import Image, ImageDraw, ImageFont

from cyclestyle.images import tensors
from cyclestyle.monitor.logger import Samples

_GAP, _HEADER = 4, 22  # px
_PAPER, _INK = (250, 250, 248), (60, 60, 60)


def column_titles(domain: str, other: str) -> tuple[str, str, str, str]:
    """Titles of the four columns of `grid`, for images of `domain` that are translated to `other`."""
    return domain, f"to {other}", f"and back to {domain}", f"{domain} to {domain}"


def grid(samples: Samples, titles: tuple[str, str, str, str]) -> Image.Image:
    """Draw a row for each probe image, with four columns: real, translated, reconstructed, identity."""
    columns = [samples.real, samples.translated, samples.reconstructed, samples.identity]
    count, _, height, width = samples.real.shape
    sheet = Image.new("RGB", (len(columns) * (width + _GAP) + _GAP, _HEADER + count * (height + _GAP) + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13 if width >= 120 else 9)
    for column, (images, title) in enumerate(zip(columns, titles, strict=True)):
        left = _GAP + column * (width + _GAP)
        pen.text((left, _HEADER // 2), title, fill=_INK, font=font, anchor="lm")
        for row, image in enumerate(images):
            sheet.paste(tensors.uint8_to_pil(image), (left, _HEADER + row * (height + _GAP)))
    return sheet
