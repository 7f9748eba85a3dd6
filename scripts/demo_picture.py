"""Make docs/demo.png from the results of `make demo`: synthetic photos, their translations and the true paintings.

python scripts/demo_picture.py --scenes 3 7 12 20 26 31
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 2  # number of groups in a row; a group is a photo, its translation and the true painting
GAP, HEADER, PAPER, INK = 6, 24, (255, 255, 255), (60, 60, 60)


def main() -> None:
    """Paste photos, translations and paintings of the chosen scenes into one image and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/scenes"))
    parser.add_argument("--translated", type=Path, default=Path("runs/demo/translated"))
    parser.add_argument("--output", type=Path, default=Path("docs/demo.png"))
    parser.add_argument("--scenes", type=int, nargs="+", required=True, help="numbers of test images")
    arguments = parser.parse_args()

    folders = {
        "photo": arguments.data / "testA",
        "translated": arguments.translated,
        "true painting": arguments.data / "testB",
    }
    with Image.open(folders["photo"] / "0000.png") as first:
        side = first.width
    group = len(folders) * side + (len(folders) - 1) * 2
    rows = -(-len(arguments.scenes) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (group + 3 * GAP) - GAP, HEADER + rows * (side + GAP)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, scene in enumerate(arguments.scenes):
        row, column = divmod(index, COLUMNS)
        for place, (title, folder) in enumerate(folders.items()):
            left = GAP + column * (group + 3 * GAP) + place * (side + 2)
            if row == 0:
                pen.text((left, HEADER // 2), title, fill=INK, font=font, anchor="lm")
            with Image.open(folder / f"{scene:04}.png") as image:
                sheet.paste(image, (left, HEADER + row * (side + GAP)))
    sheet.save(arguments.output, optimize=True)
    print(f"{arguments.output}: {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    main()
