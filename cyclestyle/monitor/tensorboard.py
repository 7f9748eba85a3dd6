"""Logger that writes curves of all metrics, samples, and a description of the run, for TensorBoard."""

import io
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]
from PIL import Image

from cyclestyle.cli.keys import flat, may_change
from cyclestyle.errors import CommandError
from cyclestyle.monitor.disk import Plan
from cyclestyle.monitor.logger import Samples
from cyclestyle.monitor.sample_grid import column_titles, encoded_grid

# Bytes of one point of a curve; measured: 53 on average.
_POINT_BYTES = 53


class TensorBoard:
    """Writes TensorBoard events into the run folder; curves continue after a resume.

    Each start or resume of the run adds texts: command line and environment, read from starts.json, and the config. The
    recipe (config values that determine a run's weights and losses) is written as hyper-parameters. TensorBoard's table
    of hyper-parameters shows the last value of every curve beside them.

    If the disk is full, `metrics` and `pictures` raise OSError, and the next call of either begins a new file.

    Args:
        folder: run folder.
        domains: names of domains a and b.
        start: number of steps done before this process started.
        total: step at which training ends.
        log_from: first step that this process may log: `start`, or `start` + 1 if an earlier process has logged
            `start` already; None for `start`. TensorBoard hides events of earlier processes from this step on.
        config: resolved config of the run as nested mappings; None writes neither config nor hyper-parameters.
        images: number of equal parts into which the run is divided. In each part, only the first samples are written;
            those of the run's last step are written too. None writes all samples.

    Raises:
        CommandError: `images` is below 1.
    """

    def __init__(
        self,
        folder: Path,
        *,
        domains: tuple[str, str],
        start: int = 0,
        total: int = 0,
        log_from: int | None = None,
        config: Mapping[str, Any] | None = None,
        images: int | None = 100,
    ) -> None:
        if images is not None and images < 1:
            raise CommandError(
                f"logger.tensorboard.images={images}: give 1 or more, or null for the samples of all steps"
            )
        self._images = images
        self._part = -1 if not start else self._part_of((start if log_from is None else log_from) - 1, total)
        self.domains, self._folder, self._config = domains, folder, config
        self._step, self._total = start, total
        self._writer: Any = None
        # The writer's thread passes its error to the next call; printing its traceback would only repeat the error.
        self._hook = threading.excepthook
        self._open(purge_step=start if log_from is None else log_from)
        threading.excepthook = self._mute_writer_thread
        self._describe_run(start)

    def on_step(self, step: int) -> None:
        """Store the number of finished steps, by which `close` recognizes that the run is complete."""
        self._step = step

    def metrics(self, step: int, values: dict[str, float]) -> None:
        try:
            writer = self._open()
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()  # a killed run loses no point, and a full disk is noticed here
        except OSError:
            self._writer = None
            raise

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        part = self._part_of(step, self._total)
        if part == self._part and step < self._total:
            return
        self._part = part
        first, second = self.domains
        try:
            writer = self._open()
            for samples, source, target in ((a, first, second), (b, second, first)):
                jpeg = encoded_grid(samples, column_titles(source, target))
                writer.file_writer.add_summary(_image_summary(f"{source}2{target}", jpeg), step)
            writer.flush()
        except OSError:
            self._writer = None
            raise

    def disk_use(self, plan: Plan) -> dict[str, int]:
        """Estimate how many bytes this process will add to the event files, under the key `TensorBoard`."""
        sampled = [step for step in plan.sampled if step >= plan.start]
        parts = {step if self._images is None else self._part_of(step, plan.total) for step in sampled}
        return {"TensorBoard": len(parts) * plan.grid_bytes + plan.coming_logs * plan.values * _POINT_BYTES}

    def close(self) -> None:
        try:
            if self._writer is not None:
                if self._config is not None and self._step >= self._total:  # the run is complete
                    _, _, end = _hyper_parameters(self._config)
                    # Stored one step later, so that it is hidden if the run is extended.
                    self._writer.file_writer.add_summary(end, self._step + 1)
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _part_of(self, step: int, total: int) -> int:
        """Divide the run into `images` equal parts; return the number, from 0, of the part that contains `step`.

        Return `step` itself if `images` is None.
        """
        return step if self._images is None or total < 1 else step * self._images // total

    def _describe_run(self, step: int) -> None:
        """Write the texts and the hyper-parameters of this start; `step` is the number of steps done before it."""
        writer = self._open()
        for name, text in {**_start_texts(self._folder / "starts.json"), **_config_text(self._config)}.items():
            writer.add_text(f"run/{name}", text, step)
        if self._config is not None:
            # The list of metrics is left out: TensorBoard would use that of one run for all runs. It lists all curves.
            _, start, _ = _hyper_parameters(self._config)
            writer.file_writer.add_summary(start, step)
        writer.flush()

    def _open(self, *, purge_step: int | None = None) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # imported late: it takes a second

            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        return self._writer

    def _mute_writer_thread(self, args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard"):
            self._hook(args)


def _image_summary(name: str, jpeg: bytes) -> Any:
    """Summary of an image that is already encoded; `add_image` would encode it as PNG, which is four times as large."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped, unused-ignore]

    with Image.open(io.BytesIO(jpeg)) as image:
        width, height = image.size
    image_value = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=jpeg)
    return Summary(value=[Summary.Value(tag=name, image=image_value)])


def _start_texts(path: Path) -> dict[str, str]:
    """Read the last entry of starts.json; return Markdown of the command and the environment, empty if unreadable."""
    try:
        entry = dict(json.loads(path.read_text(encoding="utf-8"))[-1])
        command = str(entry.pop("command"))
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return {}
    rows = [f"| {key} | {_cell(value)} |" for key, value in flat(entry).items() if value not in (None, [])]
    return {"command": _code(command), "environment": "\n".join(["| | |", "|---|---|", *rows])}


def _config_text(config: Mapping[str, Any] | None) -> dict[str, str]:
    if config is None:
        return {}
    return {
        "config": _code(
            yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True)
        )
    }


def _code(text: str) -> str:
    """Format text as an indented code block in Markdown.

    A fenced block is unsuitable, because a fence inside the text would end it.
    """
    return "\n".join(f"    {line}" for line in _encodable(text).splitlines())


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _encodable(" ".join(text.split())).replace("|", "\\|")


def _encodable(text: str) -> str:
    """Replace surrogates, which file names with invalid bytes contain and TensorBoard cannot store, by `?`."""
    return text.encode(errors="replace").decode()


def _hyper_parameters(config: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return TensorBoard's hyper-parameter summaries of the recipe in `config`: experiment, run start, run end."""
    from torch.utils.tensorboard.summary import hparams

    recipe = {key: value for key, value in flat(config).items() if not may_change(key)}
    values = {key: value if isinstance(value, int | float | None) else _plain(value) for key, value in recipe.items()}
    return hparams(values, {})  # type: ignore[no-untyped-call, no-any-return]


def _plain(value: object) -> str:
    return _encodable(value if isinstance(value, str) else json.dumps(value, default=str))
