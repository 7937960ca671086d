"""A study's outcomes as a table: one row per cell in Parquet, mean and standard deviation over seeds in Markdown."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from barlow.config import leaves
from barlow.files import written
from barlow.studies.cell import Outcome
from barlow.studies.claims import Finding, Group, Results, judge
from barlow.studies.metrics import BASELINES, HEALTH, HEALTHY, METRICS, Curve, baselines_of
from barlow.studies.plan import StudyPlan


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over n seeds."""

    mean: float
    std: float
    n: int


def summarise(values: Sequence[float]) -> Summary:
    """Standard deviation with n - 1; 0 for one value."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Summary(float(np.mean(values)), spread, len(values))


@dataclass(frozen=True)
class StudyResults:
    """A study's plan and what is known of each of its cells."""

    plan: StudyPlan
    outcomes: tuple[Outcome, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.plan.axes)

    @property
    def failed(self) -> list[Outcome]:
        return self.having("failed")

    @property
    def complete(self) -> bool:
        """Whether every cell that the data allows is finished."""
        return len(self.having("finished")) + len(self.having("skipped")) == len(self.outcomes)

    def having(self, status: str) -> list[Outcome]:
        """The cells of one status."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    def values(self, metric: str) -> dict[Group, dict[int, float]]:
        """A metric of the finished cells: levels -> seed -> value; cells that lack it are left out."""
        found: dict[Group, dict[int, float]] = {}
        for outcome in self.having("finished"):
            value = outcome.measured.get(metric)
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(self.group(outcome), {})[outcome.cell.seed] = float(value)
        return found

    def curves(self, metric: str) -> dict[Group, dict[int, Curve]]:
        """The same for a curve."""
        found: dict[Group, dict[int, Curve]] = {}
        for outcome in self.having("finished"):
            curve = outcome.measured.get(metric)
            if curve:
                found.setdefault(self.group(outcome), {})[outcome.cell.seed] = curve
        return found

    def group(self, outcome: Outcome) -> Group:
        """A cell's levels, in the order of the axes."""
        return tuple(outcome.cell.levels[axis] for axis in self.axes)

    def groups(self) -> list[Group]:
        """The levels of all cells, in the order of the grid."""
        return list(dict.fromkeys(self.group(outcome) for outcome in self.outcomes))

    def findings(self) -> list[Finding]:
        """What the results say of each claim."""
        levels = {axis.name: tuple(axis.levels) for axis in self.plan.axes}
        return [judge(claim, Results(levels, self.values(claim.metric))) for claim in self.plan.study.claims]

    def unhealthy(self) -> dict[str, list[Outcome]]:
        """The finished cells whose last verdict is not healthy, by its state."""
        found: dict[str, list[Outcome]] = {}
        for outcome in self.having("finished"):
            state = outcome.measured.get(HEALTH)
            if state not in (None, HEALTHY):
                found.setdefault(state, []).append(outcome)
        return found

    def baselines(self, metric: str) -> dict[str, Summary]:
        """What a metric is held against, by name, over all finished cells; in the metric's own unit."""
        measured = {
            name: [value for of in self.values(key).values() for value in of.values()]
            for key, name in BASELINES.get(metric, {}).items()
            if key in baselines_of(self.plan.study)
        }
        return {name: summarise(values) for name, values in measured.items() if values}


def save_parquet(results: StudyResults, path: Path) -> None:
    """One row per cell: status, levels, seed, every setting, metrics; curves as lists of epochs and values."""
    rows = [_row(results, outcome) for outcome in results.outcomes]
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with written(path) as temporary, temporary.open("wb") as stream:
        pq.write_table(table, stream)


def _row(results: StudyResults, outcome: Outcome) -> dict[str, object]:
    cell = outcome.cell
    row: dict[str, object] = {"study": cell.study, "key": cell.key, "status": outcome.status, "reason": outcome.reason}
    row |= {f"level.{axis}": level for axis, level in cell.levels.items()}
    row |= {f"setting.{name}": _plain(value) for _, name, value in leaves(cell.config)}
    row |= {"seed": cell.seed, "wall_s": outcome.wall_s}
    row[HEALTH] = outcome.measured.get(HEALTH)
    for name in (*results.plan.study.metrics, *baselines_of(results.plan.study)):
        value = outcome.measured.get(name)
        if METRICS[name].curve:
            row[f"{name}.epoch"] = [float(x) for x, _ in value] if value else None
            row[f"{name}.value"] = [float(y) for _, y in value] if value else None
        else:
            row[name] = None if value is None else float(value)
    return row


def _plain(value: object) -> object:
    """One type per column: tuples as JSON."""
    return json.dumps(value) if isinstance(value, tuple) else value


def markdown(results: StudyResults, caption: str) -> str:
    """The tables of a study: its main metric across the column axis, then every metric, then what is missing."""
    parts = [f"# {results.plan.study.name}", results.plan.study.question, caption]
    if results.plan.study.columns:
        parts += [f"## {METRICS[results.plan.study.metrics[0]].title}", "\n".join(_pivot(results))]
    parts += ["## All metrics", "\n".join(long_table(results))]
    parts += beside_scores(results)
    left = [outcome for outcome in results.outcomes if outcome.status != "finished"]
    if left:
        parts += ["## Cells without results", "\n".join(_missing(left))]
    return "\n\n".join(parts) + "\n"


def beside_scores(results: StudyResults) -> list[str]:
    """Two sections that both pages have: what has learnt nothing, and which cells have something wrong."""
    parts, baselines = [], _baseline_lines(results)
    if baselines:
        parts += ["## Baselines", "Mean ± standard deviation over all finished cells.", "\n".join(baselines)]
    if results.unhealthy():
        parts += ["## Cells that are not healthy", _unhealthy_cells(results)]
    return parts


def _baseline_lines(results: StudyResults) -> list[str]:
    """`- k-NN accuracy (%): untrained network 59.2 ± 1.3, raw pixels 94.1 ± 0.5`, a line per metric."""
    lines = []
    for metric in results.plan.study.metrics:
        beside = results.baselines(metric)
        if beside:
            said = [f"{name} {_summary(metric, summary)}" for name, summary in beside.items()]
            lines.append(f"- {METRICS[metric].title}: {', '.join(said)}")
    return lines


def _unhealthy_cells(results: StudyResults) -> str:
    """Which finished cells' last validation found something wrong, by state, and that they count all the same."""
    parts = ["By the verdict of their last validation. They count in all means and contrasts.", ""]
    for state, outcomes in results.unhealthy().items():
        seeds: dict[str, list[str]] = {}
        for outcome in outcomes:
            levels = ", ".join(f"{axis} {level}" for axis, level in outcome.cell.levels.items())
            seeds.setdefault(levels, []).append(str(outcome.cell.seed))
        cells = "; ".join(f"{levels} (seed {', '.join(of)})" for levels, of in seeds.items())
        parts.append(f"- {state}: {escape(cells)}")
    return "\n".join(parts)


def _missing(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        yield f"- {escape(outcome.cell.label)}: {outcome.status}; {escape(outcome.reason)}"


def _pivot(results: StudyResults) -> Iterator[str]:
    metric, column = results.plan.study.metrics[0], results.plan.study.columns
    place = results.axes.index(str(column))
    groups, values = results.groups(), results.values(metric)
    across = list(dict.fromkeys(group[place] for group in groups))
    downs = list(dict.fromkeys(group[:place] + group[place + 1 :] for group in groups))
    yield from _head([axis for axis in results.axes if axis != column], [f"{column} {level}" for level in across])
    for down in downs:
        cells = [values.get((*down[:place], level, *down[place:])) for level in across]
        yield _line([*down, *(_cell(metric, of) for of in cells)])


def long_table(results: StudyResults) -> Iterator[str]:
    """Every metric of every combination of levels, as lines of a Markdown table."""
    names = [name for name in results.plan.study.metrics if not METRICS[name].curve]
    values: Mapping[str, dict[Group, dict[int, float]]] = {name: results.values(name) for name in names}
    finished = [results.group(outcome) for outcome in results.having("finished")]
    yield from _head(results.axes, ["seeds", *(METRICS[name].title for name in names)])
    for group in results.groups():
        cells = [_cell(name, values[name].get(group)) for name in names]
        yield _line([*group, str(finished.count(group)), *cells])


def _head(left: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    yield _line([*left, *right])
    yield "|" + "---|" * len(left) + "---:|" * len(right)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _cell(metric: str, of: Mapping[int, float] | None) -> str:
    """`91.2 ± 0.4`, or a dash."""
    if not of:
        return "-"
    return _summary(metric, summarise(list(of.values())))


def _summary(metric: str, summary: Summary) -> str:
    show = METRICS[metric].show
    return show(summary.mean) + (f" ± {show(summary.std, summary.mean)}" if summary.n > 1 else "")


def escape(text: str) -> str:
    """Text that Markdown shows as it is, inside a table too."""
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(character, escaped)
    return text
