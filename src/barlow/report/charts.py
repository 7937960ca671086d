"""Figures as inline SVG. Colours are CSS classes, so that one figure serves light, dark and print."""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from barlow.numbers import number
from barlow.report.markup import join, tag

WIDTH, HEIGHT = 460, 250  # user units; the figure scales with its column
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 36
MOST_POINTS = 300  # per line: more than a figure of this width can show

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One curve of a line chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    """which of the page's series colours"""
    dashed: bool = False


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that cover [low, high]."""
    span = high - low if high > low else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Marks that cover [low, high]: powers of ten; with 2 and 5 below two powers; round numbers below a factor of 5."""
    even = [mark for mark in ticks(low, high) if mark > 0]
    if high / low < 5 and even[0] <= low and len(even) > 1:
        return even
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if high / low > 100:
        return [10.0**i for i in range(first, last + 1)]
    fine = [factor * 10.0**i for i in range(first, last + 2) for factor in (1, 2, 5)]
    start = max(i for i, mark in enumerate(fine) if mark <= low * (1 + 1e-9))
    stop = min(i for i, mark in enumerate(fine) if mark >= high * (1 - 1e-9))
    return fine[start : max(stop, start + 1) + 1]


@dataclass(frozen=True)
class Axis:
    """Data to user units along one direction."""

    marks: Sequence[float]
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (self._scale(v) for v in (self.marks[0], self.marks[-1], value))
        return round(self.start + (at - low) / (high - low) * (self.stop - self.start), 1)

    def _scale(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value


def line_chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, summary: str, log_x: bool = False, log_y: bool = False
) -> Markup:
    """Curves over a common x. `summary` says in words what there is to see, for those who do not see it.

    Values that are not finite (and not positive, on a log axis) are left out.
    """
    curves = [_thin(line, log_x, log_y) for line in lines]
    curves = [line for line in curves if line.x]
    if not curves:
        return tag("p", "No finite values to draw.", class_="absent")
    xs, ys = ([v for line in curves for v in getattr(line, axis)] for axis in "xy")
    across = Axis(_marks(min(xs), max(xs), log_x, 6), LEFT, WIDTH - RIGHT, log_x)
    up = Axis(_marks(min(ys), max(ys), log_y, 4), HEIGHT - BOTTOM, TOP, log_y)
    values = [{"n": line.name, "c": line.colour, "x": list(line.x), "y": list(line.y)} for line in curves]
    return tag(
        "svg",
        _frame(across, up, x_label, y_label),
        [_curve(line, across, up) for line in curves],
        tag("line", class_="cursor", y1=TOP, y2=HEIGHT - BOTTOM, visibility="hidden"),
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex="0",
        aria_label=summary,
        data_lines=json.dumps(values, separators=(",", ":"), allow_nan=False),
        data_x=json.dumps([across.marks[0], across.marks[-1], across.start, across.stop, log_x]),
        data_x_label=x_label,
    )


def _marks(low: float, high: float, log: bool, wanted: int) -> list[float]:
    return log_ticks(low, high) if log else ticks(low, high, wanted)


def _thin(line: Line, log_x: bool, log_y: bool) -> Line:
    """Finite points only, and the mean of each run of neighbours where there are more than can be shown."""
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    valid = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log_x)) & ((y > 0) | (not log_y))
    x, y = x[valid], y[valid]
    if len(x) > MOST_POINTS:
        x, y = (np.array([part.mean() for part in np.array_split(v, MOST_POINTS)]) for v in (x, y))
    return Line(line.name, _short(x), _short(y), line.colour, line.dashed)


def _short(values: Floats) -> list[float]:
    return [float(f"{v:.5g}") for v in values]


def _frame(across: Axis, up: Axis, x_label: str, y_label: str) -> Markup:
    base = HEIGHT - BOTTOM
    rows = [
        join(
            [
                tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=up(mark), y2=up(mark)),
                tag("text", number(mark), x=LEFT - 7, y=up(mark) + 3.5, text_anchor="end"),
            ]
        )
        for mark in up.marks
    ]
    columns = [tag("text", number(mark), x=across(mark), y=base + 16, text_anchor="middle") for mark in across.marks]
    return tag(
        "g",
        rows,
        columns,
        tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base),
        tag("text", x_label, class_="label", x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end"),
        tag("title", y_label),
    )


def _curve(line: Line, across: Axis, up: Axis) -> Markup:
    points = [f"{across(x)} {up(y)}" for x, y in zip(line.x, line.y, strict=True)]
    look = f"s{line.colour}" + (" dashed" if line.dashed else "")
    if len(points) == 1:
        x, y = points[0].split()
        return tag("circle", cx=x, cy=y, r=3.5, class_=f"dot {look}")
    return tag("path", d="M" + "L".join(points), class_=f"curve {look}")


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    name: str
    value: float
    low: float
    high: float
    mark: str
    """CSS class: s0, s1, ... for runs, pixels or random for the baselines"""


def forest(rows: Sequence[tuple[str, Sequence[Estimate]]], *, summary: str, percent: bool) -> Markup:
    """Estimates with their intervals on one scale, a block of marks per row: who is ahead, and is it sure."""
    scale = 100.0 if percent else 1.0
    values = [v * scale for _, estimates in rows for e in estimates for v in (e.low, e.high)]
    marks = ticks(min(values), max(values), 6)
    across = Axis(marks, 10, WIDTH - 10)
    heights = [26 + 14 * len(estimates) for _, estimates in rows]
    bottom = sum(heights) + 6
    grid = [
        join(
            [
                tag("line", class_="grid", x1=across(m), x2=across(m), y1=0, y2=bottom),
                tag("text", number(m), x=across(m), y=bottom + 16, text_anchor="middle"),
            ]
        )
        for m in marks
    ]
    tops = np.cumsum([0, *heights[:-1]])
    blocks = [_block(name, es, float(top), across, scale) for (name, es), top in zip(rows, tops, strict=True)]
    return tag(
        "svg", grid, blocks, class_="forest", viewBox=f"0 0 {WIDTH} {bottom + 22}", role="img", aria_label=summary
    )


def _block(name: str, estimates: Sequence[Estimate], top: float, across: Axis, scale: float) -> Markup:
    parts = [tag("text", name, class_="rowname", x=0, y=top + 17)]
    for place, e in enumerate(estimates):
        y = top + 29 + 14 * place
        low, value, high = (across(v * scale) for v in (e.low, e.value, e.high))
        parts += [
            tag("line", class_=f"whisker {e.mark}", x1=low, x2=high, y1=y, y2=y),
            tag(
                "circle",
                tag("title", f"{e.name}: {number(e.value * scale)}"),
                class_=f"dot {e.mark}",
                cx=value,
                cy=y,
                r=4,
            ),
        ]
    return join(parts)


def heat_map(matrix: npt.ArrayLike, *, summary: str) -> Markup:
    """Values in [-1, 1] as a picture: blue below zero, paper at zero, red above; the values go with it for hovering."""
    values = np.nan_to_num(np.asarray(matrix, np.float64)).clip(-1, 1)
    levels = np.round(values * 127).astype(np.int8)
    return tag(
        "figure",
        tag("img", src=_picture(values), alt=summary, class_="light"),
        tag("img", src=_picture(values, dark=True), alt="", class_="dark"),
        class_="heat",
        tabindex="0",
        role="group",
        aria_label="Arrow keys tell its values",
        data_side=len(values),
        data_values=base64.b64encode(levels.tobytes()).decode(),
    )


def _picture(values: Floats, dark: bool = False) -> str:
    """A PNG data address. Half the range gets two thirds of the colour: small correlations are what matters."""
    paper = np.array([22, 24, 28.0] if dark else [250, 249, 246.0])
    red, blue = (
        np.array(c, float) for c in (([255, 138, 92], [92, 164, 255]) if dark else ([168, 38, 18], [24, 78, 150]))
    )
    strength = (np.abs(values) ** 0.6)[..., None]
    pixels = paper + strength * (np.where(values[..., None] > 0, red, blue) - paper)
    stream = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(stream, "PNG", optimize=True)
    return data_address(stream.getvalue(), "image/png")


def data_address(content: bytes, kind: str) -> str:
    """A file as an address inside the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
