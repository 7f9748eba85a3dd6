"""Tiling equals a full pass, stays within its memory, and leaves no files behind."""

import errno
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cyclestyle.errors import CommandError, DiskError
from cyclestyle.hardware.device import Hardware
from cyclestyle.hardware.winograd import use_winograd
from cyclestyle.networks import ResNetGenerator, UNetGenerator, registry
from cyclestyle.translation.tiled import activation_store, tiling
from cyclestyle.translation.tiled.activation_store import ActivationStores, InFile, InMemory
from cyclestyle.translation.tiled.layers import NormStatistics, PaddedImage, Pointwise
from cyclestyle.translation.tiled.passes import Passes, RunningMoments, StoredActivation
from cyclestyle.translation.tiled.tiling import can_tile, full_pass_bytes, parse_memory, run_tiled, tiled_bytes

CPU = Hardware("cpu", precision="fp32")
PLENTY = 10**9  # bytes
GENERATORS: dict[str, Callable[[], Any]] = {
    "resnet": lambda: ResNetGenerator(8, 2),
    "resnet, resize": lambda: ResNetGenerator(8, 2, upsample="resize", dropout=0.5),
    "resnet without blocks": lambda: ResNetGenerator(6, 0),
    "resnet with more blocks": lambda: ResNetGenerator(4, 5),
    "unet": lambda: UNetGenerator(8, 3),
    "unet, resize": lambda: UNetGenerator(8, 3, upsample="resize"),
    "unet with detail": lambda: UNetGenerator(8, 3, upsample="resize", detail=6),
    "unet with two levels": lambda: UNetGenerator(5, 2),
    "unet with seven levels": lambda: UNetGenerator(4, 7, dropout=0.5),
}
SIZES = [(1, 40), (40, 1), (2, 3), (7, 5), (64, 48), (37, 51), (13, 90), (129, 33)]


@pytest.fixture(params=GENERATORS)
def generator(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def build(name: str) -> nn.Module:
    """Build a network whose weights are as large as trained weights.

    None of its output values are near 0, and few are near -1 or 1.
    """
    torch.manual_seed(0)
    network: nn.Module = GENERATORS[name]().eval().requires_grad_(False)
    return network


def random_image(height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def full_pass(generator: nn.Module, image: Tensor, hardware: Hardware = CPU) -> Tensor:
    with torch.inference_mode():
        output: Tensor = hardware.autocast(generator)(image)
    return output


def translate_tiled(generator: nn.Module, image: Tensor, **arguments: Any) -> Tensor:
    return run_tiled(generator, image, **({"hardware": CPU, "rows": None, "memory": PLENTY} | arguments))


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return (one.double() - other.double()).abs().max().item()


def min_memory(generator: nn.Module, image: Tensor, rows: int) -> int:
    """Return the smallest `memory` that holds the strips; with this value, all stores are files."""
    height, width = image.shape[2:]
    return tiling._estimate(generator, height, width, image.dtype, rows).strip_bytes


# Result of a tiled pass


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiled_result_equals_full_pass(generator: nn.Module, size: tuple[int, int]) -> None:
    image = random_image(*size)
    expected = full_pass(generator, image)
    for rows in (1, 3, 8, 20, 1000, None):
        output = translate_tiled(generator, image, rows=rows)
        assert output.dtype == torch.float32
        assert difference(output, expected) <= 2e-5, f"strips of {rows} px"


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[phase for phase in settings().phases if phase.name != "shrink"],
)
@given(
    name=st.sampled_from(sorted(GENERATORS)),
    height=st.integers(2, 70),
    width=st.integers(2, 70),
    rows=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_tiled_result_equals_full_pass_for_random_sizes(
    name: str, height: int, width: int, rows: int, seed: int
) -> None:
    generator, image = build(name), random_image(height, width, seed=seed)
    assert difference(translate_tiled(generator, image, rows=rows), full_pass(generator, image)) <= 1e-4


def test_network_with_winograd_convolutions_can_be_tiled() -> None:
    network = ResNetGenerator(8, 2).eval().requires_grad_(False)
    image = random_image(48, 40)
    expected = full_pass(network, image)
    use_winograd(network)
    assert difference(translate_tiled(network, image, rows=8), expected) < 1e-4


def test_float64_tiled_result_equals_full_pass_to_1e_10(generator: nn.Module, double_precision: None) -> None:
    generator = generator.double()
    image = random_image(45, 62).double()
    output = translate_tiled(generator, image, rows=9)
    assert output.dtype == torch.float64
    assert difference(output, full_pass(generator, image)) <= 1e-10


def test_single_pixel_image_keeps_its_size(generator: nn.Module) -> None:
    output = translate_tiled(generator, random_image(1, 1))
    assert output.shape == (1, 3, 1, 1)
    assert output.isfinite().all()
    if isinstance(generator, UNetGenerator):  # a ResNet amplifies rounding on a single pixel, in full passes too
        assert difference(output, full_pass(generator, random_image(1, 1))) <= 1e-5


def test_flat_areas_of_tiled_result_equal_full_pass(generator: nn.Module) -> None:
    image = random_image(60, 56)
    image[:, :, :40] = 1.0  # an overexposed sky that fills whole strips
    assert difference(translate_tiled(generator, image, rows=4), full_pass(generator, image)) <= 5e-5


def test_tiled_result_equals_full_pass_with_channels_far_from_zero(generator: nn.Module) -> None:
    first = next(layer for layer in generator.modules() if isinstance(layer, nn.Conv2d))
    assert first.bias is not None
    first.bias += 30.0
    image = random_image(60, 56)
    exact = full_pass(generator.double(), image.double())
    generator.float()
    rounding = difference(full_pass(generator, image), exact)
    assert difference(translate_tiled(generator, image, rows=7), exact) <= 3 * rounding + 1e-5


@pytest.mark.parametrize("name", ["resnet", "resnet, resize", "unet", "unet, resize", "unet with detail"])
def test_tiled_bf16_error_is_near_full_pass_bf16_error(name: str) -> None:
    generator, image = build(name), random_image(61, 74)
    hardware = Hardware("cpu", precision="bf16")
    exact = full_pass(generator, image)
    output = translate_tiled(generator, image, hardware=hardware, rows=12)
    assert output.dtype == torch.float32
    distances = [(one - exact).square().mean().sqrt().item() for one in (output, full_pass(generator, image, hardware))]
    assert 0 < distances[0] <= 1.3 * distances[1]


def test_tiled_pass_of_network_in_training_mode_applies_no_dropout() -> None:
    generator, image = build("resnet, resize"), random_image(20, 24)
    expected = full_pass(generator, image)
    assert difference(translate_tiled(generator.train(), image, rows=8), expected) <= 2e-5
    assert generator.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tiled_gpu_result_equals_cpu_full_pass(generator: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_image(61, 74)
    expected = full_pass(generator, image)
    gpu = Hardware("cuda", precision="fp32")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    gpu.to_device(generator)
    output = translate_tiled(generator, image, hardware=gpu, rows=16)
    assert output.device.type == "cpu"
    assert difference(output, expected) <= 1e-4


# Statistics


def test_running_moments_match_numpy() -> None:
    random = np.random.default_rng(0)
    values = random.normal(1000.0, [[[0.1]], [[1.0]], [[30.0]]], (3, 700, 900)).astype(np.float32)
    moments = RunningMoments(3)
    for top, bottom in [(0, 1), (1, 333), (333, 340), (340, 700)]:
        moments.add(torch.from_numpy(values[:, top:bottom])[None])
    mean, variance = moments.statistics(torch.device("cpu"))
    exact = values.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((1, 2)), rtol=1e-7)
    np.testing.assert_allclose(variance, exact.var((1, 2)), rtol=1e-5)


def test_tiled_norm_statistics_equal_full_pass_statistics(generator: nn.Module) -> None:
    image = random_image(52, 37)
    observed: dict[nn.Module, NormStatistics] = {}
    translate_tiled(generator, image, rows=5, observe=observed.__setitem__)

    norm_inputs: dict[nn.Module, np.ndarray] = {}
    for layer in generator.modules():
        if isinstance(layer, nn.InstanceNorm2d):
            layer.register_forward_pre_hook(
                lambda layer, inputs: norm_inputs.__setitem__(layer, inputs[0].numpy().copy())
            )
    full_pass(generator, image)

    assert observed.keys() == norm_inputs.keys()
    for layer, values in norm_inputs.items():
        np.testing.assert_allclose(observed[layer].mean, values.mean((0, 2, 3), dtype=np.float64), atol=2e-5)
        np.testing.assert_allclose(observed[layer].variance, values.var((0, 2, 3), dtype=np.float64), rtol=1e-4)


# Stored activations


def test_activations_in_files_and_in_memory_give_identical_results(
    generator: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: set[type] = set()
    record_stores(monkeypatch, lambda store: kinds.add(type(store)))
    image = random_image(50, 41)
    in_memory = translate_tiled(generator, image, rows=6)
    assert kinds == {InMemory}
    kinds.clear()
    in_files = translate_tiled(generator, image, rows=6, memory=min_memory(generator, image, 6), folder=tmp_path)
    assert kinds == {InFile}
    assert torch.equal(in_memory, in_files)


def test_bf16_activations_stay_bf16_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, image, hardware = build("resnet"), random_image(50, 41), Hardware("cpu", precision="bf16")
    in_memory = translate_tiled(generator, image, rows=6, hardware=hardware)
    dtypes: list[torch.dtype] = []
    record_stores(monkeypatch, lambda store: dtypes.append(store.dtype))  # only file stores have a dtype
    min_bytes = tiling._estimate(generator, 50, 41, torch.bfloat16, 6).strip_bytes
    in_files = translate_tiled(generator, image, rows=6, hardware=hardware, memory=min_bytes, folder=tmp_path)
    assert dtypes == [torch.bfloat16] * 2
    assert torch.equal(in_memory, in_files)


def test_overwriting_stored_activations_does_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, image = build("resnet with more blocks"), random_image(40, 44)
    in_place = translate_tiled(generator, image, rows=4)  # strips of one row in the trunk

    def into_another(self: Passes, stored: StoredActivation, source: Any, *, measured: bool) -> None:
        other = self.store(source)
        stored.store, stored.statistics = other.store, other.statistics

    monkeypatch.setattr(Passes, "overwrite", into_another)
    assert torch.equal(in_place, translate_tiled(generator, image, rows=4))


def test_pointwise_layer_does_not_change_stored_activations() -> None:
    values = torch.randn(6, 5, 3)
    stored = StoredActivation(
        InMemory(values.clone()),
        PaddedImage(random_image(6, 5), device=torch.device("cpu"), multiple=1, minimum=1),
        torch.device("cpu"),
    )
    assert (Pointwise(stored, torch.relu_).rows(0, 6) >= 0).all()
    assert torch.equal(stored.rows(0, 6)[0].permute(1, 2, 0), values)


@pytest.mark.parametrize(("name", "last"), [("resnet", 1), ("unet with seven levels", 2)])
def test_unused_activations_are_freed(name: str, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    stores = record_stores(monkeypatch)
    translate_tiled(
        build(name),
        random_image(128, 128),
        rows=16,
        advance=lambda share: alive.append(sum(store() is not None for store in stores)),
    )
    assert alive[-2] == last  # the last pass, with the largest strips, needs only the stores that it reads
    assert max(alive) > last


def test_no_activation_files_are_left_after_success(tmp_path: Path) -> None:
    generator, image = build("unet"), random_image(40, 40)
    gc.collect()  # close files of other tests before counting
    before = open_files()
    counts: list[int] = []

    def check_folder(share: float) -> None:
        counts.append(open_files())
        assert not list(tmp_path.iterdir())  # the file has no name from the start

    translate_tiled(
        generator, image, rows=8, memory=min_memory(generator, image, 8), folder=tmp_path, advance=check_folder
    )
    assert max(counts) > before
    assert open_files() == before


def test_no_activation_files_are_left_after_an_error(tmp_path: Path) -> None:
    generator, image = build("resnet"), random_image(40, 40)
    gc.collect()  # close files of other tests before counting
    before = open_files()

    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        translate_tiled(generator, image, rows=8, memory=min_memory(generator, image, 8), folder=tmp_path, advance=stop)
    assert (
        caught.traceback
    )  # the frames of the traceback hold the stores, so garbage collection has not closed the files
    assert open_files() == before
    assert not list(tmp_path.iterdir())


def test_full_disk_error_states_needed_and_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_store, "free_space", lambda folder: 1000)
    generator, image = build("resnet"), random_image(40, 40)
    with pytest.raises(DiskError, match=r"cannot keep activations.*no space left.*need .* MB, 0.0 MB free") as caught:
        translate_tiled(generator, image, rows=8, memory=min_memory(generator, image, 8), folder=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_disk_that_fills_up_while_storing_is_a_disk_error(tmp_path: Path) -> None:
    import resource

    generator, image = build("resnet"), random_image(120, 120)
    memory = min_memory(generator, image, 8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(DiskError, match=os.strerror(errno.EFBIG).lower()):
            translate_tiled(generator, image, rows=8, memory=memory, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_missing_folder_for_activations_is_a_disk_error(tmp_path: Path) -> None:
    generator, image = build("resnet"), random_image(40, 40)
    with pytest.raises(DiskError, match="cannot keep activations"):
        translate_tiled(generator, image, rows=8, memory=min_memory(generator, image, 8), folder=tmp_path / "none")


# Memory and progress


def test_too_little_memory_error_names_the_minimum(generator: nn.Module) -> None:
    image = random_image(40, 4000)
    with pytest.raises(CommandError, match=r"memory=1.0 MB cannot hold a strip of 1 px.*set memory= to \d+ MB or more"):
        translate_tiled(generator, image, memory=10**6)
    with pytest.raises(CommandError, match="a strip of 40 px"):
        translate_tiled(generator, image, rows=40, memory=min_memory(generator, image, 40) - 1)


def test_less_memory_reduces_strip_height_before_activations_move_to_files() -> None:
    generator = ResNetGenerator()
    room = tiled_bytes(generator, 4000, 6000, torch.float32, 4)
    divisions = {
        memory: tiling._divide_memory(generator, 4000, 6000, torch.float32, None, memory)
        for memory in (room, room * 2, room // 4)
    }
    low, tall, in_files = divisions.values()
    assert 4 <= low[0] < tall[0]
    assert in_files[1] < 4000 * 6000 * 16 * 4  # less than one of the two stored activations
    for memory, (rows, _) in divisions.items():
        assert tiling._estimate(generator, 4000, 6000, torch.float32, rows).strip_bytes <= memory


def test_tiled_24_megapixel_image_needs_less_than_4_gb() -> None:
    generator = ResNetGenerator()
    small, large, huge = (tiled_bytes(generator, 1000 * n, 1500 * n, torch.float32, 64) for n in (2, 4, 8))
    assert large < 4e9 < full_pass_bytes(generator, 4000, 6000, torch.float32) / 5
    assert large < 4 * small
    assert huge < 4 * large


@pytest.mark.parametrize("upsample", ["transposed", "resize"])
@pytest.mark.parametrize("detail", [16, 64])
def test_full_pass_peak_memory_is_near_estimate(upsample: str, detail: int) -> None:
    architecture = {"name": "unet", "channels": 32, "levels": 4, "upsample": upsample, "detail": detail}
    program = f"""
import torch
from cyclestyle.hardware.memory import resident_peak
from cyclestyle.networks.registry import build
from cyclestyle.translation.tiled.tiling import full_pass_bytes
generator, image = build({architecture}).eval().requires_grad_(False), torch.rand(1, 3, 1024, 1024) * 2 - 1
before = resident_peak()
generator(image)
print(resident_peak() - before, full_pass_bytes(generator, 1024, 1024, torch.float32))
"""
    completed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    took, estimate = map(int, completed.stdout.split())
    assert 0.6 * estimate < took < 1.4 * estimate


@pytest.mark.parametrize("name", ["resnet", "unet", "unet with detail"])
def test_tiled_peak_memory_is_below_estimate(name: str, tmp_path: Path) -> None:
    """Peak memory is measured relative to the memory of the process before the translation."""
    generator: Any = {
        "resnet": ResNetGenerator(32, 1),
        "unet": UNetGenerator(32, 5),
        "unet with detail": UNetGenerator(32, 5, detail=16),
    }[name]
    program = f"""
import torch
from cyclestyle.hardware.device import Hardware; from cyclestyle.hardware.memory import resident_peak
from cyclestyle.networks.registry import build
from cyclestyle.translation.tiled.tiling import run_tiled, tiled_bytes
height, width = 640, 1600
generator, hardware = build({generator.architecture}).eval().requires_grad_(False), Hardware("cpu", precision="fp32")
image = torch.rand(1, 3, height, width) * 2 - 1
result = image.clone()
before = resident_peak()
run_tiled(generator, image, hardware=hardware, rows=32, memory=10**9)
print(resident_peak() - before, tiled_bytes(generator, height, width, torch.float32, 32))
"""
    completed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    took, estimate = map(int, completed.stdout.split())
    assert 0 < took <= estimate
    share = 0.6 if name == "resnet" else 1.0
    assert took < share * full_pass_bytes(generator, 640, 1600, torch.float32)


def test_progress_rises_evenly_to_1(generator: nn.Module) -> None:
    shares: list[float] = []
    translate_tiled(generator, random_image(90, 40), rows=8, advance=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[-3] < 0.9999  # before the last strip
    assert shares[-2] == pytest.approx(1.0)  # after the last strip: the estimated work equals the actual work
    assert np.diff([0.0, *shares]).max() < 0.2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("500MB", 5 * 10**8),
        ("4GiB", 2**32),
        ("1.5 gb", 15 * 10**8),
        ("123456", 123456),
        ("2k", 2000),
    ],
)
def test_memory_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 bananas", "-1GB", "0", "1e9", "4GB8", "nan", "٤GB", "9" * 400 + "GB"])
def test_bad_memory_size_is_rejected(text: str) -> None:
    with pytest.raises(CommandError, match="expected one such as 4GB") as caught:
        parse_memory(text)
    assert "\n" not in str(caught.value)


# Supported networks


def test_only_registered_generators_can_be_tiled() -> None:
    class Custom(ResNetGenerator):
        """Subclass that is not registered, since its forward pass may differ."""

    for network in registry.GENERATORS.values():
        assert can_tile(network(4))
    assert not can_tile(Custom(4))
    assert not can_tile(nn.Conv2d(3, 3, 1))


def record_stores(
    monkeypatch: pytest.MonkeyPatch, on_store: Callable[[Any], object] = bool
) -> "list[weakref.ref[Any]]":
    """Record all stores created from now on, as weak references."""
    stores: list[weakref.ref[Any]] = []
    make = ActivationStores.make

    def recording_make(self: ActivationStores, *arguments: Any) -> Any:
        store = make(self, *arguments)
        if self.device == "cpu":
            stores.append(weakref.ref(store))
            on_store(store)
        return store

    monkeypatch.setattr(ActivationStores, "make", recording_make)
    return stores


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else pytest.skip("no /proc")
