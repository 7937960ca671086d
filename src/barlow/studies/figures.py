"""A study's figure: an SVG file that stands alone, drawn from mean and standard deviation over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from barlow.numbers import number
from barlow.report.charts import Axis, log_ticks, ticks
from barlow.report.markup import tag
from barlow.studies.claims import Group
from barlow.studies.metrics import METRICS
from barlow.studies.results import StudyResults, summarise
from barlow.studies.study import Figure

WIDTH = 720
LEFT, RIGHT, TOP, BOTTOM, GAP = 58, 28, 30, 46, 34
PANEL_HEIGHT = 300
ROW, ROW_PER_DOT = 14, 13
CHARACTER, SMALL_CHARACTER = 6.6, 5.5  # width of one at 12 and at 10 px, about
CLOSE = 14  # px between lines that leave no room for a name
COLOURS = ("#1f5f8b", "#c2571a", "#3d7a45", "#7a4c93", "#a98412", "#b03f6c", "#227f83", "#5b626d", "#8b3a2b", "#4d6bc6")
STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; fill: #5c6066 }
.title { font-weight: 600; fill: #1c1e21 } .name { fill: #1c1e21 }
.grid { stroke: #e6e3dc; stroke-width: 1 } .axis { stroke: #8a8d91; stroke-width: 1 }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.reference { stroke: #8a8d91; stroke-width: 1; stroke-dasharray: 4 4 } .small { font-size: 10px }
.band { opacity: .16; stroke: none } .whisker { stroke-width: 2; stroke-linecap: round } .seed { opacity: .35 }
"""


@dataclass(frozen=True)
class Series:
    """One curve or one row of dots: positions, means, deviations, and the values of the seeds."""

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    std: Sequence[float]
    seeds: Sequence[Sequence[float]]
    colour: str


@dataclass(frozen=True)
class Panel:
    """What is drawn in one frame."""

    title: str
    y_label: str
    series: Sequence[Series]
    references: Sequence[tuple[str, float]] = ()
    """names and values of what the metric is held against, the lowest first"""


def draw(results: StudyResults) -> Markup:
    """The figure of a study. Where nothing is finished, or the data has no labels for it, it says so."""
    figure = results.plan.study.figure
    panels = [panel for panel in _panels(results, figure) if panel.series]
    if not panels:
        return _svg(60, [tag("text", "No finished cells to draw.", x=20, y=34)], results.plan.study.question)
    if figure.kind == "dots":
        return _dots(results, figure, panels)
    return _lines(results, figure, panels)


def _panels(results: StudyResults, figure: Figure) -> list[Panel]:
    levels = [""] if figure.panels is None else list(_axis_levels(results, figure.panels))
    found = []
    for metric in figure.y:
        for level in levels:
            parts = [f"{figure.panels} {level}"] if level else []
            parts += [METRICS[metric].title] if len(figure.y) > 1 else []
            series = _series_of(results, figure, metric, level)
            found.append(Panel(", ".join(parts), METRICS[metric].title, series, _references(results, metric)))
    return found


def _references(results: StudyResults, metric: str) -> list[tuple[str, float]]:
    found = [(name, of.mean * METRICS[metric].scale) for name, of in results.baselines(metric).items()]
    return sorted(found, key=lambda reference: reference[1])


def _axis_levels(results: StudyResults, name: str) -> list[str]:
    return list(next(axis for axis in results.plan.axes if axis.name == name).levels)


def _series_of(results: StudyResults, figure: Figure, metric: str, panel: str) -> list[Series]:
    names = [""] if figure.series is None else _axis_levels(results, figure.series)
    drawn = []
    for place, name in enumerate(names):
        wanted = {axis: level for axis, level in ((figure.panels, panel), (figure.series, name)) if axis and level}
        points = _points(results, figure, metric, wanted)
        if points:
            x, values = list(points), [[v * METRICS[metric].scale for v in of] for of in points.values()]
            spread = [summarise(of) for of in values]
            means, stds = [s.mean for s in spread], [s.std for s in spread]
            drawn.append(Series(name, x, means, stds, values, COLOURS[place % len(COLOURS)]))
    return drawn


def _points(results: StudyResults, figure: Figure, metric: str, wanted: Mapping[str, str]) -> dict[float, list[float]]:
    """Position -> values of the seeds; what neither axis names is one more value at the position."""
    points: dict[float, list[float]] = {}

    def chosen(group: Group) -> bool:
        return all(group[results.axes.index(axis)] == level for axis, level in wanted.items())

    if METRICS[metric].curve:
        for group, per_seed in results.curves(metric).items():
            for x, y in [point for curve in per_seed.values() for point in curve if chosen(group)]:
                points.setdefault(x, []).append(y)
        return dict(sorted(points.items()))
    levels, place = _axis_levels(results, figure.x), results.axes.index(figure.x)
    for group, of in results.values(metric).items():
        if chosen(group):
            at = float(group[place]) if figure.kind == "lines" else float(levels.index(group[place]))
            points.setdefault(at, []).extend(of.values())
    return dict(sorted(points.items()))


def _svg(height: float, children: Sequence[Markup], summary: str) -> Markup:
    style = Markup(f"<style>{STYLE}</style>")
    paper = tag("rect", width=WIDTH, height=height, fill="#ffffff")
    return tag(
        "svg",
        tag("title", summary),
        style,
        paper,
        children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:g}",
        width=WIDTH,
        height=f"{height:g}",
        role="img",
    )


def _lines(results: StudyResults, figure: Figure, panels: Sequence[Panel]) -> Markup:
    columns = min(len(panels), 2 if len(panels) % 3 else 3)
    rows = -(-len(panels) // columns)
    own_scale = len(figure.y) > 1
    legend, top = _legend(results, figure, panels, 26)
    width = (WIDTH - LEFT - RIGHT - (columns - 1) * (GAP + (LEFT - GAP if own_scale else 0))) / columns
    height = PANEL_HEIGHT if rows == 1 else 220
    shared = _limits(panels)
    parts: list[Markup] = [legend]
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        left = LEFT + column * (width + (LEFT if own_scale else GAP))
        frame = top + row * (height + TOP + BOTTOM) + TOP
        limits = _limits([panel]) if own_scale else shared
        box = _Box(left, frame, left + width, frame + height)
        across, up = _scales(panels, limits, box, figure)
        inner = column > 0 and not own_scale
        parts.append(_frame(across, up, box, _x_label(results, figure), panel, inner=inner, own=own_scale))
        parts += _levels_across(panel, up, box)
        parts += [_curve(series, across, up) for series in panel.series]
    return _svg(top + rows * (height + TOP + BOTTOM) + 2, parts, results.plan.study.question)


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float


def _x_label(results: StudyResults, figure: Figure) -> str:
    if METRICS[figure.y[0]].curve:
        return "epochs"
    return next(axis.label for axis in results.plan.axes if axis.name == figure.x)


def _limits(panels: Sequence[Panel]) -> tuple[float, float]:
    ends = [value for panel in panels for _, value in panel.references]
    ends += [
        m + side * s
        for p in panels
        for of in p.series
        for m, s in zip(of.mean, of.std, strict=True)
        for side in (-1, 1)
    ]
    return min(ends), max(ends)


def _scales(panels: Sequence[Panel], limits: tuple[float, float], box: _Box, figure: Figure) -> tuple[Axis, Axis]:
    xs = [x for panel in panels for series in panel.series for x in series.x]
    log = figure.log_x and min(xs) > 0 and max(xs) > min(xs)
    marks = (
        sorted(set(xs))
        if log and len(set(xs)) <= 8
        else log_ticks(min(xs), max(xs))
        if log
        else ticks(min(xs), max(xs), 5)
    )
    return Axis(marks, box.left, box.right, log), Axis(ticks(*limits, 5), box.bottom, box.top)


def _frame(across: Axis, up: Axis, box: _Box, x_label: str, panel: Panel, *, inner: bool, own: bool) -> Markup:
    rows = [tag("line", class_="grid", x1=box.left, x2=box.right, y1=up(mark), y2=up(mark)) for mark in up.marks]
    if not inner:
        rows += [tag("text", number(m), x=box.left - 8, y=up(m) + 4, text_anchor="end") for m in up.marks]
    columns = [tag("text", number(m), x=across(m), y=box.bottom + 18, text_anchor="middle") for m in across.marks]
    title = panel.title or panel.y_label
    if not own and panel.title and not inner:
        title = f"{panel.y_label}: {panel.title}"
    return tag(
        "g",
        rows,
        columns,
        tag("line", class_="axis", x1=box.left, x2=box.right, y1=box.bottom, y2=box.bottom),
        tag("text", title, class_="title", x=box.left, y=box.top - 12),
        tag("text", x_label, x=box.right, y=box.bottom + 36, text_anchor="end"),
    )


def _levels_across(panel: Panel, up: Axis, box: _Box) -> list[Markup]:
    """The references as dashed lines with their names above; where two are close, the lower one's name is below."""
    heights = [up(value) for _, value in panel.references]
    close = len(heights) > 1 and heights[0] - heights[-1] < CLOSE
    parts = []
    for place, ((name, _), y) in enumerate(zip(panel.references, heights, strict=True)):
        written = y + 11 if close and place == 0 else y - 4
        parts.append(tag("line", class_="reference", x1=box.left, x2=box.right, y1=y, y2=y))
        parts.append(tag("text", name, class_="small", x=box.right, y=written, text_anchor="end"))
    return parts


def _levels_down(panel: Panel, across: Axis, box: _Box) -> list[Markup]:
    """The references as dashed lines with their names under the scale, a line each, inside the panel's width."""
    parts = []
    for place, (name, value) in enumerate(panel.references):
        x, half = across(value), SMALL_CHARACTER * len(name) / 2
        at = min(max(x, box.left + half), box.right - half)
        parts.append(tag("line", class_="reference", x1=x, x2=x, y1=box.top, y2=box.bottom))
        parts.append(tag("text", name, class_="small", x=at, y=box.bottom + 31 + 11 * place, text_anchor="middle"))
    return parts


def _curve(series: Series, across: Axis, up: Axis) -> Markup:
    points = [f"{across(x)} {up(y)}" for x, y in zip(series.x, series.mean, strict=True)]
    upper = [f"{across(x)} {up(m + s)}" for x, m, s in zip(series.x, series.mean, series.std, strict=True)]
    lower = [f"{across(x)} {up(m - s)}" for x, m, s in zip(series.x, series.mean, series.std, strict=True)]
    band = "M" + "L".join([*upper, *lower[::-1]]) + "Z"
    dots = [
        tag("circle", cx=point.split()[0], cy=point.split()[1], r=3, fill=series.colour)
        for point in (points if len(points) <= 16 else points[:0])
    ]
    return tag(
        "g",
        tag("title", series.name),
        tag("path", d=band, class_="band", fill=series.colour),
        tag("path", d="M" + "L".join(points), class_="curve", stroke=series.colour),
        dots,
    )


def _legend(results: StudyResults, figure: Figure, panels: Sequence[Panel], top: float) -> tuple[Markup, float]:
    """The names of the series beside their colours, in as many lines as they need; how far down they reach."""
    named = {series.name: series.colour for panel in panels for series in panel.series if series.name}
    if not named:
        return Markup(), 8
    label = next(axis.label for axis in results.plan.axes if axis.name == figure.series)
    x, y, parts = LEFT + CHARACTER * len(label) + 14.0, top, [tag("text", label, x=LEFT, y=top)]
    for name, colour in named.items():
        width = CHARACTER * len(name) + 40
        if x + width > WIDTH - RIGHT:
            x, y = float(LEFT), y + 20
        parts.append(tag("line", x1=x, x2=x + 18, y1=y - 4, y2=y - 4, stroke=colour, stroke_width=3))
        parts.append(tag("text", name, class_="name", x=x + 23, y=y))
        x += width
    return tag("g", parts), y + 8


def _dots(results: StudyResults, figure: Figure, panels: Sequence[Panel]) -> Markup:
    """A row per level, a mark per series: mean, its deviation as a whisker, the seeds behind it."""
    names = _axis_levels(results, figure.x)
    present = sorted({int(x) for panel in panels for series in panel.series for x in series.x})
    legend, top = _legend(results, figure, panels, 26)
    deep = max(len(panel.series) for panel in panels)
    height = (ROW + ROW_PER_DOT * deep) * len(present)
    left = 24 + CHARACTER * max(len(names[i]) for i in present)
    width = (WIDTH - left - RIGHT - (len(panels) - 1) * GAP) / len(panels)
    parts = [legend]
    for place, panel in enumerate(panels):
        start = left + place * (width + GAP)
        box = _Box(start, top + TOP, start + width, top + TOP + height)
        ends = [v for of in panel.series for seeds in of.seeds for v in seeds]
        low, high = _limits([panel])
        marks = ticks(min(low, *ends), max(high, *ends), 4 if len(panels) > 1 else 7)
        parts.append(_dot_frame(Axis(marks, box.left, box.right), box, panel))
        parts += _levels_down(panel, Axis(marks, box.left, box.right), box)
        for row, level in enumerate(present):
            y = box.top + row * (ROW + ROW_PER_DOT * deep)
            if deep > 1 and row > 0:
                parts.append(tag("line", class_="grid", x1=box.left, x2=box.right, y1=y, y2=y))
            if place == 0:
                middle = y + (ROW + ROW_PER_DOT * deep) / 2 + 4
                parts.append(tag("text", names[level], class_="name", x=left - 12, y=middle, text_anchor="end"))
            parts += _row_marks(panel, level, y + (ROW + ROW_PER_DOT) / 2, Axis(marks, box.left, box.right))
    return _svg(top + TOP + height + BOTTOM, parts, results.plan.study.question)


def _dot_frame(across: Axis, box: _Box, panel: Panel) -> Markup:
    grid = [tag("line", class_="grid", x1=across(m), x2=across(m), y1=box.top, y2=box.bottom) for m in across.marks]
    texts = [tag("text", number(m), x=across(m), y=box.bottom + 18, text_anchor="middle") for m in across.marks]
    title = tag("text", panel.title or panel.y_label, class_="title", x=box.left, y=box.top - 12)
    return tag("g", grid, texts, title)


def _row_marks(panel: Panel, level: int, y: float, across: Axis) -> list[Markup]:
    parts = []
    for place, series in enumerate(panel.series):
        for x, mean, std, seeds in zip(series.x, series.mean, series.std, series.seeds, strict=True):
            if int(x) != level:
                continue
            at = round(y + place * ROW_PER_DOT, 1)
            ends = np.clip([mean - std, mean + std], across.marks[0], across.marks[-1])
            low, high = (across(float(v)) for v in ends)
            parts += [tag("circle", cx=across(v), cy=at, r=2.5, fill=series.colour, class_="seed") for v in seeds]
            parts.append(tag("line", class_="whisker", x1=low, x2=high, y1=at, y2=at, stroke=series.colour))
            said = f"{series.name} {number(mean)} ± {number(std)}".strip()
            parts.append(tag("circle", tag("title", said), cx=across(mean), cy=at, r=4.5, fill=series.colour))
    return parts
