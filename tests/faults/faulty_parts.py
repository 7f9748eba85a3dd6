"""Components that tests name in configs: they pause, fail, hang or exit at a given moment."""

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


def pause(name: str) -> None:
    """Create a file called `name` in the current folder, and wait up to a minute until a file called `go` exists."""
    Path(name).touch()
    end = time.monotonic() + 60
    while not Path("go").exists() and time.monotonic() < end:
        time.sleep(0.005)


class PausingConsole(Console):
    """Console logger that pauses when it receives the samples of a given step."""

    def __init__(
        self, folder: Path, *, domains: tuple[str, str], start: int = 0, total: int = 0, pause_at: int = 0
    ) -> None:
        super().__init__(folder, domains=domains, start=start, total=total)
        self._pause_at = pause_at

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        if step == self._pause_at:
            pause("sampling")


class SlowConsole(Console):
    """Console logger that prints the line of one step only after a traceback is in the output, or after a second."""

    def __init__(
        self, folder: Path, *, domains: tuple[str, str], start: int = 0, total: int = 0, output: str, slow_at: int
    ) -> None:
        super().__init__(folder, domains=domains, start=start, total=total)
        self._output, self._slow_at = Path(output), slow_at

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if step == self._slow_at:
            end = time.monotonic() + 1
            while "Traceback" not in self._output.read_text() and time.monotonic() < end:
                time.sleep(0.005)
        super().metrics(step, values)


class PausingAdam(torch.optim.Adam):
    """Adam optimizer that pauses when its state is copied for a checkpoint, after the first step."""

    def state_dict(self) -> dict:
        if self.state:
            pause("saving")
        return super().state_dict()


class FaultAtStep(LeastSquares):
    """Least-squares loss that calls its method `fault` at one step on one rank.

    Args:
        step: step with the fault, counted from 1.
        rank: rank with the fault.
    """

    def __init__(self, step: int = 4, rank: int = 1) -> None:
        # The generators' two terms call the loss twice a step.
        self._calls_left = 2 * step if int(os.environ.get("RANK", "0")) == rank else None

    def generator(self, scores: Tensor) -> Tensor:
        if self._calls_left is not None:
            self._calls_left -= 1
            if not self._calls_left:
                self.fault()
        return super().generator(scores)

    def fault(self) -> None:
        raise NotImplementedError


class RaisesError(FaultAtStep):
    def fault(self) -> None:
        raise ZeroDivisionError("a custom component")


class KillsOnce(FaultAtStep):
    """Loss that kills its own process; it does so only once per working directory."""

    def fault(self) -> None:
        try:
            Path("died").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class NaNLoss(FaultAtStep):
    """Loss that is NaN from step `step` to step `last`."""

    def __init__(self, step: int = 4, rank: int = 0, last: int = 4) -> None:
        super().__init__(step, rank)
        self._first, self._last, self._calls = step, last, 0

    def generator(self, scores: Tensor) -> Tensor:
        self._calls += 1
        step = (self._calls + 1) // 2
        loss = LeastSquares.generator(self, scores)
        return loss * float("nan") if self._calls_left is not None and self._first <= step <= self._last else loss


class ExhaustsMemory(FaultAtStep):
    """Loss that allocates memory until this fails, after limiting its process to 200 MB more than it uses."""

    def fault(self) -> None:
        present = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (present + 200_000_000, resource.RLIM_INFINITY))
        tensors = []
        while True:
            tensors.append(torch.ones(1_000_000))


class HangingCrop(Crop):
    """Crop that hangs at the 21st image of its process; with several ranks, it hangs on rank 1 only."""

    crops = 0

    def random(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        self.crops += 1
        if self.crops > 20 and os.environ.get("RANK", "1") == "1":
            Path("reader").write_text(str(os.getpid()))
            pause("reading")
        return super().random(image, random)


class ExitingCrop(HangingCrop):
    """Crop that ends its process with exit code 0 at the 21st image."""

    def random(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        self.crops += 1
        if self.crops > 20:
            os._exit(0)
        return Crop.random(self, image, random)


def hanging_scenes(**scenes: object) -> UnpairedFolders:
    """Synthetic landscapes whose loading hangs after 20 images, as on broken storage."""
    return _cropped_by(HangingCrop, drawn_scenes(**scenes))  # type: ignore[arg-type]


def exiting_scenes(**scenes: object) -> UnpairedFolders:
    """Synthetic landscapes whose loading ends the process after 20 images."""
    return _cropped_by(ExitingCrop, drawn_scenes(**scenes))  # type: ignore[arg-type]


def _cropped_by(kind: type[Crop], data: UnpairedFolders) -> UnpairedFolders:
    crop = data.crop
    data.crop = kind(resize=crop.resize, load_size=crop.load_size, crop_size=crop.crop_size, flip=crop.flip)
    return data
