"""Incomplete JPEGs, the share of damaged files that is accepted, and 16-bit files that use a part of their range."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from cyclestyle.data import UnpairedFolders
from cyclestyle.errors import CommandError, DataError
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.reading import ImageReader
from tests.data.test_bad_files import copies
from tests.pictures import picture, two_domains

EXACT = {"resize": "none", "crop_size": 20, "flip": False}


def inspected(root: Path, **settings: object) -> UnpairedFolders:
    data = UnpairedFolders(str(root), **{"decoder": "photo", "load_size": 16, "crop_size": 16, **settings})
    data.inspect()
    return data


def refused(root: Path, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        inspected(root, **settings)
    return str(caught.value).splitlines()[0]


def shorten(path: Path, missing: int, **options: object) -> np.ndarray:
    """Write a JPEG that lacks its last `missing` bytes; return the pixels of the whole file."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG", quality=90, **options)
    whole = np.asarray(Image.open(path))
    path.write_bytes(path.read_bytes()[:-missing])
    return whole


@pytest.mark.parametrize("missing", [2, 3, 700])
def test_incomplete_jpeg_is_intact_above_its_missing_end(tmp_path: Path, missing: int) -> None:
    whole = shorten(tmp_path / "x.jpg", missing)
    with pytest.raises(ImageError, match="damaged or unreadable"):
        ImageReader().read(tmp_path / "x.jpg")
    pixels = np.asarray(ImageReader(incomplete=True).read(tmp_path / "x.jpg"))
    wrong = np.flatnonzero((pixels != whole).any(axis=(1, 2)))
    assert pixels.shape == whole.shape
    assert len(wrong) <= (17 if missing < 10 else 40)  # one row of blocks, and a row beside it by its chroma
    assert not len(wrong) or wrong[0] >= 24  # the upper part is intact
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_incomplete_progressive_jpeg_is_read(tmp_path: Path) -> None:
    whole = shorten(tmp_path / "x.jpg", 300, progressive=True).astype(int)
    pixels = np.asarray(ImageReader(incomplete=True).read(tmp_path / "x.jpg"))
    assert 0 < np.abs(pixels - whole).mean() < 20


def test_incomplete_files_are_used_on_request_and_reported(tmp_path: Path) -> None:
    two_domains(tmp_path)
    shorten(tmp_path / "trainA" / "cut.jpg", 2)
    error = refused(tmp_path)
    assert error.endswith(
        "or raise data.tolerance=0.01; data.bad_files=use takes the 1 that only lack their last bytes"
    )
    data = inspected(tmp_path, bad_files="use")
    assert data.bad == {"a": {}, "b": {}}
    assert data.notes == ["1 of 4 pictures of a is without the last bytes of the file, and used all the same (cut.jpg)"]
    draws = data.draws(0)
    assert not any(draws[n].replaced for n in range(8))
    assert "cut.jpg" in {draws.files(n)[0].name for n in range(8)}
    assert "trainA is damaged: " in refused(tmp_path, bad_files="error")


def test_undecodable_files_count_as_damaged_even_if_incomplete_files_are_used(tmp_path: Path) -> None:
    two_domains(tmp_path)
    shorten(tmp_path / "trainA" / "cut.jpg", 2)
    path = tmp_path / "trainA" / "header only.jpg"
    shorten(path, 2)
    path.write_bytes(path.read_bytes()[:300])
    cut = (tmp_path / "trainA" / "000.png").read_bytes()
    (tmp_path / "trainA" / "cut.png").write_bytes(cut[:-30])
    data = UnpairedFolders(str(tmp_path), bad_files="use", decoder="photo", load_size=16, crop_size=16)
    with pytest.raises(DataError):
        data.inspect()
    assert list(data.bad["a"]) == ["cut.png", "header only.jpg"]


@pytest.mark.parametrize(("tolerance", "accepted"), [(0, 0), (0.01, 1), (0.29, 29), (0.5, 50)])
def test_tolerance_limits_share_of_damaged_files(tmp_path: Path, tolerance: float, accepted: int) -> None:
    two_domains(tmp_path)
    files = copies(tmp_path / "many", 100)
    for file in files[:accepted]:
        file.write_bytes(b"damaged")
    settings = {"b": str(tmp_path / "many"), "tolerance": tolerance}
    assert str(inspected(tmp_path, **settings)) == f"3 a, {100 - accepted} b"
    files[-1].write_bytes(b"damaged")
    error = refused(tmp_path, **settings)
    assert f"damaged, more than the {100 * tolerance:g} % that is skipped ({accepted})" in error


@pytest.mark.parametrize("tolerance", [-0.1, 1, 2])
def test_invalid_tolerance_is_named_in_error(tmp_path: Path, tolerance: float) -> None:
    two_domains(tmp_path)
    with pytest.raises(CommandError, match=f"data.tolerance={tolerance}: give the share"):
        UnpairedFolders(str(tmp_path), tolerance=tolerance)


def write_16_bits(root: Path, low: int, high: int) -> np.ndarray:
    """Replace the files of `trainA` by 16-bit grey images with values from `low` to `high`; return the first one."""
    pytest.importorskip("imagecodecs", reason="16 bits a channel need the extra `deep`")
    levels = np.linspace(low, high, 24 * 20).round().astype(np.uint16).reshape(20, 24)
    for file in (root / "trainA").iterdir():
        Image.fromarray(levels).save(file)
    return levels


@pytest.mark.parametrize(
    ("low", "high", "suggested"), [(0, 4000, "[0,4095]"), (31744, 35839, "[31744,35839]"), (0, 250, "[0,255]")]
)
def test_narrow_range_of_16_bit_values_is_reported_with_setting_that_rescales_it(
    tmp_path: Path, low: int, high: int, suggested: str
) -> None:
    two_domains(tmp_path)
    levels = write_16_bits(tmp_path, low, high)
    for _ in range(2):  # the second inspection takes the values from the cache
        assert inspected(tmp_path, channels_a=1).notes == [
            f"3 of 3 pictures of a are almost uniform: values {low:,} to {high:,} of 0 to 65,535 (000.png, 001.png, "
            f"002.png); if this is their whole range, data.range={suggested} scales it to black to white"
        ]
    black, white = map(int, suggested[1:-1].split(","))
    scaled = inspected(tmp_path, channels_a=1, range=[black, white], **EXACT)
    assert scaled.notes == []
    expected = (levels.astype(float) - black) / (white - black) * 255
    for pixels in (scaled.draws(0)[0].a, scaled.probes(1)[0][0]):
        assert pixels[0].min() <= 20
        assert pixels[0].max() >= 235
    assert np.abs(scaled.probes(1)[0][0, 0].numpy() - expected[:, 2:22]).max() <= 0.51
    dark = inspected(tmp_path, channels_a=1, **EXACT).probes(1)[0][0, 0].numpy()
    assert np.abs(dark - levels[:, 2:22] / 257).max() <= 0.51


def test_full_range_16_bit_and_dark_8_bit_images_are_not_reported_as_narrow(tmp_path: Path) -> None:
    two_domains(tmp_path)
    Image.new("RGB", (24, 20), (3, 3, 3)).save(tmp_path / "trainB" / "dark.png")
    write_16_bits(tmp_path, 0, 65535)
    assert inspected(tmp_path).notes == []


def test_option_range_has_no_effect_on_8_bit_images(tmp_path: Path) -> None:
    two_domains(tmp_path)
    plain, scaled = (inspected(tmp_path, range=value) for value in ("full", [0, 4095]))
    assert torch.equal(plain.draws(0)[0].b, scaled.draws(0)[0].b)


@pytest.mark.parametrize("value", [[4095, 0], [5, 5], [-1, 4095], [0, 65536]])
def test_invalid_value_of_option_range_is_named_in_error(tmp_path: Path, value: list[int]) -> None:
    two_domains(tmp_path)
    with pytest.raises(
        CommandError, match=r"data\.range=\[.*\]: give two values from 0 to 65535, black and then white"
    ):
        UnpairedFolders(str(tmp_path), decoder="photo", range=value)


def test_option_range_is_rejected_if_option_decoder_is_earlier(tmp_path: Path) -> None:
    two_domains(tmp_path)
    with pytest.raises(CommandError, match=r"data\.range=\[0,4095\] needs data\.decoder=photo"):
        UnpairedFolders(str(tmp_path), decoder="earlier", range=[0, 4095])


def test_ignored_files_are_reported_for_training_and_test_folders(tmp_path: Path) -> None:
    two_domains(tmp_path)
    (tmp_path / "testA").mkdir()
    picture(1).save(tmp_path / "testA" / "x.png")
    for name in ("trainA/x.CR2", "trainA/y.CR2", "trainA/y.xmp", "trainA/@eaDir/x.png", "testA/x.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert inspected(tmp_path).notes == [
        "pictures of a: passed over: 3 files: 2 .CR2, 1 .xmp; 1 hidden or system folder: @eaDir",
        "test pictures of a: passed over: 1 file: 1 .psd",
    ]
    earlier = UnpairedFolders(str(tmp_path), decoder="earlier")
    assert "@eaDir/x.png" in earlier.files["a"]  # runs of earlier versions keep their list of files
