"""What watches a run: the grid of probes, the file of numbers, TensorBoard, the console."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cyclestyle import images
from cyclestyle.monitor import Console, MetricsFile, TensorBoard
from cyclestyle.monitor.grid import grid, titles
from cyclestyle.trainer import Probes
from tests.build import random_batch, tiny_trainer

DOMAINS = ("monet", "photo")
VALUES = {
    "loss/gan_ab": 0.25,
    "loss/gan_ba": 0.5,
    "loss/cycle_a": 1.0,
    "loss/cycle_b": 2.0,
    "loss/discriminator_a": 0.125,
    "speed/images_per_s": 12.34,
    "speed/waiting_for_data": 0.0,
}


def noise(seed: int, count: int = 2, height: int = 20, width: int = 30) -> Probes:
    random = torch.Generator().manual_seed(seed)
    return Probes(*(torch.randint(0, 256, (4, count, 3, height, width), dtype=torch.uint8, generator=random)))


def test_a_grid_has_a_row_for_each_probe_and_its_four_pictures_in_order() -> None:
    probes = noise(0, count=3)
    sheet = np.asarray(grid(probes, titles("monet", "photo")))
    assert sheet.shape == (22 + 3 * 24 + 4, 4 * 34 + 4, 3)
    for column, pictures in enumerate((probes.real, probes.translated, probes.cycled, probes.same)):
        for row, picture in enumerate(pictures):
            left, top = 4 + column * 34, 22 + row * 24
            assert np.array_equal(sheet[top : top + 20, left : left + 30], picture.permute(1, 2, 0).numpy())


def test_every_column_of_a_grid_has_a_title() -> None:
    assert titles("monet", "photo") == ("monet", "to photo", "and back to monet", "monet to monet")
    sheet = np.asarray(grid(noise(0, width=120), titles("monet", "photo")))
    for column in range(4):
        title = sheet[:22, 4 + column * 124 : 124 + column * 124]
        assert (title < 128).any()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_probes_go_through_the_generators_that_they_are_shown_for(ema: float) -> None:
    trainer = tiny_trainer(ema=ema)
    for step in range(3):
        trainer.train_step(random_batch([step]))
    real_a, real_b, *_ = random_batch([7, 8])
    a, b = trainer.sample(real_a, real_b)
    assert trainer.objective.generators.training  # again

    made_by = (trainer.average.module if ema else trainer.objective.generators).eval()
    with torch.no_grad():
        for probes, real, there, back in ((a, real_a, made_by.ab, made_by.ba), (b, real_b, made_by.ba, made_by.ab)):
            pictures = images.to_float(real)
            assert torch.equal(probes.real, real)
            assert torch.equal(probes.translated, images.to_uint8(there(pictures)))
            assert torch.equal(probes.cycled, images.to_uint8(back(there(pictures))))
            assert torch.equal(probes.same, images.to_uint8(back(pictures)))


def metrics_file(folder: Path, start: int = 0) -> MetricsFile:
    return MetricsFile(folder, domains=DOMAINS, start=start)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_log_is_a_line_that_is_there_at_once(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    log.metrics(5, VALUES)
    assert lines(tmp_path) == [{"step": 5, **VALUES}]
    log.close()


def test_a_resumed_file_has_no_step_twice_and_no_half_line(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    for step in range(1, 7):
        log.metrics(step, VALUES)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "loss/ga')  # killed while writing

    log = metrics_file(tmp_path, start=4)  # where a log is due at the start, it is told again
    log.metrics(4, {"loss/gan_ab": float("nan")})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert np.isnan(lines(tmp_path)[-1]["loss/gan_ab"])

    metrics_file(tmp_path, start=5).close()  # a line that is not a number has no way to keep a run from going on
    assert len(lines(tmp_path)) == 4


def test_half_a_line_in_the_middle_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\xff{"step": 2}\n[]\n{"step": 3}\n')
    metrics_file(tmp_path, start=4).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_a_run_that_begins_again_from_the_start_begins_a_new_file(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    log.metrics(1, VALUES)
    log.close()
    metrics_file(tmp_path).close()
    assert lines(tmp_path) == []


def test_samples_are_pictures_named_for_step_and_direction(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    a, b = noise(1), noise(2)
    log.pictures(1200, a, b)
    log.close()
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["step_00001200_monet2photo.png", "step_00001200_photo2monet.png"]
    assert np.array_equal(np.asarray(Image.open(files[0])), np.asarray(grid(a, titles("monet", "photo"))))
    assert np.array_equal(np.asarray(Image.open(files[1])), np.asarray(grid(b, titles("photo", "monet"))))


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


@pytest.mark.parametrize("start", [0, 4])
def test_curves_and_pictures_of_a_resumed_run_join_without_a_step_twice(tmp_path: Path, start: int) -> None:
    for first, last in ((0, 6), (start, 8)):
        board = TensorBoard(tmp_path, domains=DOMAINS, start=first)
        for step in range(first, last):
            board.pictures(step, noise(step), noise(step))
            board.metrics(step, {"loss/gan_ab": float(last)})
        board.close()

    seen = events(tmp_path)
    curve = seen.Scalars("loss/gan_ab")
    assert [point.step for point in curve] == list(range(8))
    assert [point.value for point in curve] == [6.0] * start + [8.0] * (8 - start)
    assert [picture.step for picture in seen.Images("monet2photo")] == list(range(8))
    assert [picture.step for picture in seen.Images("photo2monet")] == list(range(8))


@pytest.fixture
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_terminal")
def test_in_a_log_the_console_prints_a_plain_line_for_each_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(tmp_path, domains=DOMAINS, start=10, total=110)
    console.advance(11)
    console.metrics(60, VALUES)
    console.metrics(110, {**VALUES, "speed/waiting_for_data": 0.25})
    console.pictures(110, noise(0), noise(1))
    console.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 60/110  gan 0.750  cycle 3.000  disc 0.125  12.3 images/s  0:00:00 left"
    assert "25% waiting for data" in second
    assert "\x1b" not in first + second


def test_on_a_terminal_the_console_shows_a_bar_with_losses_and_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    console = Console(tmp_path, domains=DOMAINS, start=10, total=110)
    console.metrics(60, VALUES)
    console.advance(61)
    console.close()
    shown = capsys.readouterr().out
    assert " 61/110" in shown
    assert "gan 0.750  cycle 3.000  disc 0.125  12.3 images/s" in shown
    assert "60/110  gan" not in shown
