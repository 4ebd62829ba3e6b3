"""Where the marks of a chart go: scores become places, and `charts.html.jinja` draws them as inline SVG.

Places across are per cent of the chart's width, so that a chart is as wide as the page and its texts stay as large as
all others, on a telephone too; places down are pixels. Colours are CSS variables of the page and follow dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple


#: Shapes around (0, 0), as paths of SVG: what tells series apart, beside their colours.
MARKERS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",  # a disc
    "M0 -6.5L6.5 0L0 6.5L-6.5 0z",  # a diamond
    "M-4.5 -4.5h9v9h-9z",  # a square
    "M0 -6L6 5H-6z",  # a triangle
    "M0 6L6 -5H-6z",  # one that points down
    "M-6 -2H-2V-6H2V-2H6V2H2V6H-2V2H-6z",  # a cross
    "M-6.5 -3.5h13v7h-13z",  # a bar that lies
    "M-3.5 -6.5h7v13h-7z",  # one that stands
)
# Steps of an axis, of which the first is taken that needs at most so many.
_STEPS, _MOST_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2), 5
# Of a line chart: its height and what is left free above and below, in pixels, and on either side, in per cent: labels
# of the axis stand at the left.
_HEIGHT, _TOP, _BOTTOM, _LEFT, _RIGHT = 260, 18, 28, 14, 4
# What is left free on either side of rows of marks, in per cent, so that none is cut.
_MARGIN = 3


class Score(NamedTuple):
    """A score in [0, 1]: its mean over seeds, and its standard deviation, None for one seed."""

    mean: float
    std: float | None = None

    def range(self) -> tuple[float, float] | None:
        """From one standard deviation below the mean to one above, within [0, 1]; None for one seed."""
        return None if self.std is None else (max(0.0, self.mean - self.std), min(1.0, self.mean + self.std))


class Axis(NamedTuple):
    """A part of [0, 1], between round numbers."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Collection[float]) -> Axis:
        """The smallest that has all values, at least one, in it; each end is a whole number of steps."""
        for step in _STEPS:
            # Not below what rounding makes of a whole number of steps.
            first, last = math.floor(min(values) / step + 1e-9), math.ceil(max(values) / step - 1e-9)
            last += first == last
            if last - first <= _MOST_STEPS:
                break
        last = min(last, round(1 / step))
        return cls(min(first, last - 1) * step, last * step, step)

    @property
    def ticks(self) -> list[float]:
        """Its steps, both ends among them."""
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]

    def share(self, value: float) -> float:
        """How far along a value lies: 0 at the low end and 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def bar_chart(bars: Sequence[dict[str, Any]], reference: float | None) -> dict[str, Any]:
    """Bars from 0 to 1, one below the other, each under its title.

    Args:
        bars: Dicts of `title`; `score`, a `Score`; and `kind`, what decides the colour.
        reference: A score that is marked on each bar, if any.

    Returns:
        `rows`, each bar with `width` and `range` in per cent; and `reference` in per cent.
    """
    rows = []
    for bar in bars:
        ends = bar["score"].range()
        ends = None if ends is None else [_rounded(100 * end) for end in ends]
        rows.append({**bar, "width": _rounded(100 * bar["score"].mean), "range": ends})
    return {"rows": rows, "reference": None if reference is None else _rounded(100 * reference)}


def mark_chart(titles: Sequence[str], series: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Rows of marks, one below the other, each under its title: scores that are compared by row.

    Args:
        titles: Of the R rows.
        series: What decides the colour → R scores in [0, 1].

    Returns:
        `rows`, dicts of `title` and `marks`, in the order of the series: dicts of `kind`, `shape` and `place` in per
        cent; and `ticks`, pairs of a score as text and its place.
    """
    axis = Axis.around([value for values in series.values() for value in values])

    def place(value: float) -> float:
        return _rounded(_MARGIN + (100 - 2 * _MARGIN) * axis.share(value))

    rows = [
        {
            "title": title,
            "marks": [
                {"kind": kind, "shape": shape, "place": place(values[row])}
                for (kind, values), shape in zip(series.items(), MARKERS, strict=False)
            ],
        }
        for row, title in enumerate(titles)
    ]
    return {"rows": rows, "ticks": [(_tick(tick), place(tick)) for tick in axis.ticks]}


def line_chart(lines: Sequence[Mapping[int | None, Score]]) -> dict[str, Any]:
    """Scores against sizes, on a logarithmic axis.

    Args:
        lines: Of each line, at most as many as there are `MARKERS`: size → `Score`, or None → that of a level line.

    Returns:
        `height` in pixels; `lines`, each with `number`, `shape`, `points` (`x` in per cent, `y` and `range` in
        pixels) and `level` in pixels, None where there is none; `sizes` and `ticks`, pairs of a text and its place.
    """
    scores = [score for line in lines for score in line.values()]
    axis = Axis.around([value for score in scores for value in score.range() or (score.mean,)])
    sizes = sorted({size for line in lines for size in line if size is not None})

    def down(value: float) -> float:
        return _rounded(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - axis.share(value)))

    def across(size: int) -> float:
        width = math.log(sizes[-1] / sizes[0])
        share = math.log(size / sizes[0]) / width if width else 0.5
        return _rounded(_LEFT + (100 - _LEFT - _RIGHT) * share)

    drawn = []
    for number, (line, shape) in enumerate(zip(lines, MARKERS, strict=False)):
        sized = sorted((size, score) for size, score in line.items() if size is not None)
        points = [
            {"x": across(size), "y": down(score.mean), "range": [down(end) for end in score.range() or ()]}
            for size, score in sized
        ]
        level = down(line[None].mean) if None in line else None
        drawn.append({"number": number, "shape": shape, "points": points, "level": level})
    return {
        "height": _HEIGHT,
        "lines": drawn,
        "sizes": [(f"{size:,}", across(size)) for size in sizes],
        "ticks": [(_tick(tick), down(tick)) for tick in axis.ticks],
    }


def _tick(value: float) -> str:
    return f"{value:.2f}"


def _rounded(place: float) -> float:
    """Finer than a screen, and short in the file."""
    return round(place, 2)
