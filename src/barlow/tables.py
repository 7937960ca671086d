"""Results as tables in a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from barlow.evaluation import Result, best_of

Scores = Mapping[str, Any]  # value, interval, and what each image contributes

INTERVALS = "95% intervals cover the choice of test images (few-shot: of labelled ones), not the training seed"
BOLD = "Bold: ahead of every other by a paired test on the same images"


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """One row per protocol: the encoder beside its baselines, then the split and any warning."""
    shown = console or Console()
    baselines = list(dict.fromkeys(name for result in results for name in result.baselines))
    table = Table("protocol", "metric", *[name.replace("-", " ") for name in baselines], "this encoder")
    for result in results:
        scores = [*(result.baselines.get(name) for name in baselines), score_of(result)]
        table.add_row(result.title, result.metric, *_marked(scores))
    shown.print(table)
    first = results[0]
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}  # names and paths stay as they are
    shown.print(f"{first.data}: {first.n} scored, {first.split}", **plain)
    shown.print(f"{INTERVALS}. {BOLD} in its row", **plain)
    for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
        shown.print(f"warning: {warning}", **plain)


def comparison(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Scores | None]]]) -> Table:
    """Encoders down, protocols across; of every column the best stands out where the images tell that it is."""
    names, scores = zip(*rows, strict=True)
    cells = zip(*[_marked(column) for column in zip(*scores, strict=True)], strict=True)
    table = Table("", *columns)
    for name, row in zip(names, cells, strict=True):
        table.add_row(name, *row)
    return table


def _marked(scores: Sequence[Scores | None]) -> list[str]:
    """The cells of scores of one protocol, the best in bold where it is ahead of every other one."""
    best = best_of(scores)
    return [f"[bold]{cell(score)}[/bold]" if i == best else cell(score) for i, score in enumerate(scores)]


def score_of(result: Result) -> Scores:
    """What of a result is compared with others, as its baselines hold it."""
    return {"value": result.value, "interval": result.interval, "per_image": result.per_image}


def cell(score: Scores | None) -> str:
    """`98.1 (97.0-99.0)`: percent, with the 95% interval."""
    if score is None:
        return "-"
    low, high = score["interval"]
    return f"{100 * score['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
