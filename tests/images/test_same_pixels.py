"""Training and evaluation read the pixels that translation reads, or refuse a file for the same reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclestyle.data import UnpairedFolders
from cyclestyle.images import decoding, reading
from cyclestyle.images.reading import ImageReader
from tests.images.test_photo_corpus import BAD, GOOD, HEIC, Bad, Good, tiff
from tests.images.test_photos import output_without
from tests.photoset.test_odd_photos import layouts
from tests.pictures import picture, two_domains
from tests.tiffs import HEIGHT, WIDTH, Layout, encoded

LEVELS = np.linspace(0, 255, 40 * 24).reshape(24, 40).round().astype(np.uint8)
BACKGROUND = "#336699"


def as_translated(path: Path) -> bytes | str:
    """Return the pixels that translation reads, as opaque 8-bit sRGB values, or the reason for which it refuses."""
    try:
        photo = reading.read(path)
    except decoding.ImageError as error:
        return error.reason
    full = np.iinfo(photo.pixels.dtype).max
    colours = (photo.pixels.astype(float) * 255 / full).round().astype(np.uint8)
    if photo.alpha is None:
        return colours.tobytes()
    alpha = (photo.alpha.astype(float) * 255 / full).round().astype(np.uint8)
    opaque = Image.merge("RGBA", [*Image.fromarray(colours).split(), Image.fromarray(alpha)])
    return Image.alpha_composite(Image.new("RGBA", opaque.size, BACKGROUND), opaque).convert("RGB").tobytes()


def as_trained(path: Path) -> bytes | str:
    """Return the pixels that training reads, or the reason for which it refuses the file."""
    reader = ImageReader(transparent_as=BACKGROUND)
    try:
        image = reader.read(path)
    except decoding.ImageError as error:
        if not isinstance(error, decoding.TooManyPixelsError):
            with pytest.raises(decoding.ImageError):  # a file that cannot be read does not pass the inspection
                reader.probe(path)
        return error.reason
    assert reader.probe(path)[:2] == image.size
    return image.tobytes()


@pytest.mark.parametrize("case", [*GOOD, *BAD, *HEIC], ids=lambda case: case.name)
def test_training_and_translation_read_photos_alike(tmp_path: Path, case: Good | Bad) -> None:
    path = tmp_path / case.name
    case.make(path)
    assert as_trained(path) == as_translated(path)


@pytest.mark.parametrize("bits", sorted({layout.bits for layout in layouts()}))
def test_training_and_translation_read_tiff_layouts_alike(tmp_path: Path, bits: int) -> None:
    path, read = tmp_path / "x.tif", 0
    for layout in layouts():
        if layout.bits == bits and layout.photometric in (0, 1, 2, 3, 5):
            path.write_bytes(encoded(layout))
            trained = as_trained(path)
            assert trained == as_translated(path), layout
            read += isinstance(trained, bytes)
    assert (read > 0) == (bits in (1, 2, 4, 8, 16))


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("planar", [1, 2])
def test_grey_16_bit_tiff_keeps_its_brightness(tmp_path: Path, photometric: int, planar: int) -> None:
    layout = Layout(16, 1, photometric, planar)
    (tmp_path / "x.tif").write_bytes(encoded(layout))
    stored = np.frombuffer(encoded(layout)[-2 * HEIGHT * WIDTH :], "<u2").reshape(HEIGHT, WIDTH)
    expected = (stored if photometric else 65535 - stored) / 257
    trained = np.asarray(ImageReader().read(tmp_path / "x.tif", channels=1))
    assert np.abs(trained - expected).max() <= 0.5


def test_planar_16_bit_tiff_keeps_its_colours(tmp_path: Path) -> None:
    colours = np.stack([LEVELS, LEVELS[::-1], LEVELS[:, ::-1]], axis=-1).astype(np.uint16) * 257
    tiff(np.moveaxis(colours, -1, 0), photometric="rgb", planarconfig="separate")(tmp_path / "x.tif")
    assert np.array_equal(np.asarray(ImageReader().read(tmp_path / "x.tif")), colours // 257)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "float32"])
def test_tiff_with_unsupported_number_type_is_rejected(tmp_path: Path, dtype: str) -> None:
    tiff(LEVELS.astype(dtype), photometric="minisblack")(tmp_path / "x.tif")
    reason = as_trained(tmp_path / "x.tif")
    assert reason == as_translated(tmp_path / "x.tif")
    assert "not supported, save it with 8 or 16" in reason


@pytest.mark.parametrize(
    ("name", "format_name"),
    [("x.jfif", "JPEG"), ("x.jpe", "JPEG"), ("x.JP2", "JPEG2000"), ("x.j2k", "JPEG2000"), ("x.avif", "AVIF")],
)
def test_training_and_translation_read_further_formats_alike(tmp_path: Path, name: str, format_name: str) -> None:
    two_domains(tmp_path)
    path = tmp_path / "trainA" / name
    options = {"irreversible": False} if format_name == "JPEG2000" else {"quality": 95}
    picture(7, 40, 24).save(path, format=format_name, **options)
    pixels = as_trained(path)
    assert pixels == as_translated(path)
    original = np.asarray(picture(7, 40, 24)).astype(float)
    difference = np.abs(np.frombuffer(pixels, np.uint8).reshape(24, 40, 3) - original)
    assert difference.mean() < (0.01 if format_name == "JPEG2000" else 12)
    assert name in UnpairedFolders(str(tmp_path), decoder="photo").files["a"]
    assert name not in UnpairedFolders(str(tmp_path), decoder="earlier").files["a"]  # runs of before keep their list


def test_training_and_translation_errors_give_install_command_of_missing_library(tmp_path: Path) -> None:
    tiff(LEVELS.astype(np.uint16) * 257, photometric="minisblack")(tmp_path / "x.tif")
    script = """
from cyclestyle.images import reading
for read in (reading.read_8_bit, reading.read):
    try:
        read(Path({!r}))
    except Exception as error:
        print(error.permanent, error.reason)
"""
    lines = output_without(("imagecodecs",), script.format(str(tmp_path / "x.tif"))).splitlines()
    assert lines == ["False 16 bits a channel need more libraries: pip install 'cyclestyle[deep]'"] * 2
