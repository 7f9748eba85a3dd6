"""Tests of devices and precisions: values chosen for `auto`, errors, and values that stay float32."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from cyclestyle.errors import CommandError
from cyclestyle.hardware.device import Hardware, device_count, device_type
from cyclestyle.hardware.memory import resident_peak
from cyclestyle.hardware.winograd import WinogradConv2d, use_winograd
from cyclestyle.images import tensors
from cyclestyle.networks import ResNetGenerator
from cyclestyle.objectives.pairs import Request
from cyclestyle.objectives.terms import Direction
from tests.factories import random_batch, tiny_objective, tiny_trainer

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
NO_MPS = pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has Apple's GPU")


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    """Reset PyTorch's switch for deterministic algorithms, which `Hardware` sets for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


def losses(precision: str) -> dict[str, float]:
    hardware = Hardware("cpu", precision=precision)
    objective = tiny_objective(prepare=hardware.wrap, backward="joint")
    a, b, *_ = random_batch([0, 1])
    a, b = tensors.to_float(a), tensors.to_float(b)
    (part,) = objective.generator_parts
    generators, _, fakes = part(a, b)
    discriminators, scores, _ = objective.discriminator_losses(a, b, fakes["fake_a"].detach(), fakes["fake_b"].detach())
    assert all(value.dtype == torch.float32 for value in (generators | discriminators | scores).values())
    return {name: value.item() for name, value in (generators | discriminators).items()}


@NO_CUDA
@NO_MPS
def test_auto_device_is_cpu_without_gpu() -> None:
    assert device_type("auto") == "cpu"
    assert Hardware().device == torch.device("cpu")
    assert device_count("auto") == 1


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux what the processor has")
def test_auto_precision_is_bf16_only_on_cpus_with_native_bf16() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    native = flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
    assert Hardware("cpu").precision == ("bf16" if native else "fp32")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux what the processor has")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_winograd_is_enabled_on_avx512_bf16_without_amx(
    precision: str,
) -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    network = ResNetGenerator(8, 2)
    Hardware("cpu", precision=precision).to_device(network, training=True)
    layers = [layer for layer in network.modules() if isinstance(layer, WinogradConv2d)]
    pays = precision == "bf16" and flags & {"avx512_bf16", "amx_bf16"} == {"avx512_bf16"}
    assert len(layers) == (4 if pays else 0)


def test_auto_precision_runs_on_this_machine() -> None:
    hardware = Hardware()
    network = nn.Conv2d(3, 4, 3)
    hardware.to_device(network)
    output = hardware.wrap(network)(hardware.upload(torch.ones(1, 3, 8, 8)))
    assert output.dtype == torch.float32
    assert output.isfinite().all()


def test_fp16_on_cpu_is_rejected_with_remedy() -> None:
    with pytest.raises(CommandError, match="precision=fp16 is for GPUs: take bf16 or fp32"):
        Hardware("cpu", precision="fp16")


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NO_CUDA), pytest.param("mps", marks=NO_MPS)])
def test_missing_device_is_rejected_with_remedy(device: str) -> None:
    with pytest.raises(CommandError, match=f"device={device}: this machine has none .* it would run on"):
        Hardware(device)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_networks_run_in_chosen_precision_and_return_float32(precision: str) -> None:
    inside: list[torch.dtype] = []
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    network[0].register_forward_hook(lambda _, __, output: inside.append(output.dtype))
    hardware = Hardware("cpu", precision=precision)
    output = hardware.wrap(network)(torch.ones(1, 3, 8, 8))
    assert inside == [{"bf16": torch.bfloat16, "fp32": torch.float32}[precision]]
    assert output.dtype == torch.float32
    assert network[0].weight.dtype == torch.float32


def test_autocast_converts_tensors_in_nested_tuples_and_mappings() -> None:
    hardware = Hardware("cpu", precision="bf16")
    generators = tiny_objective().generators
    a, b, *_ = random_batch([0])
    request = Request("ab", reconstructed=False, layers=("trunk.0",))
    (direction,) = hardware.wrap(generators)(tensors.to_float(a), tensors.to_float(b), requests=[request])
    assert isinstance(direction, Direction)
    assert direction.name == "ab"
    assert direction.reconstructed is None
    values = [
        direction.fake,
        direction.identity,
        *direction.source_features.values(),
        *direction.fake_features.values(),
    ]
    assert {value.dtype for value in values} == {torch.float32}
    assert len(values) == 4


def test_losses_in_bf16_are_near_losses_in_float32() -> None:
    exact, rough = losses("fp32"), losses("bf16")
    assert rough == pytest.approx(exact, rel=0.03)
    assert rough != exact


def test_weights_and_optimizer_states_stay_float32_in_bf16() -> None:
    trainer = tiny_trainer(precision="bf16")
    trainer.train_step(random_batch([0]))
    states = trainer.state_dict()["optimizers"]["generators"].values()
    assert {value.dtype for value in trainer.objective.generators.state_dict().values()} == {torch.float32}
    assert {state["exp_avg_sq"].dtype for state in states} == {torch.float32}


def test_gradients_are_scaled_in_fp16_only() -> None:
    assert not Hardware("cpu", precision="bf16").scaler().is_enabled()
    assert not Hardware("cpu", precision="fp32").scaler().is_enabled()


def test_deterministic_option_enables_deterministic_pytorch_algorithms() -> None:
    Hardware("cpu", deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    Hardware("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("count", [1, 2])
def test_gradients_match_float64_gradients(device: str, count: int) -> None:
    hardware = Hardware(device, precision="fp32", deterministic=device == "cuda")  # deterministic turns TF32 off
    objective = tiny_objective(prepare=hardware.wrap, backward="joint")
    double = tiny_objective(double=True, backward="joint")
    hardware.to_device(objective.generators)
    hardware.to_device(objective.discriminators)
    a, b, *_ = random_batch(list(range(count)))
    (part,), (double_part,) = objective.generator_parts, double.generator_parts
    losses, _, _ = part(*(tensors.to_float(hardware.upload(images)) for images in (a, b)))
    expected, _, _ = double_part(*(tensors.to_float(images).double() for images in (a, b)))
    torch.stack(list(losses.values())).sum().backward()
    torch.stack(list(expected.values())).sum().backward()
    exact = dict(double.generators.named_parameters())
    for name, parameter in objective.generators.named_parameters():
        error = (parameter.grad.cpu().double() - exact[name].grad).norm()
        assert error < 0.02 * exact[name].grad.norm() + 1e-5, name


def test_to_device_moves_modules_in_place() -> None:
    hardware, network = Hardware("cpu"), nn.Conv2d(3, 4, 3)
    weight = network.weight
    hardware.to_device(network)
    assert network.weight is weight


def test_str_of_hardware_names_device_and_precision() -> None:
    assert str(Hardware("cpu", precision="fp32")) == "CPU, fp32"
    assert str(Hardware("cpu", precision="bf16", compile=True)) == "CPU, bf16, compiled"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prepared_inference_matches_autocast(precision: str, count: int) -> None:
    torch.manual_seed(0)
    network = ResNetGenerator(8, 2).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.rand(count, 3, 20, 24) * 2 - 1
    hardware = Hardware("cpu", precision=precision)
    with torch.inference_mode():
        prepared, autocast = hardware.prepare_inference(network)(images), hardware.wrap(network)(images)
        exact = network(images)
    assert prepared.dtype == torch.float32
    assert (prepared - exact).abs().mean() <= 1.2 * (autocast - exact).abs().mean()  # no worse than autocast's rounding
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert (prepared - exact).abs().max() < 0.05


def test_peak_memory_excludes_parent_process() -> None:
    tensor = torch.ones(250_000_000)  # 1 GB; importing torch takes less than half as much
    program = "from cyclestyle.hardware.memory import resident_peak; print(resident_peak())"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert resident_peak() > tensor.nbytes
    assert 10**7 < int(output) < tensor.nbytes


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's heap keeps holes")
def test_trim_memory_returns_freed_memory() -> None:
    program = """if True:
        import torch
        from pathlib import Path
        from cyclestyle.hardware.device import Hardware

        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        torch.ones(8_000_000)  # freeing 32 MB makes glibc take smaller allocations from the heap
        images = [torch.ones(250_000) for _ in range(600)]
        full = resident()
        images = images[::2]  # leaves holes of 1 MB
        holes = resident()
        Hardware("cpu").trim_memory()
        print(full - holes, holes - resident())
    """
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    freed, trimmed = map(int, output.split())
    assert freed < 50e6  # without trimming, little of the unused 300 MB is returned
    assert trimmed > 200e6


def test_losses_of_fifty_bf16_steps_are_near_losses_in_float32() -> None:
    torch.set_default_dtype(torch.float32)
    losses: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "bf16"):
        trainer = tiny_trainer(precision=precision)
        if precision == "bf16":
            use_winograd(trainer.objective.generators)
        for layer in trainer.objective.generators.modules():
            if isinstance(layer, WinogradConv2d):
                layer.winograd_from = 0
        for step in range(50):
            trainer.running_means.add(trainer.train_step(random_batch([step])), pictures=2)
        losses[precision] = {
            name: value for name, value in trainer.running_means.values().items() if name.startswith("loss/")
        }
    assert losses["bf16"] != losses["fp32"]
    for name, value in losses["fp32"].items():
        bound = 0.005 if name.startswith(("loss/cycle", "loss/identity")) else 0.02
        assert losses["bf16"][name] == pytest.approx(value, rel=bound), name
