"""What a study is: a grid over the settings, what is measured, how it is shown, and what it is held against."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from barlow.studies.claims import Claim

Settings = Mapping[str, Any]
Levels = Mapping[str, str]  # axis -> level


@dataclass(frozen=True)
class Axis:
    """One direction of a grid: its levels by name, each a few settings that its cells have in common."""

    name: str
    label: str
    """as written at the figure's axis"""
    levels: Mapping[str, Settings]
    make: Callable[[str], Settings] | None = None
    """the settings of a level that is not listed, from its text; None: only the listed ones exist"""
    numeric: bool = False
    """levels are numbers, and in their order"""
    whole: bool = False
    """and whole ones"""

    @property
    def settings(self) -> frozenset[str]:
        """Names of the settings that any level sets."""
        return frozenset(name for settings in self.levels.values() for name in settings)


def numeric_axis(
    name: str, label: str, values: Sequence[float], make: Callable[[float], Settings], *, whole: bool = False
) -> Axis:
    """An axis of numbers, or of whole ones; any other such number can be asked for."""
    levels = {spelled(value): make(value) for value in values}
    return Axis(name, label, levels, lambda text: make(float(text)), numeric=True, whole=whole)


def spelled(value: float) -> str:
    """The one way to write a level that is a number: 64, not 64.0 or 6.4e1."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


@dataclass(frozen=True)
class Figure:
    """What is drawn: lines over a numeric axis or over epochs, or dots in rows, one per level."""

    kind: Literal["lines", "dots"]
    y: tuple[str, ...]
    """metrics; several: one panel each"""
    x: str = "epoch"
    """axis that runs across (lines) or down (dots)"""
    series: str | None = None
    """axis that the colours tell apart"""
    panels: str | None = None
    """axis with one panel per level"""
    log_x: bool = False


@dataclass(frozen=True)
class Study:
    """One experiment of a paper, as data."""

    name: str
    question: str
    source: str
    """where the papers have it"""
    axes: tuple[Axis, ...]
    metrics: tuple[str, ...]
    """names of `barlow.studies.metrics.METRICS`; the first is the table's"""
    figure: Figure
    claims: tuple[Claim, ...]
    settings: Settings = field(default_factory=dict)
    """of every cell"""
    small: Settings = field(default_factory=dict)
    """laid over them for the small budget"""
    small_levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """the levels that the small budget keeps, of the axes that it thins"""
    left_out: Callable[[Levels], str | None] = lambda levels: None
    """why a cell of the product is not part of the study"""
    columns: str | None = None
    """axis that goes across in the table"""
    baselines: tuple[str, ...] = ()
    """metrics of untrained networks and pixels, beside those of k-NN that every study has"""
    snapshots: int = 0
    """checkpoints of every run that its metrics look into, beside the untrained network"""

    def axis(self, name: str) -> Axis:
        """The axis of that name."""
        return next(axis for axis in self.axes if axis.name == name)


def grid(axes: Sequence[Axis]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """The product of the axes, the first axis slowest: levels and settings of each cell."""
    cells = []
    for names in product(*(axis.levels for axis in axes)):
        levels = dict(zip((axis.name for axis in axes), names, strict=True))
        settings = {k: v for axis in axes for k, v in axis.levels[levels[axis.name]].items()}
        cells.append((levels, settings))
    return cells
