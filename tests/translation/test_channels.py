"""Models with grey input or output: conversion of photos, files, blending, tiles and exported formats."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.evaluate import evaluate
from cyclestyle.export import export
from cyclestyle.images import reading, tensors, writing
from cyclestyle.images.photo import Photo
from cyclestyle.networks import registry
from cyclestyle.translate import translate
from cyclestyle.translation import Translator
from cyclestyle.translation.pipeline import TranslationPipeline
from cyclestyle.translation.tiled import tiling
from tests import profiles
from tests.translation.models import RESNET, UNET, noise, write_model, write_picture

CPU = {"device": "cpu", "precision": "fp32"}
KINDS = [(1, 1), (1, 3), (3, 1)]  # channels of the input and of the output
BACK = {(1, 1): (1, 1), (1, 3): (3, 1), (3, 1): (1, 3)}


def model(folder: Path, channels: tuple[int, int], *, network: dict = RESNET) -> Path:
    """Write a model whose direction photo2monet has the given channels, and monet2photo the same in reverse."""
    there, back = (
        network | {"in_channels": count[0], "out_channels": count[1]} for count in (channels, BACK[channels])
    )
    return write_model(folder, architecture=there, back=back)


def load(path: Path, direction: str = "photo2monet", **options) -> TranslationPipeline:
    return TranslationPipeline.load(path, direction=direction, **(CPU | options))


def pixels(count: int = 2, *, dtype: torch.dtype = torch.uint8, size: tuple[int, int] = (20, 13)) -> torch.Tensor:
    images = np.stack([noise(*size, seed=seed) for seed in range(count)])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return batch if dtype == torch.uint8 else (batch.int() * 257).to(dtype)


# Conversion between grey and RGB


def test_conversion_to_grey_equals_pillow_luma_up_to_rounding():
    image = Image.fromarray(noise(64, 64))
    grey = tensors.with_channels(tensors.pil_to_uint8(image)[None], 1)[0]
    assert grey.shape == (1, 64, 64)
    assert (grey.int() - torch.tensor(np.asarray(image.convert("L"))).int()).abs().max() <= 1  # Pillow's rounding
    assert torch.equal(tensors.with_channels(tensors.to_float(grey), 1), tensors.to_float(grey))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_grey_pixels_survive_conversion_to_rgb_and_back(dtype: torch.dtype) -> None:
    grey = torch.arange(torch.iinfo(dtype).max + 1).to(dtype).reshape(1, 1, -1, 256)
    rgb = tensors.with_channels(grey, 3)
    assert rgb.shape == (1, 3, grey.shape[2], 256)
    assert torch.equal(tensors.with_channels(rgb, 1), grey)
    values = tensors.to_float(rgb)
    assert torch.equal(tensors.with_channels(values, 1), values[:, :1])
    assert tensors.with_channels(rgb, 3) is rgb


# Translator and pipeline


@pytest.mark.parametrize("network", [RESNET, UNET], ids=["resnet", "unet"])
@pytest.mark.parametrize("channels", KINDS, ids=str)
def test_translation_equals_generator_output(tmp_path: Path, channels: tuple[int, int], network: dict) -> None:
    translator = Translator.load(model(tmp_path, channels, network=network), direction="photo2monet", **CPU)
    image = Image.fromarray(noise(20, 13))
    assert (translator.in_channels, translator.out_channels) == channels

    seen = tensors.pil_to_uint8(image)[None].float() / 127.5 - 1
    if channels[0] == 1:
        seen = (seen * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    expected = ((translator.generator(seen) + 1) * 127.5).round().clamp(0, 255)[0]

    translated = translator(image)
    assert translated.mode == {1: "L", 3: "RGB"}[channels[1]]
    output = torch.tensor(np.asarray(translated)).reshape(13, 20, channels[1]).permute(2, 0, 1)
    assert (output - expected).abs().max() <= 1  # rounding differs with the memory format
    if channels[0] == 1:
        grey = tensors.with_channels(pixels(), 1)
        assert torch.equal(translator.batch(grey), translator.batch(tensors.with_channels(grey, 3)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("channels", KINDS, ids=str)
def test_tiled_translation_equals_full_pass(tmp_path: Path, channels: tuple[int, int], dtype: torch.dtype) -> None:
    for network in (RESNET, UNET):
        path = model(tmp_path, channels, network=network)
        batch = pixels(dtype=dtype, size=(40, 37))
        (whole,), (tiled,) = load(path)(batch), load(path, tile=8)(batch)
        assert whole.shape == tiled.shape == (2, channels[1], 37, 40)
        assert whole.dtype == tiled.dtype == dtype
        largest = torch.iinfo(dtype).max
        assert (whole.double() - tiled.double()).abs().max() <= 1e-4 * largest + 1


def test_padded_image_for_memory_estimate_has_network_input_channels() -> None:
    for channels in (1, 3):
        network = registry.build(RESNET | {"in_channels": channels})
        image = tiling._padded(tiling._plan_for(network), network, 30, 20)
        assert (image.channels, image.height, image.width) == (channels, 32, 20)


@pytest.mark.parametrize("channels", [(1, 3), (3, 1)], ids=str)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "strength=0.5: this model turns {} photos into {} ones, which cannot be blended: leave it"),
        ({"strength": 0}, "strength=0: this model turns {} photos into {} ones, "),
        ({"strength": [0.5, 1]}, "strength=0.5, 1: this model turns {} photos into {} ones, "),
        ({"keep": "colour"}, "keep=colour: this model turns {} photos into {} ones, "),
    ],
    ids=str,
)
def test_blending_is_rejected_for_networks_between_grey_and_rgb(
    tmp_path: Path, channels: tuple[int, int], options: dict, message: str
) -> None:
    path = model(tmp_path, channels)
    words = message.format(*({1: "grey", 3: "RGB"}[count] for count in channels))
    with pytest.raises(CommandError, match=f"^{words}"):
        load(path, **options)


def test_grey_photos_and_grey_translations_are_blended(tmp_path: Path) -> None:
    path = model(tmp_path, (1, 1))
    photo = tensors.with_channels(pixels(), 1)
    none, half, whole = load(path, strength=[0, 0.5, 1])(pixels())
    assert torch.equal(none, photo)
    assert torch.equal(whole, load(path)(pixels())[0])
    assert half.shape == photo.shape
    low, high = torch.minimum(photo, whole).int() - 1, torch.maximum(photo, whole).int() + 1
    assert bool(((low <= half.int()) & (half.int() <= high)).all())
    assert (half.int() - photo.int()).abs().max() > 20


# Files


@pytest.mark.parametrize("channels", [(1, 1), (3, 1)], ids=str)
def test_grey_translations_are_written_as_grey_files(tmp_path: Path, channels: tuple[int, int]) -> None:
    path, photos = model(tmp_path / "model", channels), tmp_path / "photos"
    for name in ("x.png", "x.jpg", "x.tif", "x.bmp", "x.webp"):
        write_picture(photos / name)
    alpha = noise(12, 9, seed=3)[..., 0]
    Image.fromarray(np.dstack([noise(12, 9), alpha])).save(photos / "alpha.png")

    assert translate(path, photos, tmp_path / "out", direction="photo2monet", **CPU) == 0

    modes = {}
    for file in (tmp_path / "out").iterdir():
        if file.suffix not in (".html", "") and file.is_file():
            with Image.open(file) as image:
                modes[file.name] = image.mode
    grey = {"x.png": "L", "x.jpg": "L", "x.tif": "L", "x.bmp": "L", "alpha.png": "LA"}
    assert modes == grey | {"x.webp": "RGB"}  # WebP has no grey images
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "alpha.png"))[..., 1], alpha)
    (expected,) = load(path)(torch.from_numpy(noise(12, 9)).permute(2, 0, 1)[None])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "x.png")), expected[0, 0].numpy())
    assert np.array_equal(
        reading.read(tmp_path / "out" / "x.png").pixels, np.repeat(expected[0].numpy().transpose(1, 2, 0), 3, 2)
    )
    assert len(list((tmp_path / "out").rglob("*.webp"))) == 1 + 2 * 6 + 2  # a translation, thumbnails, copies of TIFF


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_grey_files_have_a_grey_profile_with_the_curve_of_srgb(tmp_path: Path, suffix: str) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    writing.write(Photo(ramp), tmp_path / f"x{suffix}", quality=100)

    with Image.open(tmp_path / f"x{suffix}") as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert profile.profile.xcolor_space.strip() == "GRAY"
        target = ImageCms.createProfile("sRGB")
        as_srgb = np.asarray(ImageCms.profileToProfile(image, profile, target, outputMode="RGB")).astype(int)
        assert np.abs(as_srgb - np.asarray(image)[..., None]).max() <= 1
    assert reading.read(tmp_path / f"x{suffix}").notes == ()


@pytest.mark.parametrize("with_alpha", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_translations_keep_16_bits_and_alpha(tmp_path: Path, suffix: str, with_alpha: bool) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="needs the extra `deep`")
    pytest.importorskip("tifffile", reason="needs the extra `deep`")
    path, photos = model(tmp_path / "model", (3, 1)), tmp_path / "photos"
    photos.mkdir()
    deep = np.random.default_rng(0).integers(0, 2**16, (9, 12, 4 if with_alpha else 3), dtype=np.uint16)
    encoded = imagecodecs.png_encode if suffix == ".png" else imagecodecs.tiff_encode
    (photos / f"x{suffix}").write_bytes(bytes(encoded(deep)))

    assert translate(path, photos, tmp_path / "out", direction="photo2monet", **CPU) == 0

    output = reading.read(tmp_path / "out" / f"x{suffix}")
    (expected,) = load(path)(torch.from_numpy(deep[..., :3].copy()).permute(2, 0, 1)[None])
    assert output.pixels.dtype == np.uint16
    assert np.array_equal(output.pixels, np.repeat(expected[0].permute(1, 2, 0).numpy(), 3, axis=2))
    assert (output.alpha is None) if not with_alpha else np.array_equal(output.alpha, deep[..., 3])


def test_grey_network_input_is_made_from_srgb_colours_of_the_photo(tmp_path: Path) -> None:
    path = model(tmp_path / "model", (1, 3))
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise(12, 9)).save(tmp_path / "photos" / "x.png", icc_profile=profiles.wide())

    assert translate(path, tmp_path / "photos", tmp_path / "out", direction="photo2monet", **CPU) == 0

    srgb = reading.read(tmp_path / "photos" / "x.png").pixels
    (expected,) = load(path)(torch.from_numpy(srgb).permute(2, 0, 1)[None])
    assert np.array_equal(reading.read(tmp_path / "out" / "x.png").pixels, expected[0].permute(1, 2, 0).numpy())
    assert not np.array_equal(srgb, noise(12, 9))


def test_grey_translations_are_evaluated_as_rgb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model(tmp_path / "model", (3, 1))
    write_picture(tmp_path / "photos" / "x.png", size=(40, 30))
    folder = tmp_path / "photos"
    (report,) = evaluate(path, folder, truth=folder, target=folder, direction="photo2monet", **CPU).directions
    assert (report.find("colours").n, report.find("truth_psnr").n) == (1, 1)
    assert "colour distance" in capsys.readouterr().out


def test_networks_with_neither_1_nor_3_channels_are_rejected(tmp_path: Path) -> None:
    path = write_model(tmp_path, architecture=RESNET | {"in_channels": 4})
    with pytest.raises(CheckpointError, match=r"its generator has in_channels=4: expected 1 \(grey\) or 3 \(RGB\)$"):
        load(path)


# Exported files


@pytest.mark.parametrize("channels", KINDS, ids=str)
def test_exported_grey_networks_give_the_outputs_of_their_checkpoint(tmp_path: Path, channels: tuple[int, int]) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
    path = model(tmp_path / "model", channels, network=RESNET | {"blocks": 6})
    (expected,) = load(path)(pixels())
    for kind in ("safetensors", "reference", "onnx"):
        export(path, format=kind, output=tmp_path / kind, direction="photo2monet")
        (file,) = (tmp_path / kind).iterdir()
        exported = TranslationPipeline.load(file, **(CPU if kind != "onnx" else {}))
        assert (exported.translator.in_channels, exported.translator.out_channels) == channels
        (output,) = exported(pixels())
        assert (output.int() - expected.int()).abs().max() <= 1, kind
    (fields,) = (json.loads(entry.value) for entry in onnx.load(file).metadata_props if entry.key == "cyclestyle")
    assert fields["version"] == 2  # earlier versions of the program read RGB files only
