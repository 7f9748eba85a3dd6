"""Extractors of torch-fidelity as rulers; their weights cannot be fetched in tests."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.evaluation.features import set_features
from cyclestyle.evaluation.fidelity import SHORT_NAMES
from cyclestyle.evaluation.rulers import load_rulers
from tests.pictures import folder_of, picture

torch_fidelity = pytest.importorskip("torch_fidelity")

from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor  # noqa: E402


class MeanColour(FeatureExtractorBase):
    """Extractor whose features are the mean colour of an image, in 0..255, times a weight."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        self.weight = nn.Parameter(torch.tensor(2.0))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("colour", "other")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": "colour"}[metric]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        assert x.dtype == torch.uint8
        assert self.features_list == ["colour"]
        return (self.weight * x.float().mean(dim=(2, 3)),)


class FixedSize(MeanColour):
    """Extractor that sees images of 40 px only."""

    INPUT_IMAGE_SIZE = 40

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        assert x.shape[2:] == (40, 40)
        return super().forward(x)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty folder of `torch.hub`, on a machine whose web proxy does not answer."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub"


@pytest.fixture
def _registered() -> Iterator[None]:
    extractors = {"mean-colour": MeanColour, "fixed-size": FixedSize}
    for name, extractor in extractors.items():
        register_feature_extractor(name, extractor)
    yield
    for name in extractors:
        del FEATURE_EXTRACTORS_REGISTRY[name]


@pytest.mark.usefixtures("_registered")
def test_registered_extractor_measures_pooled_features(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "set", 3, width=45, height=33)
    (ruler,), missing = load_rulers(["fidelity:mean-colour"], size=64)
    assert (missing, ruler.protocol) == ([], "fidelity:mean-colour, 64 px, bicubic")
    assert (ruler.has_pooled, ruler.has_structure, ruler.has_style) == (True, False, False)
    pooled = set_features(files, ruler, parts=["pooled"]).pooled
    expected = [2 * np.asarray(picture(number, 45, 33).resize((64, 64))).mean(axis=(0, 1)) for number in range(3)]
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    with pytest.raises(CommandError, match="fidelity:mean-colour has no grams features"):
        set_features(files, ruler, parts=["grams"])


@pytest.mark.usefixtures("_registered")
def test_extractor_with_a_fixed_size_gets_images_of_this_size() -> None:
    (ruler,), _ = load_rulers(["fidelity:fixed-size"], size=128)
    assert ruler.protocol == "fidelity:fixed-size, 40 px, bicubic"
    assert ruler.measure(torch.zeros(1, 3, 9, 70, dtype=torch.uint8), ["pooled"]).pooled.tolist() == [[0, 0, 0]]


@pytest.mark.usefixtures("_registered")
def test_fingerprint_depends_on_the_weights() -> None:
    (first,), _ = load_rulers(["fidelity:mean-colour"], size=64)
    (second,), _ = load_rulers(["fidelity:fixed-size"], size=64)
    second.network.extractor.weight.data.fill_(3)
    again = type(second)("x", second.network, size=64, layers=second.layers)
    assert first.fingerprint == second.fingerprint != again.fingerprint


def test_inception_with_weights_in_the_hub_is_a_ruler(hub: Path, tmp_path: Path) -> None:
    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Keep the random weights."""

    (hub / "checkpoints").mkdir(parents=True)
    torch.save({}, tmp_path / "empty.pth")
    untrained = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=tmp_path / "empty.pth")
    torch.save(untrained.state_dict(), hub / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")

    (ruler,), _ = load_rulers(["fidelity:inception"], size=128)
    pixels = torch.from_numpy(np.array(picture(3, 299, 299))).permute(2, 0, 1)[None]
    assert ruler.protocol == "fidelity:inception, 299 px, bicubic"
    torch.testing.assert_close(ruler.measure(pixels, ["pooled"]).pooled, untrained(pixels)[0])


def test_short_names_are_registered() -> None:
    assert set(SHORT_NAMES.values()) <= set(FEATURE_EXTRACTORS_REGISTRY)


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_missing_weights_without_internet_are_an_error_of_one_line(hub: Path, name: str) -> None:
    lines: list[str] = []
    with pytest.raises(CommandError) as caught:
        load_rulers([f"fidelity:{name}"], size=128, missing="fetch", report=lines.append)
    assert lines == [f"fidelity:{name}: torch-fidelity fetches its weights into {hub}"]
    message = str(caught.value)
    assert message.startswith(f"cannot load fidelity:{name}: ")
    assert f"fill {hub} on a machine with internet, or leave fidelity:{name} out" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [*SHORT_NAMES, "vgg16", "clip-vit-l-14", "dinov2-vit-s-14"])
def test_missing_weights_are_not_fetched_without_permission(name: str) -> None:
    assert load_rulers([f"fidelity:{name}"], size=128, missing="skip") == ([], [f"fidelity:{name}"])
    with pytest.raises(CommandError, match=f"no weights of fidelity:{name} on this machine: missing=fetch"):
        load_rulers([f"fidelity:{name}"], size=128)


def test_weights_of_another_extractor_do_not_count(hub: Path) -> None:
    (hub / "checkpoints").mkdir(parents=True)
    (hub / "checkpoints" / f"clip-vit-l-14-336px-{'0' * 64}.pt").touch()
    assert load_rulers(["fidelity:clip-vit-l-14"], size=128, missing="skip") == ([], ["fidelity:clip-vit-l-14"])


def test_unknown_extractor_is_a_command_error() -> None:
    with pytest.raises(CommandError, match="no ruler fidelity:dino: torch-fidelity has fidelity: followed by one of "):
        load_rulers(["fidelity:dino"], size=128)
