"""Tests of a run's loggers: sample grid, metrics file, TensorBoard, console and profile."""

import collections
import gzip
import io
import itertools
import json
import math
import re
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from google.protobuf import json_format
from PIL import Image, ImageFont
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.api_pb2 import ColParams, ListSessionGroupsRequest, Status
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from cyclestyle.data.dataset import Batch
from cyclestyle.errors import CommandError
from cyclestyle.hardware.device import Hardware
from cyclestyle.images import tensors
from cyclestyle.monitor import Console, MetricsFile, Profile, TensorBoard
from cyclestyle.monitor.console import with_interval
from cyclestyle.monitor.logger import Phase, Samples
from cyclestyle.monitor.profiler import ProfileWindow, breakdown, markdown
from cyclestyle.monitor.sample_grid import column_titles, encoded_grid, grid, wrapped
from cyclestyle.networks import ResNetGenerator
from cyclestyle.objectives.pairs import Generators
from cyclestyle.training.periodic import sample
from cyclestyle.training.samples import translate_probes
from tests.factories import fit, random_batch, tiny_trainer

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


def noise(seed: int, count: int = 2, height: int = 20, width: int = 30) -> Samples:
    random = torch.Generator().manual_seed(seed)
    return Samples(*(torch.randint(0, 256, (4, count, 3, height, width), dtype=torch.uint8, generator=random)))


def test_sample_grid_has_four_columns_and_a_row_per_probe_image() -> None:
    probes = noise(0, count=3)
    sheet = np.asarray(grid(probes, ("a", "b", "c", "d")))
    assert sheet.shape == (22 + 3 * 24 + 4, 4 * 34 + 4, 3)
    for column, images in enumerate((probes.real, probes.translated, probes.reconstructed, probes.identity)):
        for row, image in enumerate(images):
            left, top = 4 + column * 34, 22 + row * 24
            assert np.array_equal(sheet[top : top + 20, left : left + 30], image.permute(1, 2, 0).numpy())


def test_sample_grid_shows_grey_images_and_leaves_out_missing_identity_column() -> None:
    colour = noise(0, count=3)
    grey = colour.translated[:, :1]
    sheet = np.asarray(grid(colour._replace(translated=grey, identity=None), ("a", "b", "c", "d")))
    assert sheet.shape == (22 + 3 * 24 + 4, 3 * 34 + 4, 3)
    for row in range(3):
        top = 22 + row * 24
        assert np.array_equal(sheet[top : top + 20, 4:34], colour.real[row].permute(1, 2, 0).numpy())
        assert np.array_equal(sheet[top : top + 20, 38:68], grey[row].permute(1, 2, 0).expand(20, 30, 3).numpy())


def test_samples_of_domains_with_unequal_channels_have_no_identity_image() -> None:
    generators = Generators(
        ResNetGenerator(2, 1, in_channels=1, out_channels=3), ResNetGenerator(2, 1, in_channels=3, out_channels=1)
    ).eval()
    real_a = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    real_b = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    a, b = translate_probes(generators, Hardware("cpu", precision="fp32"), real_a, real_b)
    assert [images.shape[1] for images in (*a[:3], *b[:3])] == [1, 3, 1, 3, 1, 3]
    assert a.identity is None
    assert b.identity is None


def test_every_grid_column_has_a_title() -> None:
    assert column_titles("monet", "photo") == ("monet", "to photo", "and back", "identity")
    sheet = np.asarray(grid(noise(0, width=120), column_titles("monet", "photo")))
    for column in range(4):
        title = sheet[:22, 4 + column * 124 : 124 + column * 124]
        assert (title < 128).any()


@pytest.mark.parametrize("size", [64, 96, 128, 256])
@pytest.mark.parametrize(
    "domains",
    [("photo", "monet"), ("summer_yosemite", "winter_yosemite"), ("SyntheticPhotographs", "x" * 200), ("", "a b")],
)
def test_titles_fit_their_columns(size: int, domains: tuple[str, str]) -> None:
    titles = column_titles(*domains)
    sheet = np.asarray(grid(noise(0, count=1, height=size, width=size), titles))
    header = sheet.shape[0] - (size + 4) - 4
    for column, title in enumerate(titles):
        left = 4 + column * (size + 4)
        assert (sheet[:header, left : left + size] < 128).any() == bool(title)
        assert (sheet[:header, left + size + 1 : left + size + 4] > 200).all()  # at most 1 px into the gap
    assert (sheet[:3] > 200).all()
    assert (sheet[header - 2 : header] > 200).all()


def test_wide_title_is_broken_at_words_and_cut_after_three_lines() -> None:
    font = ImageFont.load_default(12)
    assert wrapped("monet", font, 64) == ["monet"]
    assert wrapped("to winter_yosemite", font, 64) == ["to winter_", "yosemite"]
    assert wrapped("to winterYosemite", font, 64) == ["to winter", "Yosemite"]
    lines = wrapped("x" * 100, font, 64)
    assert len(lines) == 3
    assert lines[2].endswith("x...")
    for title in ("a title of several long words", "x" * 100, "one-two.three_four", "  ", "i", "W" * 20):
        for width in (5, 20, 64, 200):
            lines = wrapped(title, font, width)
            assert 1 <= len(lines) <= 3
            if width >= 20:
                assert all(font.getlength(line) <= width for line in lines)
            if not lines[-1].endswith("..."):
                assert "".join(lines).replace(" ", "") == title.replace(" ", "")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_each_sample_is_output_of_the_right_generator(ema: float) -> None:
    trainer = tiny_trainer(ema=ema)
    for step in range(3):
        trainer.train_step(random_batch([step]))
    real_a, real_b, *_ = random_batch([7, 8])
    a, b = sample(trainer, real_a, real_b)
    assert trainer.objective.generators.training  # sampling restores training mode

    shown = (trainer.average.module if ema else trainer.objective.generators).eval()
    with torch.no_grad():
        for samples, real, forward, backward in ((a, real_a, shown.ab, shown.ba), (b, real_b, shown.ba, shown.ab)):
            images = tensors.to_float(trainer.hardware.upload(real))  # same layout, so that sums have the same order
            assert torch.equal(samples.real, real)
            assert torch.equal(samples.translated, tensors.to_uint8(forward(images)))
            assert torch.equal(samples.reconstructed, tensors.to_uint8(backward(forward(images))))
            assert torch.equal(samples.identity, tensors.to_uint8(backward(images)))


def metrics_file(folder: Path, start: int = 0) -> MetricsFile:
    return MetricsFile(folder, domains=DOMAINS, start=start)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_line_is_flushed_immediately(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    log.metrics(5, VALUES)
    assert lines(tmp_path) == [{"step": 5, **VALUES}]
    log.close()


def test_resumed_metrics_have_no_duplicate_or_partial_lines(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    for step in range(1, 7):
        log.metrics(step, VALUES)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "loss/ga')  # killed while writing

    log = metrics_file(tmp_path, start=4)  # step 4 is logged again after the resume
    log.metrics(4, {"loss/gan_ab": float("nan")})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert np.isnan(lines(tmp_path)[-1]["loss/gan_ab"])

    metrics_file(tmp_path, start=5).close()  # a loss that is not a number does not prevent a resume
    assert len(lines(tmp_path)) == 4


def test_partial_line_in_metrics_does_not_prevent_resume(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\xff{"step": 2}\n[]\n{"step": 3}\n')
    metrics_file(tmp_path, start=4).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_run_from_step_0_begins_new_metrics_file(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    log.metrics(1, VALUES)
    log.close()
    metrics_file(tmp_path).close()
    assert lines(tmp_path) == []


def test_sample_files_are_named_by_step_and_direction(tmp_path: Path) -> None:
    log = metrics_file(tmp_path)
    a, b = noise(1), noise(2)
    log.pictures(1200, a, b)
    log.close()
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["step_00001200_monet2photo.jpg", "step_00001200_photo2monet.jpg"]
    assert files[0].read_bytes() == encoded_grid(a, column_titles("monet", "photo"))
    assert files[1].read_bytes() == encoded_grid(b, column_titles("photo", "monet"))


def test_encoded_grid_is_a_jpeg_close_to_the_grid() -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(4, 2, 3, 4, 4).flatten(0, 1), 64, mode="bicubic")
    samples = Samples(*(smooth.clamp(0, 1) * 255).to(torch.uint8).unflatten(0, (4, 2)))
    content, sheet = encoded_grid(samples, ("a", "b", "c", "d")), grid(samples, ("a", "b", "c", "d"))
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image).astype(int) - np.asarray(sheet)).mean() < 2
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    assert len(content) < 0.5 * len(png.getvalue())


def test_sample_files_are_thinned_with_age(tmp_path: Path) -> None:
    probes = noise(1, count=1, height=8, width=8)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step_00000500_monet2photo.png").touch()  # written by an earlier version
    log = MetricsFile(tmp_path, domains=DOMAINS, keep_samples=4)
    for step in range(0, 32 * 500, 500):
        log.pictures(step, probes, probes)
    log.close()
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert [int(name[5:13]) // 500 for name in names if name.endswith("_monet2photo.jpg")] == [
        0, 8, 16, 20, 24, 26, 28, 29, 30, 31
    ]  # fmt: skip
    assert len(names) == 2 * 10 + 1
    assert (tmp_path / "samples" / "step_00000500_monet2photo.png").exists()


def test_all_samples_are_kept_without_a_limit(tmp_path: Path) -> None:
    probes = noise(1, count=1, height=8, width=8)
    log = MetricsFile(tmp_path, domains=DOMAINS, keep_samples=None)
    for step in range(60):
        log.pictures(step, probes, probes)
    log.close()
    assert len(list((tmp_path / "samples").iterdir())) == 120


@pytest.mark.parametrize("part", [{"logger.metrics.keep_samples": 1}, {"logger.tensorboard.images": 0}])
def test_too_small_number_of_samples_gives_error_with_config_key(tmp_path: Path, part: dict[str, int]) -> None:
    ((key, value),) = part.items()
    logger = MetricsFile if "metrics" in key else TensorBoard
    with pytest.raises(CommandError, match=f"{key}={value}: give . or more, or null"):
        logger(tmp_path, domains=DOMAINS, **{key.rpartition(".")[2]: value})


@pytest.mark.parametrize("start", [0, 500])
def test_tensorboard_has_samples_of_evenly_spaced_steps_and_last_step(tmp_path: Path, start: int) -> None:
    probes = noise(1, count=1, height=8, width=8)
    for first, last in ((0, start), (start, 1000)) if start else ((0, 1000),):
        board = TensorBoard(tmp_path, domains=DOMAINS, start=first, total=1000, images=4)
        for step in range(first, last + 1, 50):
            board.pictures(step, probes, probes)
        board.close()
    shown = events(tmp_path).Images("monet2photo")
    assert [image.step for image in shown] == [0, 250, 500, 750, 1000]
    assert shown[0].encoded_image_string == encoded_grid(probes, column_titles("monet", "photo"))
    with Image.open(io.BytesIO(shown[0].encoded_image_string)) as image:
        assert (shown[0].width, shown[0].height) == image.size


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


@pytest.mark.parametrize("start", [0, 4])
def test_resumed_tensorboard_has_no_duplicate_steps(tmp_path: Path, start: int) -> None:
    for first, last in ((0, 6), (start, 8)):
        board = TensorBoard(tmp_path, domains=DOMAINS, start=first)
        for step in range(first, last):
            board.pictures(step, noise(step), noise(step))
            board.metrics(step, {"loss/gan_ab": float(last)})
        board.close()

    shown = events(tmp_path)
    curve = shown.Scalars("loss/gan_ab")
    assert [point.step for point in curve] == list(range(8))
    assert [point.value for point in curve] == [6.0] * start + [8.0] * (8 - start)
    assert [image.step for image in shown.Images("monet2photo")] == list(range(8))
    assert [image.step for image in shown.Images("photo2monet")] == list(range(8))


CONFIG = {
    "name": "mine",
    "seed": 3,
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01, "betas": [0.5, 0.999]},
    "data": {"flip": True, "root": "data/größe"},
    "init": None,
    "logger": {"console": None},
}


def record(folder: Path, command: str, *, step: int) -> None:
    entry = {
        "step": step,
        "command": command,
        "git": {"commit": "abc|def"},
        "machine": {"gpus": ["A", "B"], "cpu": None},
    }
    (folder / "starts.json").write_text(json.dumps([{"command": "an earlier one"}, entry]))


def texts(folder: Path) -> dict[str, list[tuple[int, str]]]:
    shown = events(folder)
    return {
        tag: [(event.step, event.tensor_proto.string_val[0].decode()) for event in shown.Tensors(tag)]
        for tag in shown.Tags()["tensors"]
        if tag.startswith("run/")
    }


def test_tensorboard_has_command_config_and_environment_of_each_start(tmp_path: Path) -> None:
    for start, command in ((0, "train 'name=a b'"), (4, "train <script>```\n| \udcff")):
        record(tmp_path, command, step=start)
        TensorBoard(tmp_path, domains=DOMAINS, start=start, total=8, config={**CONFIG, "seed": start}).close()
    shown = texts(tmp_path)
    assert shown["run/command/text_summary"] == [(0, "    train 'name=a b'"), (4, "    train <script>```\n    | ?")]
    (first, config), (second, _) = shown["run/config/text_summary"]
    assert (first, second) == (0, 4)
    assert all(line.startswith("    ") for line in config.splitlines())
    assert yaml.safe_load(textwrap.dedent(config)) == {**CONFIG, "seed": 0}
    _, environment = shown["run/environment/text_summary"][0]
    assert environment.splitlines() == [
        "| | |", "|---|---|", "| step | 0 |", "| git.commit | abc\\|def |", "| machine.gpus | A, B |"
    ]  # fmt: skip


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"[1]", b'[{"step": 1}]', b"\xff", b"[" * 100_000])
def test_tensorboard_has_no_texts_if_config_is_missing_and_starts_json_unreadable(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "starts.json").write_bytes(content)
    board = TensorBoard(tmp_path, domains=DOMAINS, total=4)
    board.metrics(4, {"kid": 0.5})
    board.close()
    assert events(tmp_path).Tags()["tensors"] == []
    assert [point.value for point in events(tmp_path).Scalars("kid")] == [0.5]


def test_tensorboard_shows_hyper_parameters_with_last_values(tmp_path: Path) -> None:
    for name, lr, starts in (("one", 0.01, [(0, 4), (4, 6)]), ("two", 0.02, [(0, 5)])):
        (tmp_path / name).mkdir()
        for start, end in starts:
            config = {**CONFIG, "optimizer": {**CONFIG["optimizer"], "lr": lr}}
            board = TensorBoard(tmp_path / name, domains=DOMAINS, start=start, total=6, config=config)
            for step in range(start + 1, end + 1):
                board.on_step(step)
                board.metrics(step, {"loss/gan_ab": lr + step})
            board.metrics(end, {f"kid_{name}": 0.5})
            board.close()

    names, groups = hyper_parameters(tmp_path)
    assert names == {"seed", "optimizer._target_", "optimizer.lr", "optimizer.betas", "data.flip"}  # the recipe alone
    assert set(groups) == {"one", "two"}  # no run folders were added below those of the runs
    one, two = groups["one"], groups["two"]
    assert {key: one[key] for key in ("optimizer.lr", "optimizer.betas", "seed")} == {
        "optimizer.lr": 0.01, "optimizer.betas": "[0.5, 0.999]", "seed": 3,
    }  # fmt: skip
    assert (one["loss/gan_ab"], two["loss/gan_ab"]) == (pytest.approx(6.01), pytest.approx(5.02))
    assert one["kid_one"] == two["kid_two"] == 0.5
    assert (one["status"], two["status"]) == ("STATUS_SUCCESS", "STATUS_UNKNOWN")  # the second run is not complete


def hyper_parameters(folder: Path) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """Names of hyper-parameters that TensorBoard shows for the runs in `folder`; their values and metrics, by run."""
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(folder))
    runs.Reload()
    backend = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(folder))))
    request_context = RequestContext()
    metadata = backend.hparams_metadata(request_context, "")
    experiment = backend.experiment_from_metadata(request_context, "", True, metadata, [])
    request = ListSessionGroupsRequest(
        slice_size=100,
        col_params=[ColParams(metric=metric.name) for metric in experiment.metric_infos],
        allowed_statuses=Status.values(),
    )
    groups = {}
    for group in Handler(request_context, backend, "", request).run().session_groups:
        values = {name: json_format.MessageToDict(value) for name, value in group.hparams.items()}
        (session,) = group.sessions
        metrics = {metric.name.tag: metric.value for metric in session.metric_values}
        groups[session.name] = {**values, **metrics, "status": Status.Name(session.status)}
    return {info.name for info in experiment.hparam_infos}, groups


@pytest.fixture
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_terminal")
def test_console_prints_plain_lines_without_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path, domains=DOMAINS, start=10, total=110)
    console.on_step(11)
    console.metrics(60, VALUES)
    console.metrics(110, {**VALUES, "speed/waiting_for_data": 0.25})
    console.pictures(110, noise(0), noise(1))
    console.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 60/110  gan 0.750  cycle 3.000  discriminator 0.125  12.3 images/s  0:00:00 left"
    assert "25% waiting for data" in second
    assert "\x1b" not in first + second


@pytest.mark.usefixtures("_no_terminal")
def test_console_sums_losses_over_domains_and_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path, domains=DOMAINS, total=2000)
    losses = {"patchnce_ab": 1.0, "patchnce_ba": 0.5, "r1_a": 0.25, "r1_b": 0.125, "colour_a": 2.0, "whole": 3.0}
    console.metrics(500, {**{f"loss/{name}": value for name, value in losses.items()}, "lr": 2e-4, "epoch": 1.0})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 500/2000  patchnce 1.500  r1 0.375  colour 2.000  whole 3.000  ")
    assert line.endswith(" left")
    assert "lr" not in line


@pytest.mark.usefixtures("_no_terminal")
def test_console_prints_line_if_all_steps_were_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Console(tmp_path, domains=DOMAINS, total=4).metrics(4, {"speed/images_per_s": 2.0, "lr": 2e-4})
    assert capsys.readouterr().out == "step 4/4  2.0 images/s  0:00:00 left\n"


@pytest.mark.usefixtures("_no_terminal")
def test_console_prints_values_of_task_on_their_own_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path, domains=DOMAINS, total=2000)
    console.metrics(500, {"kid": 0.041, "psnr_ab": 21.3456, "count": 12})
    console.metrics(500, {"fid": float("nan")})
    assert capsys.readouterr().out == "step 500/2000  kid 0.041  psnr_ab 21.35  count 12\nstep 500/2000  fid nan\n"


def test_console_shows_interval_of_a_task_value_beside_it_and_no_details(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"kid": 0.0412, "kid/low": 0.0361, "kid/high": 0.0471, "kid/ab/vgg": 0.5, "own/a": 2.0, "own/low": 1.0}
    Console(tmp_path, domains=DOMAINS, total=9).metrics(6, values)
    assert capsys.readouterr().out == "step 6/9  kid 0.041 [0.036, 0.047]  own/a 2  own/low 1\n"


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.04123, (0.04, 0.042), "0.041 [0.040, 0.042]"),
        (0.04123, (0.0412, 0.04126), "0.04123 [0.04120, 0.04126]"),
        (-0.5, (-10.0, 10.0), "-0 [-10, 10]"),
        (123.4, (0.0, 300.0), "123 [0, 300]"),
        (0.5, (0.5, 0.5), "0.5"),
        (math.nan, (math.nan, math.nan), "nan"),
        (math.inf, (1.0, math.inf), "inf"),
        (0.123456, None, "0.1235"),
    ],
)
def test_number_has_as_many_decimals_as_its_interval_supports(
    value: float, interval: tuple[float, float] | None, text: str
) -> None:
    assert with_interval(value, interval) == text


def test_console_shows_progress_bar_on_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    console = Console(tmp_path, domains=DOMAINS, start=10, total=110)
    console.metrics(60, VALUES)
    console.metrics(60, {"kid[bold]": 0.041})
    console.on_step(61)
    console.close()
    shown = capsys.readouterr().out
    assert " 61/110" in shown
    assert "gan 0.750  cycle 3.000  discriminator 0.125  12.3 images/s" in shown
    assert "60/110  gan" not in shown
    assert "step 60/110  kid[bold] 0.041" in shown


# A hand-written trace of 2 steps of 100 and 60 ms and an incomplete third one. The backward pass has its own thread.
# The GPU finishes its work after the steps.
MARKS = [
    ("ProfilerStep#8", 1000, 100), ("forward", 1010, 40), ("backward", 1050, 30),
    ("ProfilerStep#9", 1100, 60), ("forward", 1110, 30), ("backward", 1140, 10),
    ("ProfilerStep#10", 1160, 500), ("forward", 1170, 400),
]  # fmt: skip
LAUNCHES = [(1, 995, 1), (2, 1015, 1), (3, 1020, 1), (4, 1055, 2), (5, 1085, 1), (6, 1145, 2), (7, 1175, 1)]
WORK = [(1, 1000, 5), (2, 1020, 20), (3, 1030, 20), (4, 1060, 50), (5, 1110, 6), (6, 1300, 8), (7, 1400, 90)]


def traced(*, gpu: bool) -> list[dict[str, Any]]:
    def event(cat: str, name: str, ts: int, dur: int, tid: int = 1, **args: int) -> dict[str, Any]:
        return {
            "ph": "X",
            "cat": cat,
            "name": name,
            "pid": 1,
            "tid": tid,
            "ts": 1000 * ts,
            "dur": 1000 * dur,
            "args": args,
        }

    marks = [event("user_annotation", *mark) for mark in MARKS]
    marks += [event("gpu_user_annotation", *mark) for mark in MARKS]  # marks on the GPU's timeline, to be ignored
    launches = [event("cuda_runtime", "cudaLaunchKernel", ts, 2, tid, correlation=n) for n, ts, tid in LAUNCHES]
    work = [event("kernel", "conv", ts, dur, 7, correlation=n) for n, ts, dur in WORK]
    other = [event("cpu_op", "aten::conv2d", 1012, 20), {"ph": "M", "name": "process_name", "pid": 1}]
    return [*other, *reversed(marks), *(launches + work if gpu else [])]


def test_times_of_phases_plus_other_time_equal_step_time() -> None:
    times = breakdown(traced(gpu=False), ["forward", "backward", "saving"], steps=2)
    clocks = {name: phase.clock_s for name, phase in times.phases.items()}
    assert clocks == pytest.approx({"forward": 0.035, "backward": 0.020, "saving": 0, "other": 0.025})
    assert times.step.clock_s == pytest.approx(0.080)
    assert "GPU" not in "".join(markdown(times))


def test_gpu_work_counts_once_for_phase_that_launched_it() -> None:
    times = breakdown(traced(gpu=True), ["forward", "backward"], steps=2)
    busy = {name: phase.device_s for name, phase in times.phases.items()}
    assert busy == pytest.approx({"forward": 0.030 / 2, "backward": 0.058 / 2, "other": 0.006 / 2})
    assert times.step.device_s == pytest.approx((0.096 - 0.010 + 0.008) / 2)  # 1020 to 1116 with a gap of 10, then 8
    assert markdown(times) == [
        "| part       | s/step |  share | GPU s/step |",
        "|------------|-------:|-------:|-----------:|",
        "| forward    | 0.0350 |  43.8% |     0.0150 |",
        "| backward   | 0.0200 |  25.0% |     0.0290 |",
        "| other      | 0.0250 |  31.2% |     0.0030 |",
        "| whole step | 0.0800 | 100.0% |     0.0470 |",
    ]


def test_profiler_trace_without_steps_is_rejected() -> None:
    with pytest.raises(ValueError, match="the trace has no steps"):
        breakdown([], ["forward"], steps=2)


LOADING_S = 0.03  # shortest time to load a batch, in seconds
SMALL = ProfileWindow(wait=1, warmup=1, steps=3)


def slow_batches() -> Iterator[Batch]:
    for draw in itertools.count():
        time.sleep(LOADING_S)  # simulates a slow disk
        yield random_batch([draw])


class Clock:
    """Logger that stores the time at the end of each step."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def on_step(self, step: int) -> None:
        self.times_s.append(time.perf_counter())

    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def pictures(self, step: int, a: Samples, b: Samples) -> None: ...
    def close(self) -> None: ...


def profiled(folder: Path, *, steps: int, **settings: Any) -> tuple[list[str], Clock]:
    """Train `steps` steps with a profiler; return its warnings, and a logger with the end time of each step."""
    warnings: list[str] = []
    clock, profile = Clock(), Profile(folder, phases=list(Phase), window=SMALL, warn=warnings.append)
    trainer = tiny_trainer(steps=steps, ema=0.9, **settings)
    fit(trainer, slow_batches(), loggers=[clock, profile], log_every=2)
    profile.close()
    return warnings, clock


def trace_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads(gzip.decompress((folder / "profile" / "trace.json.gz").read_bytes()))["traceEvents"])


def marked(folder: Path) -> list[tuple[float, float, str]]:
    """(begin, end, name) of each phase and each step in the trace, in order; times are in seconds."""
    return sorted(
        (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6, event["name"])
        for event in trace_of(folder)
        if event.get("cat") == "user_annotation" and not event["name"].startswith("Optimizer")
    )


@pytest.mark.parametrize(("backward", "passes"), [("split", 3), ("joint", 2)])
def test_profile_has_all_phases_of_recorded_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backward: str, passes: int
) -> None:
    warnings, clock = profiled(tmp_path, steps=6, backward=backward)
    assert warnings == []
    marks = marked(tmp_path)
    steps = [mark for mark in marks if mark[2].startswith("ProfilerStep#")]
    phases = [mark for mark in marks if mark not in steps]
    assert len(steps) == 3
    assert collections.Counter(name for _, _, name in phases) == {
        "data": 2 * 3,  # loading, upload
        "forward": passes * 3,
        "backward": passes * 3,
        "optimizer": 3 * 3,  # generators, discriminators, moving average
        "logging": 2,  # after steps 2 and 4
    }
    assert all(end <= begin for (_, end, _), (begin, _, _) in itertools.pairwise(phases))

    # Compare the printed table with sums of the marks and with the clock.
    title, _, *rows, files = capsys.readouterr().out.splitlines()
    assert title == "Where the time goes: means of steps 3 to 5"
    assert f"{tmp_path}/profile" in files
    shown = {
        name.strip(): (float(s), float(share)) for name, s, share in (re.split(r"  +", row.strip(" %")) for row in rows)
    }
    assert list(shown) == [*Phase, "other", "whole step"]
    for phase in Phase:
        mean_s = sum(end - begin for begin, end, name in phases if name == phase) / 3
        assert shown[phase][0] == pytest.approx(mean_s, abs=0.6e-4)
    *rows_above, (whole, total_share) = shown.values()
    assert sum(seconds for seconds, _ in rows_above) == pytest.approx(whole, abs=len(rows_above) * 0.5e-4 + 0.5e-4)
    assert sum(share for _, share in rows_above) == pytest.approx(total_share, abs=len(rows_above) * 0.05 + 0.01)
    assert total_share == 100
    assert shown["data"][0] >= LOADING_S
    assert min(shown["forward"][0], shown["backward"][0], shown["optimizer"][0]) > 0
    # The clock's interval also includes the start of the profiler.
    assert whole <= (clock.times_s[4] - clock.times_s[1]) / 3

    written = (tmp_path / "profile" / "table.md").read_text()
    for name, (seconds, share) in shown.items():
        assert re.search(rf"^\| {name} +\| +{seconds:.4f} \| +{share:.1f}% \|$", written, re.MULTILINE)


@pytest.mark.parametrize("steps", [1, 2])
def test_run_too_short_for_profile_warns_and_writes_nothing(tmp_path: Path, steps: int) -> None:
    warnings, _ = profiled(tmp_path, steps=steps)
    assert warnings == [
        f"trainer.profile: 0 of 3 steps recorded: they are steps 3 to 5 of this start, "
        f"and training ended after {steps}; set trainer.steps higher"
    ]
    assert list(tmp_path.iterdir()) == []


def test_run_that_ends_during_recording_writes_complete_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warnings, _ = profiled(tmp_path, steps=4)
    assert [line.partition(" of")[0] for line in warnings] == ["trainer.profile: 2"]
    printed = capsys.readouterr().out
    assert "means of steps 3 to 4" in printed
    (whole,) = re.findall(r"whole step +(\S+)", printed)
    steps = [mark for mark in marked(tmp_path) if mark[2].startswith("ProfilerStep#")]
    assert float(whole) == pytest.approx(sum(end - begin for begin, end, _ in steps[:2]) / 2, abs=0.6e-4)


def test_unwritable_profile_warns_once_and_training_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("in the way")
    warnings, clock = profiled(tmp_path, steps=7)
    assert warnings == ["trainer.profile cannot be written: file exists; training continues without it"]
    assert len(clock.times_s) == 7
    assert capsys.readouterr().out == ""


def test_marks_of_training_phases_take_little_time_without_profiler(tmp_path: Path) -> None:
    for steps in (1, 4, 6):  # training ends before, among and after the recorded steps
        profiled(tmp_path, steps=steps)
        assert not torch.autograd._profiler_enabled()

    def one_mark_s() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            with torch.profiler.record_function(Phase.FORWARD):
                pass
        return (time.perf_counter() - began) / 1000

    # Measured about 20 us when this bound was chosen; a step has about 12 marks.
    assert min(one_mark_s() for _ in range(5)) < 0.2e-3
