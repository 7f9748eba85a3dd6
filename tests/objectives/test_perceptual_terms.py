"""Content and style terms: values by independent computations, the scale of 1, resume, and the train command."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cyclestyle import run_training
from cyclestyle.checkpoints.directory import Checkpoints, read
from cyclestyle.data import UnpairedFolders
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.errors import CommandError
from cyclestyle.hardware.device import Hardware
from cyclestyle.objectives.perceptual import ContentTerm, StyleTerm
from cyclestyle.objectives.sees import networks_seen
from cyclestyle.objectives.terms import Direction
from tests.factories import TinyFeatures, perceptual_terms, random_batch, tiny_objective, tiny_trainer, training_images

TARGET = "cyclestyle.objectives.perceptual."


def load_tiny(name: str, /, *, path: str | None) -> nn.Module:
    return TinyFeatures().double()


def as_images(pixels: Tensor) -> Tensor:
    return pixels.double() / 127.5 - 1


def direction(name: str, source: Tensor, fake: Tensor) -> Direction:
    return Direction(name, source, torch.zeros_like(source), fake)


def gram(image: Tensor) -> list[Tensor]:
    """Gram matrix of each layer for one image (3, H, W) in [-1, 1], by a loop over positions."""
    grams = []
    for activation in TinyFeatures().double()((image[None] + 1) / 2, ("first", "second")).values():
        columns = activation[0].flatten(1).T
        grams.append(sum(torch.outer(column, column) for column in columns) / len(columns))
    return grams


def test_content_term_is_relative_difference_of_activations() -> None:
    a, b = (as_images(pixels) for pixels in random_batch([0, 1], size=32)[:2])
    a.requires_grad_()
    b.requires_grad_()
    loss = ContentTerm(load_tiny, layer="second")(direction("ab", a, b))
    shares = []
    for photo, fake in zip(a, b, strict=True):
        x, y = (TinyFeatures().double()((z[None] + 1) / 2, ("second",))["second"] for z in (photo, fake))
        shares.append((x - y).square().sum() / x.square().sum())
    assert loss.item() == pytest.approx(((shares[0] + shares[1]) / 2).item(), rel=1e-12)
    loss.backward()
    assert a.grad is None
    assert all(gradient.abs().sum() > 0 for gradient in b.grad)


def test_style_term_compares_each_translation_with_the_target_set() -> None:
    fakes = as_images(random_batch([7, 8], size=40).a)
    term = StyleTerm(load_tiny, training_images, distance="gram", layers=("first", "second"), reference_images=2)
    loss = term(direction("ba", fakes, fakes))

    target = [sum(layer) / 4 for layer in zip(*map(gram, as_images(training_images("a", 4))), strict=True)]

    def distances(image: Tensor) -> Tensor:
        return torch.stack([(x - y).square().mean() for x, y in zip(gram(image), target, strict=True)])

    scale = sum(distances(image) for image in as_images(training_images("b", 2))) / 2
    expected = sum((distances(image) / scale).mean() for image in fakes) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("distance", ["gram", "wasserstein"])
def test_style_term_is_1_for_untouched_images_and_lower_for_target_images(distance: str) -> None:
    term = perceptual_terms(distance)[1].term
    untouched, targets = (training_images(domain, 2).float() / 127.5 - 1 for domain in "ab")
    assert term(direction("ab", untouched, untouched)).item() == pytest.approx(1, abs=1e-6)
    assert term(direction("ab", untouched, targets)).item() < 0.1
    assert term(direction("ba", targets, targets)).item() == pytest.approx(1, abs=1e-6)


def test_perceptual_terms_accept_grey_images() -> None:
    grey = as_images(random_batch([0, 1], size=32).a)[:, :1]
    content = ContentTerm(load_tiny, layer="second")
    assert content(direction("ab", grey, grey.expand(-1, 3, -1, -1))).item() == 0


def test_networks_of_perceptual_terms_are_seen() -> None:
    objective = tiny_objective(terms=perceptual_terms())
    assert networks_seen(objective) == {"vgg16_hed": "objective.terms.content"}


@pytest.mark.parametrize("given", [{"images": 0}, {"reference_images": 0}])
def test_style_term_without_images_is_rejected(given: dict[str, int]) -> None:
    with pytest.raises(CommandError, match=r"=0.*give 1 or more"):
        StyleTerm(load_tiny, training_images, **given)


def test_micro_batches_and_whole_batch_give_equal_losses_with_perceptual_terms() -> None:
    results = []
    for accumulate in (1, 2):
        trainer = tiny_trainer(batch_size=2, accumulate=accumulate, terms=perceptual_terms())
        results.append({name: value.item() for name, value in trainer.train_step(random_batch([0, 1])).items()})
    assert {"loss/content_ab", "loss/style_ba"} <= results[0].keys()
    assert results[1] == pytest.approx(results[0], rel=1e-4, abs=1e-6)


def test_bf16_runs_compute_perceptual_losses_in_float32() -> None:
    hardware = Hardware("cpu", precision="bf16")
    term = perceptual_terms(prepare=hardware.wrap)[1].term
    images = (random_batch([0]).a.float() / 127.5 - 1).requires_grad_()
    features = term.features(images)
    assert all(x.dtype == torch.float32 for x in features.values())
    assert all(torch.equal(x, x.bfloat16().float()) for x in features.values())  # computed in bf16
    loss = term(direction("ab", images, images))
    assert loss.dtype == torch.float32
    exact = perceptual_terms()[1].term(direction("ab", images, images))
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize("distance", ["gram", "wasserstein"])
def test_resume_with_perceptual_terms_is_bit_exact_and_reads_no_images(distance: str) -> None:
    def no_images(domain: str, /, count: int) -> Tensor:
        raise AssertionError("the statistics are in the checkpoint")

    whole = tiny_trainer(terms=perceptual_terms(distance))
    for step in range(2):
        whole.train_step(random_batch([step]))
    saved = copy.deepcopy((whole.state_dict(), whole.rank_state_dict()))
    assert "objective" not in saved[0]  # the frozen networks are not saved
    resumed = tiny_trainer(seed=1, terms=perceptual_terms(distance, images=no_images))
    resumed.load_state_dict(saved[0], [saved[1]])
    for mine, theirs in zip(resumed.objective.modules.values(), whole.objective.modules.values(), strict=True):
        mine.load_state_dict(theirs.state_dict())
    for step in range(2, 4):
        expected, losses = (trainer.train_step(random_batch([step])) for trainer in (whole, resumed))
        assert all(torch.equal(losses[name], value) for name, value in expected.items())
    for mine, theirs in zip(resumed.objective.modules.values(), whole.objective.modules.values(), strict=True):
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in mine.state_dict().items())


# The train command


def arguments(*more: str) -> list[str]:
    terms = [f"objective.terms.{name.lower()}._target_={TARGET}{name}Term" for name in ("Content", "Style")]
    return ["+experiment=smoke", "trainer.device=cpu", "trainer.precision=fp32", *terms, *more]


def test_train_command_with_perceptual_terms_resumes_bit_exactly(
    pretrained: Callable[[str], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained("vgg16_hed")
    monkeypatch.chdir(tmp_path)
    run_training(*arguments("name=whole"))
    for steps in (2, 4):
        run_training(*arguments("name=parts", f"trainer.steps={steps}"))
    whole, parts = (read(Checkpoints(Path("runs", name, "checkpoints")).newest()) for name in ("whole", "parts"))
    assert all(torch.equal(value, parts.model.tensors[key]) for key, value in whole.model.tensors.items())
    saved = whole.ranks[0]["buffers"]["terms"]["style"]
    assert saved["losses.ab.distances.relu5_1.gram"].shape == (512, 512)
    lines = [json.loads(line) for line in Path("runs/whole/metrics.jsonl").read_text().splitlines()]
    assert all(0 < line[f"loss/{name}_ab"] < 10 for name in ("content", "style") for line in lines)


def test_missing_weights_of_a_term_end_the_command_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CYCLESTYLE_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CommandError) as caught:
        run_training(*arguments("objective.terms.content.network=vgg19"))
    message = str(caught.value)
    assert "no weights of vgg19 on this machine: run python -m cyclestyle.download features=vgg19" in message
    assert "objective.terms.content.path" in message
    assert "\n" not in message


def test_training_images_are_evenly_spaced_training_files(tmp_path: Path) -> None:
    draw(tmp_path, train=6, test=2, size=40, seed=0, progress=lambda done, total: None)
    data = UnpairedFolders(str(tmp_path), load_size=36, crop_size=32, workers=0)
    everything = data.training_images("b", 100)
    assert everything.shape == (6, 3, 32, 32)
    assert everything.dtype == torch.uint8
    assert torch.equal(data.training_images("b", 3), everything[::2])
    assert not torch.equal(data.training_images("a", 100), everything)
