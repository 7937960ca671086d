"""Results as tables in a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from barlow.evaluation import Result

Scores = Mapping[str, Any]  # value and interval


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """One row per protocol: the encoder beside its baselines, then the split and any warning."""
    shown = console or Console()
    baselines = list(dict.fromkeys(name for result in results for name in result.baselines))
    table = Table("protocol", "metric", *[name.replace("-", " ") for name in baselines], "this encoder")
    for result in results:
        beside = [cell(result.baselines.get(name)) for name in baselines]
        own = cell({"value": result.value, "interval": result.interval})
        table.add_row(result.protocol, result.metric, *beside, f"[bold]{own}[/bold]")
    shown.print(table)
    first = results[0]
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}  # names and paths stay as they are
    shown.print(f"{first.data}: {first.n} scored, {first.split}", **plain)
    for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
        shown.print(f"warning: {warning}", **plain)


def comparison(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Scores | None]]]) -> Table:
    """Encoders down, protocols across; the best of every column stands out."""
    listed = [(name, list(scores)) for name, scores in rows]
    best = [
        max((scores[i]["value"] for _, scores in listed if scores[i] is not None), default=None)  # type: ignore[index]
        for i in range(len(columns))
    ]
    table = Table("", *columns)
    for name, scores in listed:
        cells = [_marked(score, top) for score, top in zip(scores, best, strict=True)]
        table.add_row(name, *cells)
    return table


def _marked(score: Scores | None, best: float | None) -> str:
    text = cell(score)
    return f"[bold]{text}[/bold]" if score is not None and score["value"] == best else text


def cell(score: Scores | None) -> str:
    """`98.1 (97.0-99.0)`: percent, with the 95% interval."""
    if score is None:
        return "-"
    low, high = score["interval"]
    return f"{100 * score['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
