"""Pictures in pieces are the whole pass's, within their memory, and leave nothing behind."""

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
from cyclestyle.networks import ResNetGenerator, UNetGenerator, registry
from cyclestyle.translation.tiled import activation_store, tiling
from cyclestyle.translation.tiled.activation_store import ActivationStores, InFile, InMemory
from cyclestyle.translation.tiled.layers import NormStatistics, Picture, Pointwise
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
    return built(request.param)


def built(name: str) -> nn.Module:
    """A network with weights as large as trained ones are: no result is near 0, few are near the ends."""
    torch.manual_seed(0)
    made: nn.Module = GENERATORS[name]().eval().requires_grad_(False)
    return made


def photo(height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def whole(generator: nn.Module, picture: Tensor, hardware: Hardware = CPU) -> Tensor:
    with torch.inference_mode():
        made: Tensor = hardware.autocast(generator)(picture)
    return made


def pieces(generator: nn.Module, picture: Tensor, **arguments: Any) -> Tensor:
    return run_tiled(generator, picture, **({"hardware": CPU, "rows": None, "memory": PLENTY} | arguments))


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return (one.double() - other.double()).abs().max().item()


def least_memory(generator: nn.Module, picture: Tensor, rows: int) -> int:
    """With which strips fit and all that waits must be in files."""
    height, width = picture.shape[2:]
    return tiling._forecast(generator, height, width, picture.dtype, rows).strip_bytes


# The result


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pieces_are_the_whole(generator: nn.Module, size: tuple[int, int]) -> None:
    picture = photo(*size)
    expected = whole(generator, picture)
    for rows in (1, 3, 8, 20, 1000, None):
        made = pieces(generator, picture, rows=rows)
        assert made.dtype == torch.float32
        assert difference(made, expected) <= 2e-5, f"strips of {rows} px"


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
def test_pieces_are_the_whole_whatever_the_size(name: str, height: int, width: int, rows: int, seed: int) -> None:
    generator, picture = built(name), photo(height, width, seed=seed)
    assert difference(pieces(generator, picture, rows=rows), whole(generator, picture)) <= 1e-4


def test_in_float64_pieces_are_the_whole_to_ten_digits(generator: nn.Module, double_precision: None) -> None:
    generator = generator.double()
    picture = photo(45, 62).double()
    made = pieces(generator, picture, rows=9)
    assert made.dtype == torch.float64
    assert difference(made, whole(generator, picture)) <= 1e-10


def test_pictures_of_one_pixel_keep_their_size(generator: nn.Module) -> None:
    made = pieces(generator, photo(1, 1))
    assert made.shape == (1, 3, 1, 1)
    assert made.isfinite().all()
    if isinstance(generator, UNetGenerator):  # a ResNet makes rounding errors of a single colour, whole passes too
        assert difference(made, whole(generator, photo(1, 1))) <= 1e-5


def test_flat_areas_are_as_in_the_whole(generator: nn.Module) -> None:
    picture = photo(60, 56)
    picture[:, :, :40] = 1.0  # an overexposed sky, which whole strips see nothing but
    assert difference(pieces(generator, picture, rows=4), whole(generator, picture)) <= 5e-5


def test_channels_far_from_zero_are_as_in_the_whole(generator: nn.Module) -> None:
    first = next(layer for layer in generator.modules() if isinstance(layer, nn.Conv2d))
    assert first.bias is not None
    first.bias += 30.0
    picture = photo(60, 56)
    exact = whole(generator.double(), picture.double())
    generator.float()
    rounding = difference(whole(generator, picture), exact)
    assert difference(pieces(generator, picture, rows=7), exact) <= 3 * rounding + 1e-5


@pytest.mark.parametrize("name", ["resnet", "resnet, resize", "unet", "unet, resize", "unet with detail"])
def test_bf16_is_no_farther_from_float32_in_pieces_than_whole(name: str) -> None:
    generator, picture = built(name), photo(61, 74)
    hardware = Hardware("cpu", precision="bf16")
    exact = whole(generator, picture)
    made = pieces(generator, picture, hardware=hardware, rows=12)
    assert made.dtype == torch.float32
    distances = [(one - exact).square().mean().sqrt().item() for one in (made, whole(generator, picture, hardware))]
    assert 0 < distances[0] <= 1.3 * distances[1]


def test_dropout_does_nothing_even_where_the_network_is_in_training() -> None:
    generator, picture = built("resnet, resize"), photo(20, 24)
    expected = whole(generator, picture)
    assert difference(pieces(generator.train(), picture, rows=8), expected) <= 2e-5
    assert generator.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_strips_on_a_gpu_are_the_whole_on_the_cpu(generator: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = photo(61, 74)
    expected = whole(generator, picture)
    gpu = Hardware("cuda", precision="fp32")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    gpu.to_device(generator)
    made = pieces(generator, picture, hardware=gpu, rows=16)
    assert made.device.type == "cpu"
    assert difference(made, expected) <= 1e-4


# Statistics


def test_moments_of_strips_are_those_of_all_pixels() -> None:
    random = np.random.default_rng(0)
    values = random.normal(1000.0, [[[0.1]], [[1.0]], [[30.0]]], (3, 700, 900)).astype(np.float32)
    moments = RunningMoments(3)
    for top, bottom in [(0, 1), (1, 333), (333, 340), (340, 700)]:
        moments.add(torch.from_numpy(values[:, top:bottom])[None])
    mean, variance = moments.statistics(torch.device("cpu"))
    exact = values.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((1, 2)), rtol=1e-7)
    np.testing.assert_allclose(variance, exact.var((1, 2)), rtol=1e-5)


def test_statistics_are_those_that_the_whole_pass_s_norms_see(generator: nn.Module) -> None:
    picture = photo(52, 37)
    observed: dict[nn.Module, NormStatistics] = {}
    pieces(generator, picture, rows=5, observe=observed.__setitem__)

    seen: dict[nn.Module, np.ndarray] = {}
    for layer in generator.modules():
        if isinstance(layer, nn.InstanceNorm2d):
            layer.register_forward_pre_hook(lambda layer, inputs: seen.__setitem__(layer, inputs[0].numpy().copy()))
    whole(generator, picture)

    assert observed.keys() == seen.keys()
    for layer, values in seen.items():
        np.testing.assert_allclose(observed[layer].mean, values.mean((0, 2, 3), dtype=np.float64), atol=2e-5)
        np.testing.assert_allclose(observed[layer].variance, values.var((0, 2, 3), dtype=np.float64), rtol=1e-4)


# What waits


def test_files_and_memory_give_the_same_bits(
    generator: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: set[type] = set()
    counted(monkeypatch, lambda store: kinds.add(type(store)))
    picture = photo(50, 41)
    in_memory = pieces(generator, picture, rows=6)
    assert kinds == {InMemory}
    kinds.clear()
    in_files = pieces(generator, picture, rows=6, memory=least_memory(generator, picture, 6), folder=tmp_path)
    assert kinds == {InFile}
    assert torch.equal(in_memory, in_files)


def test_bf16_waits_in_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, picture, hardware = built("resnet"), photo(50, 41), Hardware("cpu", precision="bf16")
    in_memory = pieces(generator, picture, rows=6, hardware=hardware)
    dtypes: list[torch.dtype] = []
    counted(monkeypatch, lambda store: dtypes.append(store.dtype))  # which only a file has
    least = tiling._forecast(generator, 50, 41, torch.bfloat16, 6).strip_bytes
    in_files = pieces(generator, picture, rows=6, hardware=hardware, memory=least, folder=tmp_path)
    assert dtypes == [torch.bfloat16] * 2
    assert torch.equal(in_memory, in_files)


def test_overwriting_in_place_is_as_good_as_a_store_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, picture = built("resnet with more blocks"), photo(40, 44)
    in_place = pieces(generator, picture, rows=4)  # strips of one row in the trunk

    def into_another(self: Passes, kept: StoredActivation, made: Any, *, measured: bool) -> None:
        other = self.keep(made)
        kept.store, kept.statistics = other.store, other.statistics

    monkeypatch.setattr(Passes, "overwrite", into_another)
    assert torch.equal(in_place, pieces(generator, picture, rows=4))


def test_what_waits_is_not_overwritten_by_those_who_read_it() -> None:
    values = torch.randn(6, 5, 3)
    kept = StoredActivation(
        InMemory(values.clone()),
        Picture(photo(6, 5), device=torch.device("cpu"), multiple=1, minimum=1),
        torch.device("cpu"),
    )
    assert (Pointwise(kept, torch.relu_).rows(0, 6) >= 0).all()
    assert torch.equal(kept.rows(0, 6)[0].permute(1, 2, 0), values)


@pytest.mark.parametrize(("name", "last"), [("resnet", 1), ("unet with seven levels", 2)])
def test_what_is_not_needed_any_more_is_given_back(name: str, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    made = counted(monkeypatch)
    pieces(
        built(name),
        photo(128, 128),
        rows=16,
        advance=lambda share: alive.append(sum(one() is not None for one in made)),
    )
    assert alive[-2] == last  # in the last sweep, whose strips are the largest: what it is made from and no more
    assert max(alive) > last


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    generator, picture = built("unet"), photo(40, 40)
    gc.collect()  # or other tests' leftovers would be closed in between
    before = open_files()
    seen: list[int] = []

    def look(share: float) -> None:
        seen.append(open_files())
        assert not list(tmp_path.iterdir())  # the file has no name from the start

    pieces(generator, picture, rows=8, memory=least_memory(generator, picture, 8), folder=tmp_path, advance=look)
    assert max(seen) > before
    assert open_files() == before


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    generator, picture = built("resnet"), photo(40, 40)
    gc.collect()  # or other tests' leftovers would be closed in between
    before = open_files()

    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        pieces(generator, picture, rows=8, memory=least_memory(generator, picture, 8), folder=tmp_path, advance=stop)
    assert caught.traceback  # whose frames still hold the stores: it is not for the collector to close the files
    assert open_files() == before
    assert not list(tmp_path.iterdir())


def test_a_disk_that_has_no_room_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_store, "free_space", lambda folder: 1000)
    generator, picture = built("resnet"), photo(40, 40)
    with pytest.raises(DiskError, match=r"cannot keep activations.*no space left.*need .* MB, 0.0 MB free") as caught:
        pieces(generator, picture, rows=8, memory=least_memory(generator, picture, 8), folder=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_disk_that_fills_up_is_an_error(tmp_path: Path) -> None:
    import resource

    generator, picture = built("resnet"), photo(120, 120)
    memory = least_memory(generator, picture, 8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(DiskError, match=os.strerror(errno.EFBIG).lower()):
            pieces(generator, picture, rows=8, memory=memory, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    generator, picture = built("resnet"), photo(40, 40)
    with pytest.raises(DiskError, match="cannot keep activations"):
        pieces(generator, picture, rows=8, memory=least_memory(generator, picture, 8), folder=tmp_path / "none")


# Memory and progress


def test_too_little_memory_is_an_error_that_names_enough(generator: nn.Module) -> None:
    picture = photo(40, 4000)
    with pytest.raises(CommandError, match=r"memory=1.0 MB cannot hold a strip of 1 px.*set memory= to \d+ MB or more"):
        pieces(generator, picture, memory=10**6)
    with pytest.raises(CommandError, match="a strip of 40 px"):
        pieces(generator, picture, rows=40, memory=least_memory(generator, picture, 40) - 1)


def test_strips_become_lower_before_files_are_needed() -> None:
    generator = ResNetGenerator()
    room = tiled_bytes(generator, 4000, 6000, torch.float32, 4)
    forecasts = {
        memory: tiling._division(generator, 4000, 6000, torch.float32, None, memory)
        for memory in (room, room * 2, room // 4)
    }
    low, tall, filed = forecasts.values()
    assert 4 <= low[0] < tall[0]
    assert filed[1] < 4000 * 6000 * 16 * 4  # not even one of the two copies
    for memory, (rows, _) in forecasts.items():
        assert tiling._forecast(generator, 4000, 6000, torch.float32, rows).strip_bytes <= memory


def test_24_megapixels_need_less_than_4_gb_and_grow_no_faster_than_the_picture() -> None:
    generator = ResNetGenerator()
    small, large, huge = (tiled_bytes(generator, 1000 * n, 1500 * n, torch.float32, 64) for n in (2, 4, 8))
    assert large < 4e9 < full_pass_bytes(generator, 4000, 6000, torch.float32) / 5
    assert large < 4 * small
    assert huge < 4 * large


@pytest.mark.parametrize("upsample", ["transposed", "resize"])
@pytest.mark.parametrize("detail", [16, 64])
def test_the_peak_of_a_whole_pass_is_near_the_forecast(upsample: str, detail: int) -> None:
    architecture = {"name": "unet", "channels": 32, "levels": 4, "upsample": upsample, "detail": detail}
    program = f"""
import torch
from cyclestyle.hardware.memory import resident_peak
from cyclestyle.networks.registry import build
from cyclestyle.translation.tiled.tiling import full_pass_bytes
generator, picture = build({architecture}).eval().requires_grad_(False), torch.rand(1, 3, 1024, 1024) * 2 - 1
before = resident_peak()
generator(picture)
print(resident_peak() - before, full_pass_bytes(generator, 1024, 1024, torch.float32))
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    took, forecast = map(int, said.stdout.split())
    assert 0.6 * forecast < took < 1.4 * forecast


@pytest.mark.parametrize("name", ["resnet", "unet", "unet with detail"])
def test_the_peak_of_a_process_is_below_the_forecast(name: str, tmp_path: Path) -> None:
    """Of one that translates a picture, above that of one that translates a tiny one."""
    made: Any = {
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
generator, hardware = build({made.architecture}).eval().requires_grad_(False), Hardware("cpu", precision="fp32")
picture = torch.rand(1, 3, height, width) * 2 - 1
result = picture.clone()
before = resident_peak()
run_tiled(generator, picture, hardware=hardware, rows=32, memory=10**9)
print(resident_peak() - before, tiled_bytes(generator, height, width, torch.float32, 32))
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    took, forecast = map(int, said.stdout.split())
    assert 0 < took <= forecast
    share = 0.6 if name == "resnet" else 1.0
    assert took < share * full_pass_bytes(made, 640, 1600, torch.float32)


def test_progress_goes_up_evenly_to_one(generator: nn.Module) -> None:
    shares: list[float] = []
    pieces(generator, photo(90, 40), rows=8, advance=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[-3] < 0.9999  # before the last strip
    assert shares[-2] == pytest.approx(1.0)  # behind it: the forecast's work is what was done
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
def test_memory_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 bananas", "-1GB", "0", "1e9", "4GB8", "nan", "٤GB", "9" * 400 + "GB"])
def test_what_is_no_memory_is_an_error_of_one_line(text: str) -> None:
    with pytest.raises(CommandError, match="expected one such as 4GB") as caught:
        parse_memory(text)
    assert "\n" not in str(caught.value)


# What can be tiled


def test_all_generators_of_the_table_can_be_tiled_and_nothing_else() -> None:
    class Own(ResNetGenerator):
        """Its forward pass may be another."""

    for network in registry.GENERATORS.values():
        assert can_tile(network(4))
    assert not can_tile(Own(4))
    assert not can_tile(nn.Conv2d(3, 3, 1))


def counted(monkeypatch: pytest.MonkeyPatch, look: Callable[[Any], object] = bool) -> "list[weakref.ref[Any]]":
    """The stores that are made from now on, without holding them."""
    made: list[weakref.ref[Any]] = []
    make = ActivationStores.make

    def noted(self: ActivationStores, *arguments: Any) -> Any:
        store = make(self, *arguments)
        if self.device == "cpu":
            made.append(weakref.ref(store))
            look(store)
        return store

    monkeypatch.setattr(ActivationStores, "make", noted)
    return made


def open_files() -> int:
    there = Path("/proc/self/fd")
    return len(list(there.iterdir())) if there.is_dir() else pytest.skip("no /proc")
