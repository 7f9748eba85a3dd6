"""Checkpoint folders: atomic saves, verification on reading, names of weights, and safe reading of malformed files."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from cyclestyle.checkpoints.directory import Checkpoints, read, read_model
from cyclestyle.checkpoints.manifest import sha256_of
from cyclestyle.checkpoints.model import Model
from cyclestyle.distributed.world import World
from cyclestyle.errors import CheckpointError, CommandError, DamagedError, DiskError
from cyclestyle.hardware.device import Hardware
from cyclestyle.training.optimization import Optimizers
from cyclestyle.training.state import snapshot_model
from cyclestyle.training.trainer import Trainer
from cyclestyle.training.updater import Updater
from tests.factories import adam, random_batch, tiny_objective, tiny_trainer

FILES = ["networks.safetensors", "rank0.pt", "training.pt"]


def model(step: int = 4, **tensors: torch.Tensor) -> Model:
    tensors = tensors or {"generators.ab.weight": torch.arange(6.0).view(2, 3)}
    generators = {side: {"name": "resnet", "channels": channels} for side, channels in (("ab", 4), ("ba", 8))}
    return Model(tensors, generators, {side: {"name": "patch"} for side in "ab"}, ("monet", "photo"), step, Path())


def save(folder: Path, step: int = 4, *, keep: int = 3, training: Any = None) -> Path:
    state = {"step": step, "recipe": {}} if training is None else training
    return Checkpoints(folder, keep=keep).save(model(step), state, {"pools": {}}, world=World())


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step_*"))


def trained(trainer: Trainer, count: int) -> Trainer:
    while trainer.step < count:
        trainer.train_step(random_batch([2 * trainer.step, 2 * trainer.step + 1]))
    return trainer


def test_loaded_checkpoint_equals_saved_state(tmp_path: Path) -> None:
    trainer = trained(tiny_trainer(batch_size=2, pool=6, ema=0.9), 3)
    saved = snapshot_model(trainer, ("größe 🎨", "photo"))
    state, rank_state = trainer.state_dict(), trainer.rank_state_dict()
    path = Checkpoints(tmp_path / "checkpoints").save(saved, state, rank_state, world=World())

    assert path == tmp_path / "checkpoints" / "step_00000003"
    assert sorted(file.name for file in path.iterdir()) == sorted([*FILES, "manifest.json"])
    again = read(path)
    assert again.step == 3
    assert again.model.domains == ("größe 🎨", "photo")
    objective = trainer.objective
    generators, discriminators = objective.generators, objective.discriminators
    assert again.model.generators == {"ab": generators.ab.architecture, "ba": generators.ba.architecture}
    assert again.model.discriminators == {"a": discriminators.a.architecture, "b": discriminators.b.architecture}
    assert again.model.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(value, saved.tensors[name]) for name, value in again.model.tensors.items())
    assert equal(again.training, state)
    assert equal(again.ranks, [rank_state])


def equal(first: Any, second: Any) -> bool:
    """Return whether two nested states are equal, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def test_model_header_describes_networks(tmp_path: Path) -> None:
    path = save(tmp_path) / "networks.safetensors"
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["cyclestyle"])
    assert header == {
        "version": 2,
        "step": 4,
        "domains": ["monet", "photo"],
        "generators": {"ab": {"name": "resnet", "channels": 4}, "ba": {"name": "resnet", "channels": 8}},
        "discriminators": {"a": {"name": "patch"}, "b": {"name": "patch"}},
    }


@pytest.mark.parametrize("discriminator", [{"name": "patch"}, {}], ids=["checkpoint", "exported file"])
def test_header_of_version_1_has_one_architecture_for_both_directions(
    tmp_path: Path, discriminator: dict[str, str]
) -> None:
    header = {"version": 1, "step": 3, "domains": ["a", "b"], "generator": {"name": "unet"}}
    metadata = {"cyclestyle": json.dumps(header | {"discriminator": discriminator})}
    save_file({"x": torch.zeros(1)}, tmp_path / "old.safetensors", metadata=metadata)

    old = read_model(tmp_path / "old.safetensors")

    assert old.generators == {"ab": {"name": "unet"}, "ba": {"name": "unet"}}
    assert old.discriminators == ({"a": discriminator, "b": discriminator} if discriminator else {})


def test_latest_file_holds_name_of_newest_checkpoint_and_old_ones_are_pruned(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == ["step_00000004", "step_00000010"]
    assert (tmp_path / "latest").read_text() == "step_00000010\n"
    assert Checkpoints(tmp_path).newest() == tmp_path / "step_00000010"
    assert Checkpoints(tmp_path).load().step == 10


def test_newest_checkpoint_has_highest_step_even_beyond_eight_digits(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert Checkpoints(tmp_path).load().step == 100_000_000


def test_load_without_checkpoint_returns_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").load() is None
    assert Checkpoints(tmp_path).load() is None


def test_interrupted_save_leaves_older_checkpoint_newest(tmp_path: Path) -> None:
    older = save(tmp_path, 4)
    with pytest.raises(AttributeError):
        save(tmp_path, 6, training={"cannot be pickled": lambda: None})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000004"]
    assert Checkpoints(tmp_path).newest() == older
    assert Checkpoints(tmp_path).load().step == 4
    assert (tmp_path / "latest").read_text() == "step_00000004\n"

    save(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000004", "step_00000005"]


def test_next_save_removes_leftovers_of_killed_save(tmp_path: Path) -> None:
    save(tmp_path, 4)
    leftover = tmp_path / ".step_00000006.tmp"
    leftover.mkdir()
    (leftover / "networks.safetensors").write_bytes(b"half")
    save(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000004", "step_00000005"]


def test_newest_undamaged_checkpoint_is_loaded(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step, keep=4)
    (tmp_path / "step_00000008" / "manifest.json").unlink()
    (tmp_path / "step_00000006" / "rank0.pt").write_bytes(b"")
    warnings: list[str] = []
    assert Checkpoints(tmp_path).load(warn=warnings.append).step == 4
    assert warnings == [
        f"{tmp_path}/step_00000008/manifest.json is missing or malformed, using step_00000004 instead",
        f"checksum mismatch in {tmp_path}/step_00000006/rank0.pt: the file is not what was written, "
        "using step_00000004 instead",
    ]
    assert len(steps(tmp_path)) == 4  # without `repair` no folder is renamed

    # With `repair`, damaged checkpoints are renamed: they do not count towards `keep` and are not read again.
    assert Checkpoints(tmp_path).load(repair=True, warn=warnings.append).step == 4
    assert steps(tmp_path) == ["step_00000002", "step_00000004"]
    save(tmp_path, 5, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000004", "step_00000005"]


def test_model_of_run_is_read_from_newest_undamaged_checkpoint(tmp_path: Path) -> None:
    for step in (2, 4):
        save(tmp_path / "checkpoints", step)
    damage(tmp_path / "checkpoints/step_00000004/networks.safetensors")
    warnings: list[str] = []
    assert read_model(tmp_path, warn=warnings.append).step == 2
    assert len(warnings) == 1
    assert "checksum mismatch" in warnings[0]
    with pytest.raises(CheckpointError, match="checksum mismatch"):
        read_model(tmp_path / "checkpoints/step_00000004")


def damage(file: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_checkpoint_that_disk_fails_to_read_is_not_renamed(tmp_path: Path) -> None:
    save(tmp_path, 2)
    file = save(tmp_path, 4) / "training.pt"
    aside = file.rename(tmp_path / "aside")
    file.symlink_to(file)  # reading fails with an OSError: too many levels of symbolic links
    with pytest.raises(DiskError, match=f"cannot read {file}: too many levels.*; try again"):
        Checkpoints(tmp_path).load(repair=True)
    aside.replace(file)
    assert Checkpoints(tmp_path).load(repair=True).step == 4


def test_checkpoint_missing_a_rank_file_is_rejected(tmp_path: Path) -> None:
    path = save(tmp_path, 4)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "ranks": 2}))
    with pytest.raises(CheckpointError, match="malformed"):
        read(path)
    (path / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError):
        Checkpoints(tmp_path)._publish(path, tmp_path / "step_00000006", ranks=2)
    (path / ".nfs0001").write_text("of the file system")
    Checkpoints(tmp_path)._publish(path, tmp_path / "step_00000006", ranks=1)
    assert Checkpoints(tmp_path).load().ranks == [{"pools": {}}]


def test_checkpoints_at_multiples_of_keep_every_are_never_removed(tmp_path: Path) -> None:
    for step in range(2, 14, 2):
        Checkpoints(tmp_path, keep=2, keep_every=4).save(model(step), {}, {}, world=World())
    assert steps(tmp_path) == [f"step_{step:08d}" for step in (4, 8, 10, 12)]


@pytest.mark.parametrize("settings", [{"keep": 1}, {"keep": 0}, {"keep_every": 0}])
def test_too_small_value_of_keep_or_keep_every_is_rejected(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(CommandError, match=r"checkpoint\.keep"):
        Checkpoints(tmp_path, **settings)


def test_second_save_at_same_step_replaces_first_checkpoint(tmp_path: Path) -> None:
    save(tmp_path)
    save(tmp_path, training={"second": True})
    assert Checkpoints(tmp_path).load().training == {"second": True}


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_in_checkpoint_gives_error_with_file_name(tmp_path: Path, name: str) -> None:
    file = save(tmp_path) / name
    damage(file)
    with pytest.raises(CheckpointError, match=f"checksum mismatch in {file}"):
        Checkpoints(tmp_path).load()


@pytest.mark.parametrize("name", FILES)
def test_missing_file_in_checkpoint_gives_error_with_file_name(tmp_path: Path, name: str) -> None:
    (save(tmp_path) / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        Checkpoints(tmp_path).load()


def test_checkpoint_of_newer_program_version_gives_error_with_both_versions(tmp_path: Path) -> None:
    manifest = save(tmp_path) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 7, "files": "other"}))
    with pytest.raises(CheckpointError, match="of version 7, this program reads up to 2: update it"):
        Checkpoints(tmp_path).load()

    file = tmp_path / "newer.safetensors"
    save_file({"x": torch.zeros(1)}, file, metadata={"cyclestyle": '{"version": 7}'})
    with pytest.raises(CheckpointError, match="of version 7, this program reads up to 2: update it"):
        read_model(file)


@pytest.mark.parametrize("linked", [False, True])
def test_model_file_of_a_checkpoint_is_verified_when_named_directly(tmp_path: Path, linked: bool) -> None:
    file = save(tmp_path) / "networks.safetensors"
    named = tmp_path / "link.safetensors" if linked else file
    if linked:
        named.symlink_to(file)
    content = file.read_bytes()
    assert read_model(named).path == named
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedError, match=r"^checksum mismatch in .*networks\.safetensors: the file is not what was"):
        read_model(named)

    alone = tmp_path / "networks.safetensors"  # a copy without its manifest cannot be verified
    alone.write_bytes(content)
    assert read_model(alone).path == alone


def test_file_without_model_header_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"x": torch.zeros(1)}, file, metadata=metadata)
        with pytest.raises(CheckpointError, match=r"other\.safetensors is not a cyclestyle model"):
            read_model(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"domains": "one"},
        {"domains": ["a", "b", "c"]},
        {"domains": None},
        {"step": None},
        {"step": float("inf")},
        {"generators": 3},
        {"generators": {"ab": 3}},
        {"discriminators": "patch"},
        {"version": None},
        {"version": "1"},
    ],
)
def test_malformed_model_header_is_rejected(tmp_path: Path, wrong: dict[str, Any]) -> None:
    valid = {"version": 2, "step": 0, "domains": ["a", "b"], "generators": {}, "discriminators": {}}
    file = tmp_path / "model.safetensors"
    for header in ({**valid, **wrong}, {key: value for key, value in valid.items() if key not in wrong}):
        save_file({"x": torch.zeros(1)}, file, metadata={"cyclestyle": json.dumps(header)})
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a cyclestyle model"):
            read_model(file)


def test_pickled_code_in_training_state_is_not_executed(tmp_path: Path) -> None:
    path = save(tmp_path)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return marker.touch, ()

    torch.save({"step": Evil()}, path / "training.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["training.pt"]["sha256"] = sha256_of(path / "training.pt")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"training\.pt cannot be read"):
        read(path)
    assert not marker.exists()


KEYS = st.sampled_from(
    ["version", "step", "ranks", "files", "sha256", "domains", "generators", "discriminators", *FILES]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 200_000)
@example(b'{"version": Infinity}')
@example(b'{"version": 1, "files": {"networks.safetensors": {}, "training.pt": {}, "rank0.pt": {}}}')
@example(b'{"version": 1, "files": {"\\u0000": {"sha256": "x"}}}')
def test_any_malformed_manifest_gives_one_line_checkpoint_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            (Path(folder) / name).write_bytes(b"")
        (Path(folder) / "manifest.json").write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read(Path(folder))
        assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
@example(b"")
@example(b"\x08\0\0\0\0\0\0\0{       ")
@example(b"\xff\xff\xff\xff\xff\xff\xff\x7f{}")
def test_any_malformed_model_file_gives_checkpoint_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            read_model(file)


@settings(max_examples=100, deadline=None)
@given(JSON.map(json.dumps) | st.text(max_size=20))
@example("[" * 100_000)
@example('{"version": 1, "step": Infinity, "domains": ["a", "b"], "generator": {}, "discriminator": {}}')
@example('{"version": 2, "step": 1, "domains": ["a", "b"], "generators": {"ab": 1}, "discriminators": {}}')
def test_any_text_as_model_header_is_read_or_raises_checkpoint_error(header: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        try:
            save_file({"x": torch.zeros(1)}, file, metadata={"cyclestyle": header})
        except UnicodeEncodeError:  # the header is UTF-8, which has no lone surrogates
            return
        try:
            result = read_model(file)
        except CheckpointError:
            return
        assert len(result.domains) == 2
        assert all(isinstance(architecture, dict) for architecture in result.generators.values())


def test_model_is_found_in_run_or_checkpoint_or_file(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    path = save(run / "checkpoints", 2)
    newest = save(run / "checkpoints", 4)
    for place in (run, run / "checkpoints", newest, newest / "networks.safetensors"):
        newest_model = read_model(place)
        assert newest_model.step == 4
        assert newest_model.path == newest / "networks.safetensors"
    assert read_model(path).step == 2


def test_error_for_missing_model_has_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path}/runs/gone"):
        read_model(Path("runs/gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}/empty: is it a run folder"):
        read_model(Path("empty"))


def test_weights_selected_by_prefix_have_names_without_prefix() -> None:
    full = model(**{"ema.ab.w": torch.zeros(1), "ema.ba.w": torch.ones(1), "generators.ab.w": torch.ones(1)})
    assert full.weights_under("ema.ab.").keys() == {"w"}
    assert full.weights_under("ema.").keys() == {"ab.w", "ba.w"}
    assert full.weights_under("discriminators.") == {}


@pytest.fixture
def process_group() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_names_of_saved_weights_have_no_wrapper_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(0, 2)  # two ranks, so that modules are wrapped, although only this process exists
    hardware = Hardware("cpu", precision="fp32", compile=True, world=world)
    trainer = tiny_trainer(ema=0.9, batch_size=2)
    objective = tiny_objective(prepare=hardware.wrap)
    assert isinstance(objective._call_generators, DistributedDataParallel)
    assert type(objective._call_generators.module).__name__ == "OptimizedModule"
    optimizers = Optimizers(**{name: adam(parameters) for name, parameters in objective.parameters.items()})
    wrapped = Trainer(
        objective,
        Updater(optimizers, hardware),
        schedule=trainer.schedule,
        samples_per_epoch=10,
        average=type(trainer.average)(objective.generators, 0.9),
        hardware=hardware,
        seed=0,
        batch_size=2,
        steps=10,
    )
    with torch.compiler.set_stance("force_eager"):
        wrapped.train_step(random_batch([0]))

    path = Checkpoints(tmp_path).save(
        snapshot_model(wrapped, ("a", "b")), wrapped.state_dict(), wrapped.rank_state_dict(), world=World()
    )
    keys = read(path).model.tensors.keys()
    assert keys == snapshot_model(trainer, ("a", "b")).tensors.keys()
    assert not any("module." in key or "_orig_mod." in key for key in keys)

    tiny_objective().generators.load_state_dict(read(path).model.weights_under("ema."))
