"""Reading and writing of photos: resizing, metadata, formats, limits, missing libraries, full disks."""

import errno
import io
import os
import re
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image, IptcImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.ExifTags import IFD

from cyclestyle.images import file_formats, reading, writing, xmp
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.photo import Metadata, Photo
from tests.forked import in_a_child

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="t"><a tiff:Orientation="6" b="kept"/></x:xmpmeta>'
ENDINGS = sorted({".jpg", ".png", ".webp", ".tif", ".bmp", ".avif", *({".heic"} & file_formats.ENDINGS)})


def noise(height: int = 30, width: int = 40, *, sixteen_bit: bool = False, channels: int = 3) -> np.ndarray:
    kind = np.uint16 if sixteen_bit else np.uint8
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max, (height, width, channels), kind, endpoint=True)


def needs_16_bit() -> None:
    pytest.importorskip("tifffile", reason="16 bits a channel need the extra `deep`")
    pytest.importorskip("imagecodecs", reason="16 bits a channel need the extra `deep`")


def camera_exif(orientation: int = 6) -> Image.Exif:
    """Return EXIF data as a camera writes them: model, orientation, exposure, date and place."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "maker", "model", orientation
    details, gps = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    details[0x829A], details[0xA002], details[0xA003], details[0xA001] = 0.01, 40, 30, 2
    details[0x9003] = "2020:02:03 04:05:06"
    gps[1], gps[2] = "N", (48.0, 12.0, 30.0)
    return exif


def with_preview(exif: bytes, preview: bytes) -> bytes:
    """Return EXIF data with a second directory appended, which contains a small JPEG as preview."""
    data = bytearray(exif[6:])
    assert data[:2] == b"MM"
    (start,) = struct.unpack(">I", data[4:8])
    (count,) = struct.unpack(">H", data[start : start + 2])
    data[start + 2 + 12 * count : start + 6 + 12 * count] = struct.pack(">I", len(data))
    at = len(data) + 2 + 2 * 12 + 4
    data += struct.pack(">HHHIIHHIII", 2, 0x201, 4, 1, at, 0x202, 4, 1, len(preview), 0) + preview
    return b"Exif\0\0" + bytes(data)


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sixteen_bit", [False, True])
@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [((40, 30), 20, (20, 15)), ((30, 40), 20, (15, 20)), ((40, 30), 40, (40, 30)), ((40, 30), 80, (40, 30)),
     ((300, 1), 100, (100, 1)), ((7, 5), 1, (1, 1))],
)  # fmt: skip
def test_resize_limits_the_longer_side_and_never_enlarges_photos(
    tmp_path: Path, size: tuple[int, int], longest: int, expected: tuple[int, int], sixteen_bit: bool
) -> None:
    if sixteen_bit:
        needs_16_bit()
    writing.write(Photo(noise(size[1], size[0], sixteen_bit=sixteen_bit)), tmp_path / "x.png")
    read_back = reading.read(tmp_path / "x.png", resize=longest)
    assert read_back.pixels.shape == (expected[1], expected[0], 3)
    assert read_back.pixels.dtype == (np.uint16 if sixteen_bit else np.uint8)
    assert read_back.pixels.flags.c_contiguous


def test_resize_measures_the_longer_side_of_the_upright_photo(tmp_path: Path) -> None:
    Image.fromarray(noise(30, 41)).save(tmp_path / "x.png", exif=camera_exif(6))
    assert reading.read(tmp_path / "x.png", resize=20).pixels.shape == (20, 15, 3)


def cubic(count: int, new_count: int) -> np.ndarray:
    """Return the (new_count, count) weights that resize `count` values with an antialiasing cubic filter (a = -0.5).

    For antialiasing, the filter is stretched by the scale.
    """
    scale = count / new_count
    centres = (np.arange(new_count)[:, None] + 0.5) * scale
    x = np.abs((np.arange(count)[None] + 0.5 - centres) / scale)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("sixteen_bit", [False, True])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_shrinking_is_antialiased_bicubic_weighted_by_alpha(
    tmp_path: Path, sixteen_bit: bool, with_alpha: bool
) -> None:
    if sixteen_bit:
        needs_16_bit()
    pixels, full = noise(sixteen_bit=sixteen_bit), 65535 if sixteen_bit else 255
    alpha = noise(sixteen_bit=sixteen_bit, channels=1)[..., 0] | (full // 2 + 1) if with_alpha else None
    writing.write(Photo(pixels, alpha), tmp_path / "x.png")
    read_back = reading.read(tmp_path / "x.png", resize=16)

    def shrunk(values: np.ndarray) -> np.ndarray:
        return cubic(30, 12) @ values @ cubic(40, 16).T

    opaque = np.ones((30, 40)) if alpha is None else alpha / full
    weights = shrunk(opaque)
    expected = np.stack([shrunk(pixels[..., channel] * opaque) / weights for channel in range(3)], axis=-1)
    tolerance = 4 if sixteen_bit else 2
    assert np.abs(read_back.pixels - expected.clip(0, full)).max() <= tolerance
    if with_alpha:
        assert np.abs(read_back.alpha - (weights * full).clip(0, full)).max() <= tolerance


@pytest.mark.parametrize("sixteen_bit", [False, True])
def test_colours_of_transparent_pixels_do_not_bleed_when_shrinking(tmp_path: Path, sixteen_bit: bool) -> None:
    if sixteen_bit:
        needs_16_bit()
    full, kind = (65535, np.uint16) if sixteen_bit else (255, np.uint8)
    pixels, alpha = np.zeros((32, 32, 3), kind), np.full((32, 32), full, kind)
    pixels[:] = (full, 0, 0)
    pixels[:, 16:], alpha[:, 16:] = (0, full, 0), 0  # fully transparent green
    writing.write(Photo(pixels, alpha), tmp_path / "x.png")
    read_back = reading.read(tmp_path / "x.png", resize=9)
    assert read_back.alpha is not None
    visible = read_back.alpha > full // 100
    assert read_back.pixels[visible][:, 1].max() == 0
    assert read_back.pixels[visible][:, 0].min() == full


# -- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif", ".avif", *({".heic"} & file_formats.ENDINGS)])
@pytest.mark.parametrize("source", ["jpg", "png", "tif", "webp"])
def test_metadata_are_preserved_with_corrected_size_and_orientation(tmp_path: Path, source: str, ending: str) -> None:
    small = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(small, "JPEG")
    exif = with_preview(camera_exif().tobytes(), small.getvalue()) if source == "jpg" else camera_exif().tobytes()
    options = {"exif": exif, "dpi": (300, 200), **({} if source in ("png", "tif") else {"xmp": XMP})}
    Image.fromarray(noise(30, 40)).save(tmp_path / f"x.{source}", **options)
    if source == "jpg":  # the preview has to be present for its removal to be tested
        with Image.open(tmp_path / "x.jpg") as image:
            assert image.getexif().get_ifd(IFD.IFD1)[0x202] == len(small.getvalue())

    photo = reading.read(tmp_path / f"x.{source}", metadata=True, resize=20)
    assert (photo.pixels.shape, photo.notes) == ((20, 15, 3), ())
    notes = writing.write(photo, tmp_path / f"out{ending}")
    assert notes == ()
    with Image.open(tmp_path / f"out{ending}") as image:
        exif = image.getexif()
        assert (exif[0x010F], exif[0x0110], exif.get(0x0112, 1)) == ("maker", "model", 1)
        details = exif.get_ifd(0x8769)
        assert (details[0xA002], details[0xA003], details[0xA001]) == (15, 20, 1)
        assert details[0x9003] == "2020:02:03 04:05:06"
        assert float(details[0x829A]) == 0.01
        gps = exif.get_ifd(0x8825)
        assert (gps[1], tuple(map(float, gps[2]))) == ("N", (48.0, 12.0, 30.0))
        assert not exif.get_ifd(IFD.IFD1)
        if source in ("jpg", "webp"):
            packet_back = image.info.get("xmp") or image.info["XML:com.adobe.xmp"].encode()
            assert packet_back == XMP.replace(b'"6"', b'"1"')
        if ending in (".jpg", ".png", ".tif") and source != "webp":
            assert image.info["dpi"] == pytest.approx((300, 200), abs=0.1)
    assert small.getvalue() not in (tmp_path / f"out{ending}").read_bytes()


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_metadata_are_preserved_in_16_bit_files(tmp_path: Path, ending: str) -> None:
    needs_16_bit()
    import tifffile

    exif = camera_exif(1).tobytes()
    photo = Photo(noise(sixteen_bit=True), None, Metadata(exif, XMP, (300.0, 200.0)))
    assert writing.write(photo, tmp_path / f"x{ending}") == ()
    read_back = reading.read(tmp_path / f"x{ending}", metadata=True)
    assert np.array_equal(read_back.pixels, photo.pixels)
    assert read_back.metadata.xmp == XMP.replace(b'"6"', b'"1"')
    assert read_back.metadata.dpi == pytest.approx((300, 200), abs=0.1)
    exif_back = Image.Exif()
    exif_back.load(read_back.metadata.exif)
    assert (exif_back[0x010F], exif_back.get_ifd(0x8825)[1], exif_back.get_ifd(0x8769)[0xA002]) == ("maker", "N", 40)
    if ending == ".tif":
        with tifffile.TiffFile(tmp_path / "x.tif") as opened:
            tags = opened.pages[0].tags
            assert tags["Make"].value == "maker"
            assert tags["ExifTag"].value["PixelXDimension"] == 40
            assert tags["GPSTag"].value["GPSLatitudeRef"] == "N"


def test_metadata_unsupported_by_a_format_are_dropped_with_a_note(tmp_path: Path) -> None:
    photo = Photo(noise(), None, Metadata(camera_exif(1).tobytes(), XMP, (300.0, 300.0)))
    assert writing.write(photo, tmp_path / "x.bmp") == (
        "its EXIF data do not fit a BMP: left out",
        "its XMP data do not fit a BMP: left out",
    )
    long = replace(photo, metadata=Metadata(b"", XMP + b" " * 70_000))
    assert writing.write(long, tmp_path / "x.jpg") == ("its XMP data do not fit a JPEG: left out",)
    assert writing.write(long, tmp_path / "x.png") == ()
    bare = replace(photo, metadata=Metadata(dpi=(300.0, 300.0)))
    assert writing.write(bare, tmp_path / "x.webp") == ("its resolution does not fit a WebP: left out",)


def test_damaged_exif_is_dropped_with_a_note(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "x.png", exif=b"Exif\0\0garbage!")
    read_back = reading.read(tmp_path / "x.png", metadata=True)
    assert read_back.metadata.exif == b""
    assert read_back.notes == ("its EXIF data are damaged: left out, and the picture is taken for upright",)


# -- entries that are no longer true, IPTC ----------------------------------------------------------------------------

RDF = b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
NAMESPACES = (
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    b'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
    b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"'
)
IPTC = b"\x1c\x02\x00\x00\x02\x00\x04\x1c\x02\x69\x00\x08headline"  # record version, headline


def packet(attributes: bytes, elements: bytes = b"") -> bytes:
    """Return an XMP packet with one description, which has these attributes and elements."""
    return (
        b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        + RDF
        + b">"
        b"<rdf:Description " + NAMESPACES + b' rdf:about="" ' + attributes + b">" + elements + b"</rdf:Description>"
        b'</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    )


def test_untrue_xmp_entries_are_removed_and_others_kept() -> None:
    untrue = packet(
        b'tiff:Orientation="6" tiff:ImageWidth="40" exif:ColorSpace="2" exif:PixelXDimension="40" xmp:Rating="5" '
        b'photoshop:ICCProfile="Adobe RGB" hdrgm:Version="1.0" dc:format="image/heic"',
        b"<exif:PixelYDimension>30</exif:PixelYDimension><xmp:Thumbnails><rdf:Alt/></xmp:Thumbnails>"
        b"<dc:title>k\xc3\xb6nig &amp; co</dc:title><tiff:ImageLength>30</tiff:ImageLength>",
    )
    expected = packet(b'tiff:Orientation="1" xmp:Rating="5"', b"<dc:title>k\xc3\xb6nig &amp; co</dc:title>")
    updated, notes = xmp.updated(untrue)
    assert notes == ()
    assert b"".join(updated.split()) == b"".join(expected.split())


def test_untrue_xmp_entries_are_found_by_namespace() -> None:
    other = packet(b"").replace(
        b'rdf:about=""', b'xmlns:T="http://ns.adobe.com/tiff/1.0/" T:Orientation="8" T:ImageWidth="40" T:Make="maker"'
    )
    updated, _ = xmp.updated(other)
    assert b'T:Orientation="1"' in updated
    assert b'T:Make="maker"' in updated
    assert b"ImageWidth" not in updated


def test_xmp_packet_without_untrue_entries_is_unchanged() -> None:
    true = packet(b'tiff:Orientation="1" xmp:Rating="3"')
    assert xmp.updated(true) == (true, ())


@pytest.mark.parametrize(
    "damaged", [b"no xml", b"<a", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', b"\xff\xfe<\0a\0", b"<a>\xff</a>"]
)
def test_damaged_xmp_is_left_out_with_a_note(damaged: bytes) -> None:
    assert xmp.updated(damaged) == (b"", ("its XMP data are damaged: left out",))


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("exif", [None, 1, 3])
def test_orientation_in_xmp_is_ignored(tmp_path: Path, ending: str, exif: int | None) -> None:
    path, pixels = tmp_path / f"x{ending}", np.kron(noise(4, 6) // 2, np.ones((16, 16, 1), np.uint8))
    options: dict[str, Any] = {"lossless": True} if ending == ".webp" else {"quality": 95} if ending == ".jpg" else {}
    turned = packet(b'tiff:Orientation="6"')
    if ending == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", turned.decode())
    elif ending == ".tif":
        options["tiffinfo"] = {700: turned} | ({} if exif is None else {0x0112: exif})
    else:
        options["xmp"] = turned
    if exif is not None and ending != ".tif":
        options["exif"] = camera_exif(exif)
    Image.fromarray(pixels).save(path, **options)
    with Image.open(path) as image:
        assert image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    expected = pixels[::-1, ::-1] if exif == 3 else pixels
    for read_back in (reading.read(path).pixels, np.asarray(reading.read_8_bit(path))):
        assert read_back.shape == expected.shape
        assert np.abs(read_back.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("sixteen_bit", [False, True])
def test_iptc_records_are_preserved(tmp_path: Path, ending: str, sixteen_bit: bool) -> None:
    if sixteen_bit:
        needs_16_bit()
    photo = Photo(noise(sixteen_bit=sixteen_bit and ending != ".jpg"), None, Metadata(iptc=IPTC))
    assert writing.write(photo, tmp_path / f"x{ending}") == ()
    assert reading.read(tmp_path / f"x{ending}", metadata=True).metadata.iptc == IPTC
    assert reading.read(tmp_path / f"x{ending}").metadata.iptc == b""
    if ending == ".jpg":
        with Image.open(tmp_path / "x.jpg") as image:
            assert IptcImagePlugin.getiptcinfo(image)[(2, 105)] == b"headline"  # type: ignore[index, arg-type]


def test_iptc_records_of_photoshop_are_read_from_tiff(tmp_path: Path) -> None:
    as_numbers = IPTC + bytes(-len(IPTC) % 4)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[33723] = as_numbers
    directory.tagtype[33723] = 7
    Image.fromarray(noise()).save(tmp_path / "x.tif", tiffinfo=directory)
    content = (tmp_path / "x.tif").read_bytes()
    entry = struct.pack("<HHI", 33723, 7, len(as_numbers))
    assert entry in content
    longs = struct.pack("<HHI", 33723, 4, len(as_numbers) // 4)  # declared as 32-bit numbers, as Photoshop does
    (tmp_path / "x.tif").write_bytes(content.replace(entry, longs))
    assert reading.read(tmp_path / "x.tif", metadata=True).metadata.iptc == as_numbers


@pytest.mark.parametrize("ending", [".webp", ".bmp", ".avif", *({".heic"} & file_formats.ENDINGS)])
def test_iptc_records_that_do_not_fit_are_left_out_with_a_note(tmp_path: Path, ending: str) -> None:
    name = file_formats.BY_ENDING[ending]
    notes = writing.write(Photo(noise(), None, Metadata(iptc=IPTC)), tmp_path / f"x{ending}")
    assert notes == (f"its IPTC data do not fit a {name}: left out",)
    long = Photo(noise(), None, Metadata(iptc=IPTC + bytes(66_000)))
    assert writing.write(long, tmp_path / "x.jpg") == ("its IPTC data do not fit a JPEG: left out",)


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format_name", "expected"),
    [
        ("a/b.jpg", "keep", "a/b.jpg"), ("B.JPEG", "keep", "B.JPEG"), ("B.JPEG", "jpeg", "B.JPEG"),
        ("x.png", "jpeg", "x.jpg"), ("x.tif", "webp", "x.webp"), ("x.tiff", "png", "x.png"), ("x.gif", "keep", "x.png"),
        ("x.GIF", "keep", "x.png"), ("x.gif", "jpeg", "x.jpg"), ("x.avif", "keep", "x.avif"),
        ("x.bmp", "keep", "x.bmp"), ("a.b.tif", "png", "a.b.png"), ("x.tif", "keep", "x.tif"),
        ("-x .WebP", "webp", "-x .WebP"), ("x.heic", "keep", "x.jpg"), ("IMG 1.HEIC", "keep", "IMG 1.jpg"),
        ("x.heif", "keep", "x.jpg"), ("x.HIF", "keep", "x.jpg"), ("x.heic", "png", "x.png"),
        ("x.heic", "jpeg", "x.jpg"), ("x.HEIC", "heic", "x.HEIC"), ("x.hif", "heic", "x.hif"),
        ("x.jpg", "heic", "x.heic"),
    ],
)  # fmt: skip
def test_target_name_depends_on_format_and_extension(
    name: str, format_name: file_formats.Format, expected: str
) -> None:
    assert file_formats.target_name(Path(name), format_name) == Path(expected)


@pytest.mark.parametrize("sixteen_bit", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_equal_photos_give_equal_bytes(tmp_path: Path, ending: str, sixteen_bit: bool) -> None:
    if sixteen_bit:
        needs_16_bit()
    exif = camera_exif(1).tobytes()
    alpha = noise(70, 90, sixteen_bit=sixteen_bit, channels=1)[..., 0]
    upright = XMP.replace(b'"6"', b'"1"')  # otherwise HEIC readers would rotate the image
    photo = Photo(noise(70, 90, sixteen_bit=sixteen_bit), alpha, Metadata(exif, upright, (72.0, 72.0)))
    contents = set()
    for number in range(2):
        writing.write(photo, tmp_path / f"{number}{ending}")
        contents.add((tmp_path / f"{number}{ending}").read_bytes())
    script = (
        "import sys; from pathlib import Path; from cyclestyle.images import reading, writing;"
        "writing.write(reading.read(Path(sys.argv[1]), metadata=True), Path(sys.argv[2]))"
    )
    if ending in (".png", ".tif"):  # other formats are lossy, or discard alpha or metadata
        command = [sys.executable, "-c", script, str(tmp_path / f"0{ending}"), str(tmp_path / f"2{ending}")]
        subprocess.run(command, check=True, env={**os.environ, "TZ": "Asia/Tokyo"})
        copy = reading.read(tmp_path / f"2{ending}")
        assert np.array_equal(copy.pixels, photo.pixels)
        writing.write(reading.read(tmp_path / f"0{ending}", metadata=True), tmp_path / f"3{ending}")
        assert (tmp_path / f"2{ending}").read_bytes() == (tmp_path / f"3{ending}").read_bytes()
    assert len(contents) == 1


def test_notes_report_alpha_and_bit_depth_lost_in_bmp(tmp_path: Path) -> None:
    pixels, alpha = np.zeros((16, 32, 3), np.uint16), np.zeros((16, 32), np.uint16)
    pixels[:], alpha[:, :16] = (65535, 128, 129), 65535
    notes = writing.write(Photo(pixels, alpha), tmp_path / "x.bmp")
    assert notes == ("BMP has no transparency: laid over white", "BMP has 8 bits a channel: 16 became 8")
    with Image.open(tmp_path / "x.bmp") as image:
        channels = np.asarray(image)
    assert (channels[:, :16] == (255, 0, 1)).all()
    assert (channels[:, 16:] == 255).all()
    opaque = Photo(pixels[..., :].astype(np.uint8), np.full((16, 32), 255, np.uint8))
    assert writing.write(opaque, tmp_path / "x.bmp") == ()  # an opaque 8-bit photo loses nothing


def test_written_jpeg_has_requested_quality_and_full_chroma(tmp_path: Path) -> None:
    for quality in (50, 95):
        writing.write(Photo(noise()), tmp_path / f"{quality}.jpg", quality=quality)
        expected = io.BytesIO()
        Image.fromarray(noise()).save(expected, "JPEG", quality=quality)
        with Image.open(tmp_path / f"{quality}.jpg") as image, Image.open(expected) as usual:
            assert image.quantization == usual.quantization  # type: ignore[attr-defined]
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_written_tiff_is_deflate_compressed_and_readable_by_other_programs(tmp_path: Path) -> None:
    needs_16_bit()
    import tifffile

    smooth = np.add.outer(np.arange(700), np.arange(600)).astype(np.uint16)[..., None].repeat(4, 2) * 40
    for channels in (smooth, (smooth >> 8).astype(np.uint8)):
        writing.write(Photo(channels[..., :3], channels[..., 3]), tmp_path / "x.tif")
        with tifffile.TiffFile(tmp_path / "x.tif") as opened:
            page = opened.pages[0]
            assert (page.compression, page.predictor, page.photometric) == (8, 2, 2)
            assert tuple(page.extrasamples) == (2,)
            assert len(page.dataoffsets) > 3
            assert np.array_equal(page.asarray(), channels)
        assert (tmp_path / "x.tif").stat().st_size < channels.nbytes / 10
    with Image.open(tmp_path / "x.tif") as image:
        assert np.array_equal(np.asarray(image), channels)


# -- limits, disks, libraries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "shape"), [(".webp", (1, 16_384, 3)), (".jpg", (65_501, 1, 3)), (".avif", (1, 65_537, 3))]
)
def test_image_too_large_for_the_format_is_rejected_and_old_file_kept(
    tmp_path: Path, ending: str, shape: tuple[int, int, int]
) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"old")
    with pytest.raises(ImageError, match="choose format=png") as caught:
        writing.write(Photo(np.zeros(shape, np.uint8)), path)
    assert f"{shape[1]:,} x {shape[0]:,} pixels" in caught.value.reason
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x" + ending, b"old")]
    fitting = Photo(np.zeros((min(shape[0], 16), min(shape[1], 16_383), 3), np.uint8))
    assert writing.write(fitting, path) == ()


@pytest.mark.parametrize("ending", ENDINGS)
def test_full_disk_raises_oserror_and_keeps_the_old_file(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"x{ending}").write_bytes(b"old")

    def fill() -> tuple[int | None, bool]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError) as caught:  # noqa: PT011
            writing.write(Photo(noise(100, 100)), tmp_path / f"x{ending}")
        return caught.value.errno, isinstance(caught.value, ImageError)

    assert in_a_child(fill) == (errno.EFBIG, False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x" + ending, b"old")]


def patch_encoder(monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes], *, cut: int = 0) -> None:
    """Make encoders change their output without an error.

    Args:
        change: function from encoded bytes to written bytes.
        cut: number of pixel columns to crop at the right edge.
    """
    original = Image.Image.save

    def save(image: Image.Image, stream: IO[bytes], format: str, **options: Any) -> None:  # noqa: A002
        encoded = io.BytesIO()
        original(image.crop((0, 0, image.width - cut, image.height)), encoded, format, **options)
        stream.write(change(encoded.getvalue()))

    monkeypatch.setattr(Image.Image, "save", save)


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending != ".tif"])  # TIFF is not encoded by Pillow
def test_unreadable_encoder_output_raises_error_and_keeps_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"old")
    with monkeypatch.context() as context:
        patch_encoder(context, lambda content: b"no picture" * 100)
        with pytest.raises(ImageError, match=r"cannot be opened again \(.*\): choose format="):
            writing.write(Photo(noise()), path)
    with monkeypatch.context() as context:
        patch_encoder(context, lambda content: content, cut=1)
        with pytest.raises(ImageError, match="has 39 x 30 pixels, not 40 x 30"):
            writing.write(Photo(noise()), path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x" + ending, b"old")]


def needs_heic() -> None:
    pytest.importorskip("pillow_heif", reason="HEIC needs the extra `heic`")


def test_written_heic_with_undecodable_pixels_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_heic()
    patch_encoder(monkeypatch, lambda content: content[:-600])
    with pytest.raises(ImageError, match=r"the HEIC cannot be opened again \(.*\): choose format=jpeg"):
        writing.write(Photo(noise()), tmp_path / "x.heic")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # encoding 16 MiB of HEIC takes a minute or two
def test_heic_too_large_to_reopen_raises_image_error(tmp_path: Path) -> None:
    needs_heic()
    with pytest.raises(ImageError, match=r"the HEIC cannot be opened again \(.*\): choose format=jpeg"):
        writing.write(Photo(noise(2520, 2520)), tmp_path / "x.heic")
    assert list(tmp_path.iterdir()) == []


class TruncatingWriter(io.BufferedWriter):
    """Binary file on a faulty disk, which loses the last 100 bytes of each write."""

    def write(self, content: Any) -> int:
        super().write(content[:-100])
        return len(content)


def test_incomplete_write_raises_image_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> IO[Any]:
        return TruncatingWriter(io.FileIO(path, "x")) if mode == "xb" else original(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ImageError, match=r"[0-9,]+ bytes of [0-9,]+ were written: is the disk damaged"):
        writing.write(Photo(noise()), tmp_path / "x.jpg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ending", "sixteen_bit"),
    [("png", False), ("tif", False), ("jpg", False), ("webp", False), ("png", True), ("tif", True)],
)
def test_photo_with_too_many_pixels_is_rejected_without_decoding(
    tmp_path: Path, ending: str, sixteen_bit: bool
) -> None:
    if sixteen_bit:
        needs_16_bit()
    writing.write(Photo(noise(200, 200, sixteen_bit=sixteen_bit)), tmp_path / f"x.{ending}")
    whole = (tmp_path / f"x.{ending}").read_bytes()
    assert reading.read(tmp_path / f"x.{ending}", max_pixels=40_000).pixels.shape == (200, 200, 3)
    if ending != "webp":  # a partial WebP cannot be opened at all
        (tmp_path / f"x.{ending}").write_bytes(whole[: len(whole) // 2])  # pixels cut off: undecodable
    with pytest.raises(ImageError, match="200 x 200 pixels are more than 39,999"):
        reading.read(tmp_path / f"x.{ending}", max_pixels=39_999)


def output_without(modules: tuple[str, ...], script: str) -> str:
    """Return the standard output of a script in a new process where `modules` cannot be imported."""
    start = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); from pathlib import Path\n"
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", start + script], capture_output=True, text=True, cwd=root, check=True
    )
    return process.stdout


def test_importing_photo_modules_is_fast_and_does_not_import_torch() -> None:
    script = "from cyclestyle.images import reading, writing\n"
    script += "print([name in sys.modules for name in ('torch', 'torchvision', 'hydra')])"
    assert output_without((), script) == "[False, False, False]\n"
    start = time.perf_counter()
    output_without((), "from cyclestyle.images import reading, writing")
    assert time.perf_counter() - start < 2  # about 0.5 s on an idle machine; torch alone takes longer


READ_ALL = """
from cyclestyle.images import decoding, file_formats, reading
for name in {names!r}:
    try:
        print(reading.read(Path(name)).pixels.dtype)
    except decoding.ImageError as error:
        print(error.reason)
print(sorted(file_formats.ENDINGS))
"""


def test_reading_error_names_missing_libraries_for_16_bit_files(tmp_path: Path) -> None:
    Image.fromarray(noise(sixteen_bit=True, channels=1)[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(noise(sixteen_bit=True, channels=1)[..., 0]).save(tmp_path / "grey.tif")
    writing.write(Photo(noise(), noise(channels=1)[..., 0]), tmp_path / "x.tif")
    names = [str(tmp_path / name) for name in ("grey.png", "grey.tif", "x.tif")]
    for missing in (("tifffile",), ("imagecodecs",), ("tifffile", "imagecodecs")):
        lines = output_without(missing, READ_ALL.format(names=names)).splitlines()
        reason = "16 bits a channel need more libraries: pip install 'cyclestyle[deep]'"
        assert lines[:3] == [reason, reason, "uint8"]


def test_reading_error_names_missing_library_for_heic_files(tmp_path: Path) -> None:
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.heic").read_bytes())
    names = [str(tmp_path / "x.heic"), str(tmp_path / "x.jpg")]
    lines = output_without(("pillow_heif",), READ_ALL.format(names=names)).splitlines()
    assert lines[:2] == ["HEIC needs another library: pip install 'cyclestyle[heic]'"] * 2
    assert ".heic" not in lines[2]
    assert ".gif" in lines[2]
    target = output_without(
        ("pillow_heif",),
        "from cyclestyle.images import file_formats; print(file_formats.target_name(Path('x.heic'), 'keep'))",
    )
    assert target == "x.jpg\n"


def test_writing_16_bit_photo_without_libraries_leaves_no_file(tmp_path: Path) -> None:
    script = f"""
import numpy as np
from cyclestyle.images.photo import Photo
from cyclestyle.images.writing import write
from cyclestyle.images.decoding import ImageError
try:
    write(Photo(np.zeros((2, 2, 3), np.uint16)), Path({str(tmp_path / "x.png")!r}))
except ImageError as error:
    print(error.reason)
"""
    assert re.search(r"cyclestyle\[deep\]", output_without(("imagecodecs",), script))
    assert list(tmp_path.iterdir()) == []
