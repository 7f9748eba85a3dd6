"""Loading of translators from model files, and their results."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cyclestyle import networks
from cyclestyle.checkpoints.directory import Checkpoints, read_model
from cyclestyle.checkpoints.model import write_model as write
from cyclestyle.distributed.world import World
from cyclestyle.errors import CheckpointError, CommandError, DataError
from cyclestyle.images import tensors
from cyclestyle.networks import registry
from cyclestyle.translation import Translator
from tests.translation.models import RESNET, UNET, noise, write_model

GOLDEN = Path(__file__).parents[1] / "golden" / "weights"
SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (3, 2), (4, 4), (5, 7), (8, 8), (9, 33), (17, 16), (31, 40), (39, 37)]


def load(path: Path, direction: str | None = "photo2monet", **options) -> Translator:
    return Translator.load(path, direction=direction, device="cpu", precision="fp32", **options)


@pytest.mark.parametrize("architecture", [RESNET, UNET], ids=["resnet", "unet"])
def test_image_size_is_preserved(tmp_path: Path, architecture: dict) -> None:
    translator = load(write_model(tmp_path, architecture=architecture))
    for width, height in SIZES:
        assert translator(Image.fromarray(noise(width, height))).size == (width, height)


def test_translation_equals_generator_output(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    generator = registry.build(RESNET)
    generator.load_state_dict(read_model(path).weights_under("ema.ab."))
    image = noise(24, 20)

    values = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = ((generator.eval()(values).detach()[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()

    output = np.asarray(load(path)(Image.fromarray(image))).astype(int)
    assert np.abs(output - expected).max() <= 1  # rounding differs with the memory format


def test_each_direction_has_its_own_architecture(tmp_path: Path) -> None:
    path = write_model(tmp_path, architecture=RESNET, back=UNET)

    assert isinstance(load(path, "photo2monet").generator, networks.ResNetGenerator)
    assert isinstance(load(path, "monet2photo").generator, networks.UNetGenerator)


def test_model_file_without_architecture_of_one_generator_is_rejected(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    write(read_model(path)._replace(generators={"ab": RESNET}), path)

    with pytest.raises(CheckpointError, match=r"its header has no architecture of the generator ba$"):
        load(path)


def test_translated_batch_equals_single_translations(tmp_path: Path) -> None:
    translator = load(write_model(tmp_path))
    pixels = torch.stack([tensors.pil_to_uint8(Image.fromarray(noise(21, 18, seed=seed))) for seed in range(5)])
    together = translator.batch(pixels).int()
    alone = torch.cat([translator.batch(image[None]) for image in pixels]).int()
    assert together.dtype == torch.int32
    assert (together - alone).abs().max() <= 1
    assert (together - together.roll(1, 0)).abs().max() > 1


def test_array_and_tensor_inputs_give_same_pixels_as_pil_input(tmp_path: Path) -> None:
    translator, pixels = load(write_model(tmp_path)), noise(21, 18)
    expected = np.asarray(translator(Image.fromarray(pixels)))
    read_only = np.broadcast_to(pixels, (2, *pixels.shape))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)

    assert isinstance(translator(pixels), np.ndarray)
    assert np.array_equal(translator(pixels), expected)
    assert np.array_equal(translator(tensor).permute(1, 2, 0).numpy(), expected)
    for batch in (translator(read_only), translator(tensor.expand(2, -1, -1, -1)).permute(0, 2, 3, 1).numpy()):
        assert batch.shape == read_only.shape
        assert np.abs(batch.astype(int) - expected).max() <= 1  # rounding differs with the batch size


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((18, 21), np.uint8), "uint8 (18, 21): give uint8 (H, W, 3)"),
        (np.zeros((3, 18, 21), np.uint8), "uint8 (3, 18, 21): give uint8 (H, W, 3)"),
        (np.zeros((18, 21, 3)), "float64 (18, 21, 3): give uint8 (H, W, 3)"),
        (torch.zeros(3, 18, 21), "torch.float32 (3, 18, 21): give uint8 (3, H, W)"),
        (torch.zeros(18, 21, 3, dtype=torch.uint8), "torch.uint8 (18, 21, 3): give uint8 (3, H, W)"),
    ],
)
def test_array_of_other_shape_or_dtype_is_a_data_error(tmp_path: Path, image: object, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        load(write_model(tmp_path))(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_pil_image_is_applied(tmp_path: Path, orientation: int) -> None:
    translator, pixels = load(write_model(tmp_path)), noise(21, 18)
    photo = Image.fromarray(pixels)
    exif = photo.getexif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "x.png", exif=exif)
    expected = translator(ImageOps.exif_transpose(photo))
    with Image.open(tmp_path / "x.png") as opened:
        for image in (opened, photo):  # from a file, and made in memory
            output = translator(image)
            assert output.size == ((18, 21) if orientation > 4 else (21, 18))
            assert np.array_equal(np.asarray(output), np.asarray(expected))
            assert 0x0112 not in output.getexif()
            assert image.getexif()[0x0112] == orientation  # the image of the caller is unchanged


def test_xmp_orientation_of_a_pil_image_is_not_applied(tmp_path: Path) -> None:
    packet = b'<a xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    Image.fromarray(noise(21, 18)).save(tmp_path / "x.jpg", xmp=packet)
    with Image.open(tmp_path / "x.jpg") as image:
        assert ImageOps.exif_transpose(image).size == (18, 21)  # Pillow turns it
        assert load(write_model(tmp_path))(image).size == (21, 18)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("photo.jpg", "'photo.jpg' is a path, not an image: give PIL.Image.open('photo.jpg')"),
        (Path("a/b.jpg"), "is a path, not an image: give PIL.Image.open("),
        ([np.zeros((4, 5, 3), np.uint8)], "a list is no image: give its images one by one"),
        (None, "a NoneType is no image: give a PIL image, a NumPy array or a tensor"),
        (np.zeros((18, 21), np.uint8), "made by image[..., None]"),
        (np.zeros((3, 18, 21), np.uint8), "made by image.transpose(1, 2, 0)"),
        (np.zeros((18, 21, 4), np.uint8), "give uint8 (H, W, 3) or (N, H, W, 3), without alpha"),
        (np.zeros((0, 21, 3), np.uint8), "uint8 (0, 21, 3): give uint8 (H, W, 3)"),
        (np.zeros((18, 21, 3), np.float32), "made by (image * 255).round().astype('uint8')"),
        (np.zeros((18, 21, 3), np.uint16), "made by image // 257 of 16 bits"),
        (torch.zeros(3, 18, 21), "(image * 255).round().to(torch.uint8); `values` takes floats in [-1, 1]"),
        (torch.zeros(18, 21, 3, dtype=torch.uint8), "made by image.permute(2, 0, 1)"),
        (torch.zeros(18, 21, dtype=torch.uint8), "made by image[None]"),
        (Image.new("F", (4, 5)), "the image has the mode F: floating-point colours are not supported"),
        (Image.new("RGB", (0, 5)), "the image has 0 x 5 pixels"),
    ],
    ids=[
        *("text", "path", "list", "none", "grey-array", "channels-first", "alpha", "empty", "float-array"),
        *("uint16", "float-tensor", "channels-last", "grey-tensor", "mode-f", "empty-image"),
    ],
)
def test_wrong_type_or_shape_is_a_type_error_with_the_remedy(tmp_path: Path, image: object, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)) as caught:
        load(write_model(tmp_path))(image)
    assert isinstance(caught.value, DataError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "images", "message"),
    [
        ("batch", torch.zeros(3, 8, 8, dtype=torch.uint8), "give uint8 (N, 3, H, W)"),
        ("batch", torch.zeros(1, 3, 8, 8), "give uint8 (N, 3, H, W)"),
        ("batch", np.zeros((1, 8, 8, 3), np.uint8), "a ndarray is no image"),
        ("values", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "`values` takes floats (N, 3, H, W) in [-1, 1]"),
        ("values", torch.zeros(3, 8, 8), "`values` takes floats (N, 3, H, W) in [-1, 1]"),
        ("values", torch.zeros(1, 4, 8, 8), "`values` takes floats (N, 3, H, W) in [-1, 1]"),
        ("values", "x.jpg", "'x.jpg' is a path"),
    ],
    ids=str,
)
def test_methods_for_tensors_reject_other_types_and_shapes(
    tmp_path: Path, method: str, images: object, message: str
) -> None:
    translator = load(write_model(tmp_path))
    call = {"batch": translator.batch, "values": translator.values}[method]
    with pytest.raises(TypeError, match=re.escape(message)):
        call(images)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_translated_tensor_is_on_the_input_device(tmp_path: Path, device: str) -> None:
    path = write_model(tmp_path)
    translator = Translator.load(path, direction="photo2monet", device=device, precision="fp32")
    pixels = torch.from_numpy(noise(21, 18)).permute(2, 0, 1)
    expected = translator(pixels)
    assert expected.device.type == "cpu"
    assert translator(pixels.cuda()).device.type == "cuda"
    assert torch.equal(translator(pixels.cuda()).cpu(), expected)
    assert translator.values(torch.zeros(1, 3, 18, 21, device="cuda")).device.type == "cuda"


def test_any_colour_mode_is_accepted(tmp_path: Path) -> None:
    translator = load(write_model(tmp_path))
    for mode in ("L", "1", "P", "RGBA", "CMYK", "I;16"):
        output = translator(Image.new(mode, (9, 7)))
        assert (output.mode, output.size) == ("RGB", (9, 7))


@pytest.mark.parametrize("where", [".", "checkpoints/step_00000042", "networks.safetensors"])
def test_run_folder_checkpoint_folder_and_file_are_accepted(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "checkpoints" / "step_00000042"
    if where == "networks.safetensors":
        folder = tmp_path
    model = read_model(write_model(folder))
    if where != "networks.safetensors":
        Checkpoints(folder.parent).save(model, {}, {}, world=World())
    translator = load(tmp_path / where)
    assert (translator.path, translator.step) == (folder / "networks.safetensors", 42)


@pytest.mark.parametrize(
    ("domains", "direction", "part"),
    [
        (("photo", "monet"), "photo2monet", "ab"),
        (("photo", "monet"), "monet2photo", "ba"),
        (("photo", "monet"), "a2b", "ab"),
        (("photo", "monet"), "b2a", "ba"),
        (("b", "a"), "b2a", "ab"),  # the domains' own names take precedence
        (("b", "a"), "a2b", "ba"),
        (("x", "x2x"), "a2b", "ab"),  # both directions would be x2x2x
        (("x", "x2x"), "b2a", "ba"),
    ],
)
def test_direction_selects_the_generator(tmp_path: Path, domains: tuple[str, str], direction: str, part: str) -> None:
    path = write_model(tmp_path, domains=domains)
    used = load(path, direction).generator.state_dict()
    expected = read_model(path).weights_under(f"ema.{part}.")
    assert all(torch.equal(used[key], expected[key]) for key in expected)


def test_direction_is_displayed_with_domain_names(tmp_path: Path) -> None:
    translator = load(write_model(tmp_path), "b2a")
    assert translator.direction == "monet2photo"
    assert translator.directions == ("photo2monet", "monet2photo")
    assert re.search(r"step 42\), monet2photo, ema weights, on CPU, fp32$", str(translator))


def test_wrong_direction_error_lists_directions(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    with pytest.raises(CommandError, match=r"^direction= is missing: .* photo2monet or monet2photo$"):
        load(path, None)
    with pytest.raises(CommandError, match=r"^direction=photo2cezanne is unknown: .* photo2monet or monet2photo$"):
        load(path, "photo2cezanne")
    with pytest.raises(CommandError, match=r"a2b or b2a$"):
        load(write_model(tmp_path, domains=("x", "x2x")), "x2x2x")


def test_weights_default_to_moving_average(tmp_path: Path) -> None:
    both, raw_only = write_model(tmp_path / "both"), write_model(tmp_path / "raw", ema=False)
    key = "stem.conv.weight"
    averaged, last = (read_model(both).tensors[f"{group}.ab.{key}"] for group in ("ema", "generators"))
    for path, requested, loaded, weights in [
        (both, "ema", "ema", averaged),
        (both, "raw", "raw", last),
        (raw_only, "ema", "raw", last),
        (raw_only, "raw", "raw", last),
    ]:
        translator = load(path, weights=requested)
        assert translator.weights == loaded
        assert torch.equal(translator.generator.state_dict()[key], weights)


def test_dropout_is_off_in_translation(tmp_path: Path) -> None:
    translator = load(write_model(tmp_path, architecture=RESNET | {"dropout": 0.5}))
    image = Image.fromarray(noise(16, 16))
    assert translator(image) == translator(image)


@pytest.mark.parametrize(
    ("without", "changes", "messages"),
    [
        ("trunk", {}, ["4 missing: trunk.0.first.conv.weight, "]),
        ("", {"blocks": 2}, ["4 missing: trunk.1.first"]),
        ("", {"blocks": 0}, ["4 unexpected: trunk.0.first"]),
        ("", {"channels": 5}, ["of another shape: stem.conv.weight (4, 3, 7, 7) for (5, 3, 7, 7), "]),
        ("", {"name": "unet", "blocks": None}, ["missing: ", "unexpected: "]),
    ],
)
def test_weights_of_other_architecture_are_rejected(
    tmp_path: Path, without: str, changes: dict, messages: list[str]
) -> None:
    path = write_model(tmp_path, without=without)
    model = read_model(path)
    architecture = {key: value for key, value in (RESNET | changes).items() if value is not None}
    write_other_header(path, model, architecture)
    with pytest.raises(CheckpointError, match=r"its weights ema\.ab\.\* do not fit") as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 6
    assert all(any(message in line for line in lines[1:]) for message in messages)


@pytest.mark.parametrize("architecture", [{"name": "patch"}, {"name": "os.system"}, {}])
def test_networks_other_than_generators_are_rejected(tmp_path: Path, architecture: dict) -> None:
    path = write_model(tmp_path)
    write_other_header(path, read_model(path), architecture)
    with pytest.raises(
        CheckpointError, match=r"networks\.safetensors: unknown architecture .*: expected one of resnet, unet;"
    ):
        load(path)


def test_missing_model_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at /"):
        load(tmp_path / "nowhere")


def write_other_header(path: Path, model, architecture: dict) -> None:
    write(model._replace(generators={"ab": architecture, "ba": architecture}), path)


# Files of the original 2017 implementation


def pth(folder: Path, name: str = "latest_net_G_A.pth", *, source: str = "resnet9_zip") -> Path:
    shutil.copy(GOLDEN / f"{source}.pth", folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("file", "output"),
    [
        ("resnet9_zip", "resnet9"),
        ("resnet9_legacy", "resnet9"),
        ("resnet9_dataparallel", "resnet9"),
        ("resnet9_runstats_legacy", "resnet9"),
        ("resnet9_dropout_zip", "resnet9_dropout_eval"),
        ("resnet6_zip", "resnet6"),
    ],
)
def test_original_pth_file_gives_original_outputs(file: str, output: str) -> None:
    golden = np.load(GOLDEN / "io.npz")
    translator = load(GOLDEN / f"{file}.pth", None)
    translated = translator.values(torch.from_numpy(golden["x"]))
    np.testing.assert_allclose(translated.numpy(), golden[output], rtol=0, atol=1e-5)
    assert isinstance(translator.generator, networks.ResNetGenerator)
    assert translated.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "direction"), [("latest_net_G_A.pth", "a2b"), ("5_net_G_B.pth", "b2a"), ("horse.pth", "a2b")]
)
def test_original_pth_file_needs_no_direction(tmp_path: Path, name: str, direction: str) -> None:
    translator = load(pth(tmp_path, name), None)
    assert (translator.direction, translator.directions, translator.step) == (direction, (direction,), None)
    assert str(translator) == f"{tmp_path / name}, {direction}, on CPU, fp32"


@pytest.mark.parametrize(
    ("name", "right", "wrong", "which"),
    [
        ("latest_net_G_A.pth", "a2b", ["b2a", "photo2monet"], ", a2b"),
        ("latest_net_G_B.pth", "b2a", ["a2b"], ", b2a"),
        ("horse2zebra.pth", None, ["a2b", "b2a", "horse2zebra"], ""),
    ],
)
def test_single_direction_file_rejects_other_directions(
    tmp_path: Path, name: str, right: str | None, wrong: list[str], which: str
) -> None:
    path = pth(tmp_path, name)
    assert load(path, right).path == path
    for direction in wrong:
        message = f"direction={direction}: {path} holds one direction only{which}: leave direction= out"
        with pytest.raises(CommandError, match=f"^{re.escape(message)}$"):
            load(path, direction)


def test_pth_file_with_half_precision_weights_is_accepted(tmp_path: Path) -> None:
    weights = torch.load(GOLDEN / "resnet6_zip.pth", weights_only=True)
    torch.save({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "half.pth")
    golden = np.load(GOLDEN / "io.npz")
    output = load(tmp_path / "half.pth", None).values(torch.from_numpy(golden["x"])).numpy()
    assert 1e-6 < np.abs(output - golden["resnet6"]).max() < 0.01


# Values and fingerprints


def test_batch_method_returns_quantized_output_of_values_method(tmp_path: Path) -> None:
    translator = load(write_model(tmp_path))
    pixels = tensors.pil_to_uint8(Image.fromarray(noise(19, 14)))[None]
    values = translator.values(pixels.float() / 127.5 - 1)
    assert values.dtype == torch.float32
    assert values.shape == (1, 3, 14, 19)
    rounded = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(translator.batch(pixels), rounded)
    assert (values * 127.5).frac().abs().max() > 0.01


def test_fingerprint_ignores_domain_names_and_step(tmp_path: Path) -> None:
    path = write_model(tmp_path / "one")
    fingerprints = {
        load(path, direction, weights=kind).fingerprint for direction in ("a2b", "b2a") for kind in ("ema", "raw")
    }
    assert len(fingerprints) == 4  # four different sets of weights

    model = read_model(path)
    renamed = {"generators." + key.removeprefix("ema."): value for key, value in model.tensors.items() if "ema" in key}
    other = tmp_path / "other.safetensors"
    write(model._replace(tensors=renamed, domains=("x", "y"), step=1), other)
    assert load(other, "x2y").fingerprint == load(path).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", load(path).fingerprint)

    key = "generators.ab.head.conv.bias"
    write(model._replace(tensors=renamed | {key: renamed[key] + 1e-6}), other)
    assert load(other).fingerprint != load(path).fingerprint


def test_fingerprint_ignores_file_format() -> None:
    fingerprints = [
        load(GOLDEN / f"resnet9_{kind}.pth", None).fingerprint for kind in ("zip", "legacy", "dataparallel")
    ]
    assert len(set(fingerprints)) == 1
    assert load(GOLDEN / "resnet6_zip.pth", None).fingerprint != fingerprints[0]


def test_compiled_translator_exposes_uncompiled_network(tmp_path: Path) -> None:
    with torch.compiler.set_stance("force_eager"):
        translator = load(write_model(tmp_path), compile=True)
        assert not any("_orig_mod" in key for key in translator.generator.state_dict())
        assert translator(Image.fromarray(noise(9, 7))).size == (9, 7)
    assert str(translator).endswith("CPU, fp32, compiled")


def test_backend_that_cannot_run_the_model_file_is_rejected(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    assert load(path, backend="torch").backend == "torch"
    with pytest.raises(CommandError, match=r"^backend=onnx .* cyclestyle\.export checkpoint=.* format=onnx, then "):
        load(path, backend="onnx")
    with pytest.raises(CommandError, match=r"^backend=torch: .* is an \.onnx file"):
        load(tmp_path / "x.onnx", backend="torch")
