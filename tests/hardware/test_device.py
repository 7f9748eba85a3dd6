"""Devices and precisions: what `auto` comes to, what is refused, and what stays float32."""

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
from tests.factories import random_batch, tiny_objective, tiny_trainer

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
NO_MPS = pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has Apple's GPU")


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    """What `deterministic` sets for the whole process, set back."""
    yield
    torch.use_deterministic_algorithms(False)


def losses(precision: str) -> dict[str, float]:
    hardware = Hardware("cpu", precision=precision)
    objective = tiny_objective(prepare=hardware.wrap)
    a, b, *_ = random_batch([0, 1])
    made, translations = objective.generator_losses(tensors.to_float(a), tensors.to_float(b))
    judged, scores = objective.discriminator_losses(
        tensors.to_float(a), tensors.to_float(b), translations.fake_a.detach(), translations.fake_b.detach()
    )
    assert all(value.dtype == torch.float32 for value in (made | judged | scores).values())
    return {name: value.item() for name, value in (made | judged).items()}


@NO_CUDA
@NO_MPS
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    assert device_type("auto") == "cpu"
    assert Hardware().device == torch.device("cpu")
    assert device_count("auto") == 1


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux what the processor has")
def test_auto_precision_on_a_cpu_is_bf16_only_if_the_processor_has_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    native = flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
    assert Hardware("cpu").precision == ("bf16" if native else "fp32")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux what the processor has")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_take_fewer_multiplications_in_bf16_on_cpus_that_have_it_in_vectors_but_not_in_tiles(
    precision: str,
) -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    network = ResNetGenerator(8, 2)
    Hardware("cpu", precision=precision).to_device(network, training=True)
    layers = [layer for layer in network.modules() if isinstance(layer, WinogradConv2d)]
    pays = precision == "bf16" and flags & {"avx512_bf16", "amx_bf16"} == {"avx512_bf16"}
    assert len(layers) == (4 if pays else 0)


def test_auto_precision_works_here() -> None:
    hardware = Hardware()
    network = nn.Conv2d(3, 4, 3)
    hardware.to_device(network)
    made = hardware.wrap(network)(hardware.upload(torch.ones(1, 3, 8, 8)))
    assert made.dtype == torch.float32
    assert made.isfinite().all()


def test_fp16_on_a_cpu_is_refused_with_what_to_take() -> None:
    with pytest.raises(CommandError, match="precision=fp16 is for GPUs: take bf16 or fp32"):
        Hardware("cpu", precision="fp16")


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NO_CUDA), pytest.param("mps", marks=NO_MPS)])
def test_a_device_that_is_not_there_is_refused_with_what_is(device: str) -> None:
    with pytest.raises(CommandError, match=f"device={device}: this machine has none .* it would run on"):
        Hardware(device)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_networks_run_in_the_precision_and_answer_in_float32(precision: str) -> None:
    inside: list[torch.dtype] = []
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    network[0].register_forward_hook(lambda _, __, made: inside.append(made.dtype))
    hardware = Hardware("cpu", precision=precision)
    made = hardware.wrap(network)(torch.ones(1, 3, 8, 8))
    assert inside == [{"bf16": torch.bfloat16, "fp32": torch.float32}[precision]]
    assert made.dtype == torch.float32
    assert network[0].weight.dtype == torch.float32


def test_named_tuples_come_back_as_they_are_with_what_is_missing() -> None:
    hardware = Hardware("cpu", precision="bf16")
    generators = tiny_objective().generators
    a, b, *_ = random_batch([0])
    made = hardware.wrap(generators)(tensors.to_float(a), tensors.to_float(b), cycled_b=False, same_a=False)
    assert type(made).__name__ == "Translations"
    assert made.cycled_b is None
    assert made.same_a is None
    assert {value.dtype for value in made if value is not None} == {torch.float32}


def test_losses_in_bf16_are_near_those_in_float32() -> None:
    exact, rough = losses("fp32"), losses("bf16")
    assert rough == pytest.approx(exact, rel=0.03)
    assert rough != exact


def test_weights_and_optimizer_states_stay_float32_in_bf16() -> None:
    trainer = tiny_trainer(precision="bf16")
    trainer.train_step(random_batch([0]))
    states = trainer.state_dict()["optimizers"]["generators"].values()
    assert {value.dtype for value in trainer.objective.generators.state_dict().values()} == {torch.float32}
    assert {state["exp_avg_sq"].dtype for state in states} == {torch.float32}


def test_only_fp16_scales_gradients() -> None:
    assert not Hardware("cpu", precision="bf16").scaler().is_enabled()
    assert not Hardware("cpu", precision="fp32").scaler().is_enabled()


def test_deterministic_turns_on_what_makes_it_so() -> None:
    Hardware("cpu", deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    Hardware("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("pictures", [1, 2])
def test_gradients_on_the_hardware_are_those_of_float64(device: str, pictures: int) -> None:
    hardware = Hardware(device, precision="fp32", deterministic=device == "cuda")  # which turns TF32 off
    ours, theirs = tiny_objective(prepare=hardware.wrap), tiny_objective(double=True)
    hardware.to_device(ours.generators)
    hardware.to_device(ours.discriminators)
    a, b, *_ = random_batch(list(range(pictures)))
    told, _ = ours.generator_losses(*(tensors.to_float(hardware.upload(one)) for one in (a, b)))
    wanted, _ = theirs.generator_losses(*(tensors.to_float(one).double() for one in (a, b)))
    torch.stack(list(told.values())).sum().backward()
    torch.stack(list(wanted.values())).sum().backward()
    exact = dict(theirs.generators.named_parameters())
    for name, parameter in ours.generators.named_parameters():
        error = (parameter.grad.cpu().double() - exact[name].grad).norm()
        assert error < 0.02 * exact[name].grad.norm() + 1e-5, name


def test_modules_are_placed_in_place() -> None:
    hardware, network = Hardware("cpu"), nn.Conv2d(3, 4, 3)
    weight = network.weight
    hardware.to_device(network)
    assert network.weight is weight


def test_a_hardware_says_what_it_is_in_a_line() -> None:
    assert str(Hardware("cpu", precision="fp32")) == "CPU, fp32"
    assert str(Hardware("cpu", precision="bf16", compile=True)) == "CPU, bf16, compiled"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_inference_is_what_autocast_makes_and_leaves_the_module_as_it_was(precision: str, count: int) -> None:
    torch.manual_seed(0)
    network = ResNetGenerator(8, 2).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pictures = torch.rand(count, 3, 20, 24) * 2 - 1
    hardware = Hardware("cpu", precision=precision)
    with torch.inference_mode():
        quick, usual = hardware.prepare_inference(network)(pictures), hardware.wrap(network)(pictures)
        exact = network(pictures)
    assert quick.dtype == torch.float32
    assert (quick - exact).abs().mean() <= 1.2 * (usual - exact).abs().mean()  # no worse than autocast's rounding
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert (quick - exact).abs().max() < 0.05


def test_a_process_s_peak_of_memory_is_its_own_and_not_that_of_who_started_it() -> None:
    held = torch.ones(250_000_000)  # 1 GB; importing torch takes less than half of it
    program = "from cyclestyle.hardware.memory import resident_peak; print(resident_peak())"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert resident_peak() > held.nbytes
    assert 10**7 < int(said) < held.nbytes


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's heap keeps holes")
def test_freed_memory_goes_back_to_the_system_on_request() -> None:
    program = """if True:
        import torch
        from pathlib import Path
        from cyclestyle.hardware.device import Hardware

        def held():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        torch.ones(8_000_000)  # 32 MB: from now on the heap takes what is smaller
        pictures = [torch.ones(250_000) for _ in range(600)]
        full = held()
        pictures = pictures[::2]  # leaves holes of 1 MB
        holes = held()
        Hardware("cpu").trim_memory()
        print(full - holes, holes - held())
    """
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    freed, given_back = map(int, said.split())
    assert freed < 50e6  # of 300 MB, without asking
    assert given_back > 200e6


def test_fifty_steps_in_bf16_lose_as_in_float32() -> None:
    torch.set_default_dtype(torch.float32)
    told: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "bf16"):
        trainer = tiny_trainer(precision=precision)
        if precision == "bf16":
            use_winograd(trainer.objective.generators)
        for layer in trainer.objective.generators.modules():
            if isinstance(layer, WinogradConv2d):
                layer.winograd_from = 0
        for step in range(50):
            trainer.record.add(trainer.train_step(random_batch([step])), pictures=2)
        told[precision] = {name: value for name, value in trainer.record.values().items() if name.startswith("loss/")}
    assert told["bf16"] != told["fp32"]
    for name, value in told["fp32"].items():
        bound = 0.005 if name.startswith(("loss/cycle", "loss/identity")) else 0.02
        assert told["bf16"][name] == pytest.approx(value, rel=bound), name
