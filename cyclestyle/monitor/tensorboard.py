"""Logger that writes curves of all metrics, samples, and a description of the run, for TensorBoard."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped, unused-ignore]

from cyclestyle.cli.keys import flat, may_change
from cyclestyle.monitor.logger import Samples
from cyclestyle.monitor.sample_grid import column_titles, grid


class TensorBoard:
    """Writes TensorBoard events into the run folder; curves continue after a resume.

    Each start adds texts: command line and environment, read from starts.json, and the config. The recipe (config
    values that determine a run's weights and losses) is written as hyper-parameters. TensorBoard's table of
    hyper-parameters shows the last value of every curve beside them.

    If the disk is full, `metrics` and `pictures` raise OSError, and the next call of either begins a new file.

    Args:
        folder: run folder.
        domains: names of domains a and b.
        start: number of steps done before this process started. TensorBoard hides the events that earlier processes
            wrote for step `start` and later steps.
        total: step at which training ends.
        config: resolved config of the run as nested mappings; None writes neither config nor hyper-parameters.
    """

    def __init__(
        self,
        folder: Path,
        *,
        domains: tuple[str, str],
        start: int = 0,
        total: int = 0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.domains, self._folder, self._config = domains, folder, config
        self._step, self._total = start, total
        self._writer: Any = None
        # The writer's thread passes its error to the next call; printing its traceback would only repeat the error.
        self._hook = threading.excepthook
        self._open(purge_step=start)
        threading.excepthook = self._mute_writer_thread
        self._describe_run(start)

    def on_step(self, step: int) -> None:
        """Store the number of finished steps; `metrics` adds the points of the curves."""
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
        first, second = self.domains
        try:
            writer = self._open()
            for samples, source, target in ((a, first, second), (b, second, first)):
                sheet = grid(samples, column_titles(source, target))
                writer.add_image(f"{source}2{target}", np.asarray(sheet), step, dataformats="HWC")
            writer.flush()
        except OSError:
            self._writer = None
            raise

    def close(self) -> None:
        try:
            if self._writer is not None:
                if self._config is not None and self._step >= self._total:  # the run is complete
                    _, _, end = _hyper_parameters(self._config)
                    self._writer.file_writer.add_summary(end, self._step)
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _describe_run(self, step: int) -> None:
        """Write the texts and the hyper-parameters of this start, which was at `step`."""
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
    """Format text as a code block in Markdown: by indentation, which no content of the text can end."""
    return "\n".join(f"    {line}" for line in _encodable(text).splitlines())


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _encodable(" ".join(text.split())).replace("|", "\\|")


def _encodable(text: str) -> str:
    """Replace surrogates, which file names with invalid bytes contain and TensorBoard cannot store, by `?`."""
    return text.encode(errors="replace").decode()


def _hyper_parameters(config: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Summaries of the recipe in `config`: of the experiment, of the start and of the end of a run."""
    from torch.utils.tensorboard.summary import hparams

    recipe = {key: value for key, value in flat(config).items() if not may_change(key)}
    values = {key: value if isinstance(value, int | float | None) else _plain(value) for key, value in recipe.items()}
    return hparams(values, {})  # type: ignore[no-untyped-call, no-any-return]


def _plain(value: object) -> str:
    return _encodable(value if isinstance(value, str) else json.dumps(value, default=str))
