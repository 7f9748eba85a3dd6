"""A logger as a client of a tracking service would be: it sends scalars and pictures to a run of the service."""

import json
from pathlib import Path

from PIL import Image

from cyclestyle.images.tensors import uint8_to_pil
from cyclestyle.monitor.logger import Samples


class Service:
    """Writes to a local folder in place of a server."""

    def __init__(self, folder: Path, config: dict[str, object], *, project: str, start: int = 0) -> None:
        self.path = folder / "service" / project
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(config))
        self.stream = (self.path / "scalars.jsonl").open("a")

    def on_step(self, step: int) -> None:
        """Do nothing: the service shows logged steps only."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.stream.write(json.dumps({"step": step, **values}) + "\n")

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        image: Image.Image = uint8_to_pil(a.translated[0])
        image.save(self.path / f"{step}.png")

    def close(self) -> None:
        self.stream.close()
