"""Detection of runs that diverge with finite losses, from the logged means of the losses."""

import re
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Literal

from cyclestyle.errors import CommandError, DivergedError, warn

# Bounds of adversarial losses by kind. Healthy runs stay below 3: least-squares and hinge losses are about 1 or less as
# long as scores are near their targets. The generator's bound is higher, since hinge scores may drift without harm.
BOUNDS = {"discriminator": 20.0, "gan": 100.0}
RATIO = {"discriminator": 10.0, "gan": 10.0, "cycle": 10.0, "identity": 10.0}  # to the median of earlier logs
OTHER_RATIO = 1000.0  # for terms of the user's own, whose scale and course are unknown
FLOOR = {"discriminator": 5.0, "gan": 5.0}  # smaller losses are never too large
LOGS_BEFORE = 10  # number of logs before a loss is compared with its median
LOGS_IN_A_ROW = 3  # number of consecutive logs above the median's multiple
HISTORY = 200  # number of newest logs in the median

_KIND = re.compile(r"loss/(.+?)(?:_(?:a|b|ab|ba))?")


class ExplosionWatch:
    """Checks the logged losses; reports once per process if a loss is far above the range of healthy training.

    A logged loss is a mean over the steps since the previous log. It is too large if it exceeds `BOUNDS`, which has
    bounds for the losses of discriminators and the adversarial losses of generators. It is also too large in the third
    consecutive log in which it exceeds a multiple of the median of its earlier values.

    Args:
        on_explosion: `warn` continues the run after the report; `stop` raises an error.
        note: function that records the report, a text of one line; called on all ranks.
        report: function that prints the report; called only if the run continues.

    Raises:
        CommandError: `on_explosion` has another value.
    """

    def __init__(
        self,
        on_explosion: Literal["warn", "stop"] = "warn",
        *,
        note: Callable[[str], object] = lambda text: None,
        report: Callable[[str], object] = warn,
    ) -> None:
        if on_explosion not in ("warn", "stop"):
            raise CommandError(f"trainer.on_explosion={on_explosion}: give warn or stop")
        self._stops, self._note, self._report = on_explosion == "stop", note, report
        self._history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._above: dict[str, int] = defaultdict(int)  # consecutive logs above the multiple of the median
        self._reported = False

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Check the losses among the logged `values`, which must be equal on all ranks.

        Args:
            step: step of the log, for the report.
            values: name -> logged value; values that are no losses are ignored.

        Raises:
            DivergedError: a loss is too large, and `on_explosion` is `stop`.
        """
        if self._reported:
            return
        found = [text for name, value in values.items() if (text := self._excess(name, value)) is not None]
        if not found:
            return
        self._reported = True
        losses = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        text = f"training has diverged with finite losses by step {step}: {losses}"
        self._note(text)
        remedy = (
            "a lower optimizer.lr or trainer.clip_norm=1 may help, from a checkpoint of an earlier step or with init="
        )
        if self._stops:
            raise DivergedError(f"{text}; {remedy}; trainer.on_explosion=warn continues such runs")
        self._report(f"{text}; {remedy}; trainer.on_explosion=stop ends such runs")

    def _excess(self, name: str, value: float) -> str | None:
        """Check one logged value, and add it to the history of `name` if it is in the healthy range.

        Returns:
            Description such as `loss/gan_ab 500 (healthy: below 100)` if the value is a loss and too large, else None.
        """
        match = _KIND.fullmatch(name)
        if match is None:
            return None
        kind, size, history = match[1], abs(value), self._history[name]
        if size > BOUNDS.get(kind, float("inf")):
            return f"{name} {value:.4g} (healthy: below {BOUNDS[kind]:g})"
        median = statistics.median(history) if len(history) >= LOGS_BEFORE else None
        if median and size > max(RATIO.get(kind, OTHER_RATIO) * median, FLOOR.get(kind, 0.0)):
            self._above[name] += 1
            return f"{name} {value:.4g} (before: {median:.4g})" if self._above[name] >= LOGS_IN_A_ROW else None
        self._above[name] = 0
        history.append(size)
        return None
