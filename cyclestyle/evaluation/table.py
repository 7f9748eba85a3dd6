"""Text tables of scores for people: one block for each protocol, one line for each score."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cyclestyle.evaluation.report import DirectionReport, Report, Row, Score

FOOTER = (
    "brackets: 95 % intervals; lower is better, except for PSNR, SSIM (higher) and the nearest real image (not below "
    "its floor);\ndocs/quality.md explains the scores"
)
TITLES: dict[Row, str] = {
    "translated": "this model",
    "untouched": "photo unchanged",
    "mapped": "best global colour map",
    "floor": "floor: real images",
}
LABELS = {
    "kid": "KID",
    "fid": "FID",
    "style": "style distance",
    "structure": "structure distance to the photo",
    "copying": "distance to the nearest real image",
    "lpips": "LPIPS to the photo",
    "colours": "colour distance in Lab",
    "content_ssim": "SSIM to the photo: content kept",
    "reconstruction_psnr": "PSNR in dB, there and back",
    "reconstruction_ssim": "SSIM, there and back",
    "truth_psnr": "PSNR in dB to the truth",
    "truth_ssim": "SSIM to the truth",
    "truth_l1": "L1 to the truth, 0 to 255",
    "truth_lpips": "LPIPS to the truth",
}


class Protocol(NamedTuple):
    """Everything that two numbers must have in common to be compared in one table."""

    kind: str  # `features`, `LPIPS` or `pixels`
    ruler: str | None
    size: int | None
    resize: str | None

    @classmethod
    def of(cls, score: Score) -> "Protocol":
        kind = "pixels" if score.ruler is None else "LPIPS" if "lpips" in score.name else "features"
        return cls(kind, score.ruler, score.size, score.resize)

    def __str__(self) -> str:
        size = "images as stored" if self.size is None else f"images resized to {self.size} px, {self.resize}"
        return ", ".join(filter(None, (self.kind, self.ruler, size)))


def table(report: Report) -> str:
    """Format all scores of a model, direction by direction."""
    parts = [part for direction in report.directions for part in (*_direction(direction), *_curve(direction))]
    return "\n\n".join([*parts, FOOTER])


def grouped(scores: Sequence[Score]) -> dict[Protocol, dict[str, list[Score]]]:
    """Return the scores by protocol, then by name, in the order in which they first appear."""
    groups: dict[Protocol, dict[str, list[Score]]] = {}
    for score in scores:
        groups.setdefault(Protocol.of(score), {}).setdefault(score.name, []).append(score)
    return groups


def number(score: Score) -> str:
    """Format a score, with its interval if it has one: `0.041 [0.036, 0.047]`."""
    if not math.isfinite(score.value):
        return "infinite"
    if score.low is None or score.high is None:
        return f"{score.value:.{_digits(score.value, 4)}f}"
    digits = _digits(score.high - score.low, 2) if score.high > score.low else _digits(score.value, 4)
    return f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"


def lines(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table: a line with the title, one with the heads of the columns, then one line per row."""
    whole = [["", *heads], *rows]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    aligned = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in whole)
    return "\n".join([title, *(f"  {row}".rstrip() for row in aligned)])


def _direction(report: DirectionReport) -> Iterator[str]:
    strength = "" if report.strength == 1 else f", strength {report.strength:g}"
    yield "\n".join([f"{report.direction}{strength}", *(f"  {note}" for note in report.notes)])
    for protocol, by_name in grouped(report.scores).items():
        rows = [row for row in TITLES if any(score.row == row for scores in by_name.values() for score in scores)]
        body = []
        for name, scores in by_name.items():
            cells = {score.row: number(score) for score in scores}
            body.append([LABELS[name], *(cells.get(row, "-") for row in rows), _counts(scores)])
        yield lines(str(protocol), [*(TITLES[row] for row in rows), "n"], body)


def _curve(report: DirectionReport) -> Iterator[str]:
    """Yield one table for each protocol, with a line for each strength."""
    protocols = grouped([score for point in report.curve for score in point.scores])
    for protocol, by_name in protocols.items():
        body = []
        for point in report.curve:
            own = grouped(point.scores)[protocol]
            first = next(iter(own.values()))[0]
            body.append([f"strength {point.strength:g}", *(number(own[name][0]) for name in by_name), _count(first)])
        yield lines(f"{report.direction}, {protocol}", [*(LABELS[name] for name in by_name), "n"], body)


def _counts(scores: Sequence[Score]) -> str:
    """Format the numbers of images of one line of a table: `40 / 50, floor 25 / 25`.

    `40 / 50` are 40 scored images that are compared with 50 others. A score follows by name only if its numbers differ
    from those of the first score.
    """
    first, *others = scores
    different = [
        f"{TITLES[score.row].partition(':')[0]} {_count(score)}" for score in others if _count(score) != _count(first)
    ]
    return ", ".join([_count(first), *different])


def _count(score: Score) -> str:
    return f"{score.n}" if score.reference is None else f"{score.n} / {score.reference}"


def _digits(value: float, significant: int) -> int:
    """Return the number of decimals that shows `value` with this number of significant digits, from 0 to 6."""
    if value == 0:
        return 3
    return min(6, max(0, significant - 1 - math.floor(math.log10(abs(value)))))
