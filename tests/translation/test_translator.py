"""A model file is all that a translator needs, and what it makes keeps its size."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle import images, networks
from cyclestyle.checkpoint import Checkpoints, read_model
from cyclestyle.distributed import World
from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.translation import Translator
from tests.translation.models import RESNET, UNET, noise, write_model

SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (3, 2), (4, 4), (5, 7), (8, 8), (9, 33), (17, 16), (31, 40), (39, 37)]


def load(path: Path, direction: str | None = "photo2monet", **options) -> Translator:
    return Translator.load(path, direction=direction, device="cpu", precision="fp32", **options)


@pytest.mark.parametrize("architecture", [RESNET, UNET], ids=["resnet", "unet"])
def test_every_size_comes_back(tmp_path: Path, architecture: dict) -> None:
    translator = load(write_model(tmp_path, architecture=architecture))
    for width, height in SIZES:
        assert translator(Image.fromarray(noise(width, height))).size == (width, height)


def test_a_translation_is_what_the_bare_generator_makes(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    generator = networks.build(RESNET)
    generator.load_state_dict(read_model(path).part("ema.ab."))
    picture = noise(24, 20)

    values = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = ((generator.eval()(values).detach()[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()

    made = np.asarray(load(path)(Image.fromarray(picture))).astype(int)
    assert np.abs(made - expected).max() <= 1  # another memory format, another rounding


def test_what_else_is_in_the_batch_does_not_matter(tmp_path: Path) -> None:
    translator = load(write_model(tmp_path))
    pixels = torch.stack([images.to_pixels(Image.fromarray(noise(21, 18, seed=seed))) for seed in range(5)])
    together = translator.batch(pixels).int()
    alone = torch.cat([translator.batch(one[None]) for one in pixels]).int()
    assert together.dtype == torch.int32
    assert (together - alone).abs().max() <= 1
    assert (together - together.roll(1, 0)).abs().max() > 1


def test_pictures_of_any_mode_are_taken(tmp_path: Path) -> None:
    translator = load(write_model(tmp_path))
    for mode in ("L", "1", "P", "RGBA", "CMYK", "I;16"):
        made = translator(Image.new(mode, (9, 7)))
        assert (made.mode, made.size) == ("RGB", (9, 7))


@pytest.mark.parametrize("where", [".", "checkpoints/step_00000042", "networks.safetensors"])
def test_run_checkpoint_and_file_all_lead_to_the_model(tmp_path: Path, where: str) -> None:
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
        (("b", "a"), "b2a", "ab"),  # the domains' own names come first
        (("b", "a"), "a2b", "ba"),
        (("x", "x2x"), "a2b", "ab"),  # x2x2x would be both
        (("x", "x2x"), "b2a", "ba"),
    ],
)
def test_directions_have_names(tmp_path: Path, domains: tuple[str, str], direction: str, part: str) -> None:
    path = write_model(tmp_path, domains=domains)
    used = load(path, direction).generator.state_dict()
    wanted = read_model(path).part(f"ema.{part}.")
    assert all(torch.equal(used[key], wanted[key]) for key in wanted)


def test_a_direction_is_told_by_its_own_name(tmp_path: Path) -> None:
    translator = load(write_model(tmp_path), "b2a")
    assert translator.direction == "monet2photo"
    assert translator.directions == ("photo2monet", "monet2photo")
    assert re.search(r"step 42\), monet2photo, ema weights, on CPU, fp32$", str(translator))


def test_a_missing_or_wrong_direction_is_answered_with_the_two_there_are(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    with pytest.raises(CommandError, match=r"^direction= is missing: .* photo2monet or monet2photo$"):
        load(path, None)
    with pytest.raises(CommandError, match=r"^direction=photo2cezanne is unknown: .* photo2monet or monet2photo$"):
        load(path, "photo2cezanne")
    with pytest.raises(CommandError, match=r"a2b or b2a$"):
        load(write_model(tmp_path, domains=("x", "x2x")), "x2x2x")


def test_the_average_is_taken_where_there_is_one(tmp_path: Path) -> None:
    both, raw_only = write_model(tmp_path / "both"), write_model(tmp_path / "raw", ema=False)
    key = "stem.conv.weight"
    averaged, last = (read_model(both).tensors[f"{part}.ab.{key}"] for part in ("ema", "generators"))
    for path, asked, told, weights in [
        (both, "ema", "ema", averaged),
        (both, "raw", "raw", last),
        (raw_only, "ema", "raw", last),
        (raw_only, "raw", "raw", last),
    ]:
        translator = load(path, weights=asked)
        assert translator.weights == told
        assert torch.equal(translator.generator.state_dict()[key], weights)


def test_dropout_is_off(tmp_path: Path) -> None:
    translator = load(write_model(tmp_path, architecture=RESNET | {"dropout": 0.5}))
    picture = Image.fromarray(noise(16, 16))
    assert translator(picture) == translator(picture)


@pytest.mark.parametrize(
    ("without", "changes", "told"),
    [
        ("trunk", {}, ["4 missing: trunk.0.first.conv.weight, "]),
        ("", {"blocks": 2}, ["4 missing: trunk.1.first"]),
        ("", {"blocks": 0}, ["4 unexpected: trunk.0.first"]),
        ("", {"channels": 5}, ["of another shape: stem.conv.weight (4, 3, 7, 7) for (5, 3, 7, 7), "]),
        ("", {"name": "unet", "blocks": None}, ["missing: ", "unexpected: "]),
    ],
)
def test_weights_of_another_architecture_are_refused_in_a_few_lines(
    tmp_path: Path, without: str, changes: dict, told: list[str]
) -> None:
    path = write_model(tmp_path, without=without)
    model = read_model(path)
    architecture = {key: value for key, value in (RESNET | changes).items() if value is not None}
    write_other_header(path, model, architecture)
    with pytest.raises(CheckpointError, match=r"its weights ema\.ab\.\* do not fit") as refused:
        load(path)
    lines = str(refused.value).splitlines()
    assert len(lines) <= 6
    assert all(any(part in line for line in lines[1:]) for part in told)


@pytest.mark.parametrize("architecture", [{"name": "patch"}, {"name": "os.system"}, {}, RESNET | {"in_channels": 1}])
def test_what_is_no_generator_of_rgb_is_refused(tmp_path: Path, architecture: dict) -> None:
    path = write_model(tmp_path)
    write_other_header(path, read_model(path), architecture)
    with pytest.raises(CheckpointError, match=r"its generator (is called|does not translate RGB)"):
        load(path)


def test_no_model_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at /"):
        load(tmp_path / "nowhere")


def write_other_header(path: Path, model, architecture: dict) -> None:
    from cyclestyle.checkpoint import write_model as write

    write(model._replace(generator=architecture), path)
