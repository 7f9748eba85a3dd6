"""Parts such as a user might write, in which something happens at a certain moment."""

import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cyclestyle.data import UnpairedFolders, drawn_scenes
from cyclestyle.data.crop import Crop
from cyclestyle.monitor import Console
from cyclestyle.monitor.logger import Samples
from cyclestyle.objectives.adversarial import LeastSquares


def pause(where: str) -> None:
    """Say so in a file of this name in the current folder, and wait there for a file named `go`."""
    Path(where).touch()
    end = time.monotonic() + 60
    while not Path("go").exists() and time.monotonic() < end:
        time.sleep(0.005)


class ConsoleThatPauses(Console):
    """Pauses when it is shown the probe pictures of a certain step."""

    def __init__(
        self, folder: Path, *, domains: tuple[str, str], start: int = 0, total: int = 0, pause_at: int = 0
    ) -> None:
        super().__init__(folder, domains=domains, start=start, total=total)
        self._pause_at = pause_at

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        if step == self._pause_at:
            pause("sampling")


class ConsoleThatIsSlow(Console):
    """Has a line to say, and says it late: when another process has told its traceback, or after a second in vain."""

    def __init__(
        self, folder: Path, *, domains: tuple[str, str], start: int = 0, total: int = 0, said: str, slow_at: int
    ) -> None:
        super().__init__(folder, domains=domains, start=start, total=total)
        self._said, self._slow_at = Path(said), slow_at

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if step == self._slow_at:
            end = time.monotonic() + 1
            while "Traceback" not in self._said.read_text() and time.monotonic() < end:
                time.sleep(0.005)
        super().metrics(step, values)


class AdamThatPauses(torch.optim.Adam):
    """Pauses when its state is copied for a checkpoint."""

    def state_dict(self) -> dict:
        if self.state:
            pause("saving")
        return super().state_dict()


class At(LeastSquares):
    """The usual adversarial loss, with something that happens at a certain step of one rank."""

    def __init__(self, step: int = 4, rank: int = 1) -> None:
        # The generators' two terms ask for it in every step.
        self._left = 2 * step if int(os.environ.get("RANK", "0")) == rank else None

    def generator(self, scores: Tensor) -> Tensor:
        if self._left is not None:
            self._left -= 1
            if not self._left:
                self.happen()
        return super().generator(scores)

    def happen(self) -> None:
        raise NotImplementedError


class Fails(At):
    def happen(self) -> None:
        raise ZeroDivisionError("a part of one's own")


class DiesOnce(At):
    """Kills its process, unless it has done so in this folder before."""

    def happen(self) -> None:
        try:
            Path("died").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class IsNoNumber(At):
    """Makes the loss of one step NaN."""

    def __init__(self, step: int = 4, rank: int = 0, last: int = 4) -> None:
        super().__init__(step, rank)
        self._first, self._last, self._calls = step, last, 0

    def generator(self, scores: Tensor) -> Tensor:
        self._calls += 1
        step = (self._calls + 1) // 2
        loss = LeastSquares.generator(self, scores)
        return loss * float("nan") if self._left is not None and self._first <= step <= self._last else loss


class Devours(At):
    """Takes more and more memory, of which its process may have 200 MB more than it has."""

    def happen(self) -> None:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + 200_000_000, resource.RLIM_INFINITY))
        taken = []
        while True:
            taken.append(torch.ones(1_000_000))


class CropThatHangs(Crop):
    """Pauses for good at the 21st picture of its process; of several ranks, in the second only."""

    crops = 0

    def random(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        self.crops += 1
        if self.crops > 20 and os.environ.get("RANK", "1") == "1":
            Path("reader").write_text(str(os.getpid()))
            pause("reading")
        return super().random(image, random)


class CropThatLeaves(CropThatHangs):
    """Ends its process there, as if all were well."""

    def random(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        self.crops += 1
        if self.crops > 20:
            os._exit(0)
        return Crop.random(self, image, random)


def scenes_that_hang(**scenes: object) -> UnpairedFolders:
    """The drawn landscapes on storage that no longer answers after a while."""
    return _cropped_by(CropThatHangs, drawn_scenes(**scenes))  # type: ignore[arg-type]


def scenes_that_leave(**scenes: object) -> UnpairedFolders:
    """The drawn landscapes with a decoder that ends the process after a while."""
    return _cropped_by(CropThatLeaves, drawn_scenes(**scenes))  # type: ignore[arg-type]


def _cropped_by(kind: type[Crop], data: UnpairedFolders) -> UnpairedFolders:
    crop = data.crop
    data.crop = kind(resize=crop.resize, load_size=crop.load_size, crop_size=crop.crop_size, flip=crop.flip)
    return data
