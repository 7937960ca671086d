"""First answer of the page: is the encoder good. And how fast it was trained."""

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from markupsafe import Markup

from barlow.evaluation import best_of, compare_scores, protocol_title
from barlow.evaluation.knn import TEMPERATURE, K
from barlow.numbers import amount, duration, flat, heading, is_percent, number, span
from barlow.records import Evaluation, Score
from barlow.report.charts import Estimate, Line, forest, line_chart
from barlow.report.markup import join, tag
from barlow.report.record import (
    BASELINES,
    RunRecord,
    best_evaluation,
    outcome,
    protocol_name,
    protocol_order,
    series,
    training_lines,
)
from barlow.tables import BOLD, INTERVALS

Row = tuple[str, str, str]  # protocol with k and T, data, metric

ONE_COLUMN = 30  # characters of a name and its value that fit side by side in a column of facts


def absent(what: str, command: str) -> Markup:
    """What is not there, and the command that adds it."""
    return tag("p", what, " ", tag("code", command), " adds it.", class_="absent")


def key(records: Sequence[RunRecord]) -> Markup | None:
    """Which colour is which run; nothing to tell with one run."""
    if len(records) < 2:
        return None
    return tag("p", [tag("span", s.name, class_=f"key s{s.colour}") for s in records], class_="legend")


def figure(title: str, picture: Markup, caption: object = None) -> Markup:
    """A titled figure."""
    words = tag(
        "figcaption", tag("b", title), " " if caption else None, None if caption is None else join([str(caption)])
    )
    return tag("figure", words, picture, class_="panel")


def quality_line(record: RunRecord) -> tuple[str, Markup]:
    """(state, one line): the score that counts, with its interval, against the baselines."""
    e = best_evaluation(record.evaluations)
    if e is None:
        return "open", Markup("not measured yet")
    state, words = outcome(e)
    unit = "%" if is_percent(e["metric"]) else ""
    interval = f" ({span(e['interval'], e['metric'])})"
    score = tag("b", amount(e["value"], e["metric"]) + unit, class_="score")
    return state, join([score, f"{interval} {protocol_name(e)} {e['metric']} on {e['data']}: {words}."])


def scores(records: Sequence[RunRecord]) -> Markup:
    """The evaluation table and its picture."""
    rows = sorted({_row(e) for s in records for e in s.evaluations}, key=_row_order)
    silent = [
        absent(f"{s.name} has not been evaluated.", f"barlow evaluate {quote(s.path)} --data DATA")
        for s in records
        if not s.evaluations
    ]
    if not rows:
        return join([silent, knn_over_time(records)])
    pair = tag("div", _forest(records, rows), knn_over_time(records), class_="grid2")
    return join([pair, _score_table(records, rows), _warnings(records), _protocols(records), silent])


def _row(e: Evaluation) -> Row:
    return protocol_name(e), e["data"], e["metric"]


def _row_order(row: Row) -> tuple[str, int, Row]:
    return row[1], protocol_order(row[0]), row


def _find(record: RunRecord, row: Row) -> Evaluation | None:
    return next((e for e in record.evaluations if _row(e) == row), None)


def _baseline(records: Sequence[RunRecord], row: Row, name: str) -> Score | None:
    scores = (e.get("baselines", {}).get(name) for s in records if (e := _find(s, row)))
    return next((b for b in scores if b), None)


def _forest(records: Sequence[RunRecord], rows: Sequence[Row]) -> Markup:
    parts = []
    for percent in (True, False):
        alike = [row for row in rows if is_percent(row[2]) == percent]
        if alike:
            summary = "Scores with 95% intervals; the numbers are in the table below."
            parts.append(
                forest([(_row_name(row), _estimates(records, row)) for row in alike], summary=summary, percent=percent)
            )
    names = [(s.name, f"s{s.colour}") for s in records] if len(records) > 1 else [("This encoder", "s0")]
    names += [("Random init", "random"), ("Raw pixels", "pixels")]
    legend = tag("p", [tag("span", name, class_=f"key {mark}") for name, mark in names], class_="legend")
    caption = tag("figcaption", tag("b", "Scores with 95% intervals."))
    return tag("figure", caption, legend, parts, class_="panel")


def _row_name(row: Row) -> str:
    return f"{heading(row[0])}: {_measure(row)}"


def _measure(row: Row) -> str:
    return f"{row[2]}, % on {row[1]}" if is_percent(row[2]) else f"{row[2]} on {row[1]}"


def _estimates(records: Sequence[RunRecord], row: Row) -> list[Estimate]:
    own = [_estimate(s.name, e, f"s{s.colour}") for s in records if (e := _find(s, row))]
    base = [
        (BASELINES[n], _baseline(records, row, n), n.partition("-")[2 if n == "raw-pixels" else 0]) for n in BASELINES
    ]
    return own + [_estimate(name, b, mark) for name, b, mark in base if b]


def _estimate(name: str, measured: Evaluation | Score, mark: str) -> Estimate:
    low, high = measured.get("interval") or (measured["value"],) * 2
    return Estimate(name, measured["value"], low, high, mark)


def _score_table(records: Sequence[RunRecord], rows: Sequence[Row]) -> Markup:
    heads = ["Protocol", *(s.name for s in records), *BASELINES.values(), "n"]
    body = []
    for row in rows:
        scores = [_find(s, row) for s in records] + [_baseline(records, row, name) for name in BASELINES]
        best = best_of(scores)
        body.append(
            tag(
                "tr",
                tag("th", heading(row[0]), tag("small", _measure(row)), scope="row"),
                [_cell(score, row[2], strong=place == best) for place, score in enumerate(scores)],
                tag("td", next(f"{e['n']:,}" for s in records if (e := _find(s, row))), class_="num"),
            )
        )
    head = tag(
        "tr", [tag("th", name, scope="col", class_="num" if place else None) for place, name in enumerate(heads)]
    )
    table = tag("table", tag("thead", head), tag("tbody", body))
    scrolled = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Evaluation table")
    return join([scrolled, tag("p", f"{INTERVALS}. {BOLD} in its row."), _paired(records, rows)])


def _paired(records: Sequence[RunRecord], rows: Sequence[Row]) -> Markup:
    """Of every protocol that several runs were scored by, the paired test of each with the best one."""
    lines = []
    for row in rows:
        scored = sorted(((e["value"], s.name, e) for s in records if (e := _find(s, row))), key=lambda x: -x[0])
        for _, name, other in scored[1:]:
            comparison = compare_scores(scored[0][2], other)
            if comparison is not None:
                apart = (
                    f"{100 * comparison.difference:.1f} points" if is_percent(row[2]) else number(comparison.difference)
                )
                chance = f"p {comparison.p:.2g}" if comparison.p >= 0.001 else "p < 0.001"
                lead = f"{scored[0][1]} {'is ahead of' if comparison.resolved else 'cannot be told from'} {name}"
                lines.append(tag("p", f"{heading(row[0])} on {row[1]}: {lead}, {apart}, {chance} ({comparison.test})."))
    return tag("details", tag("summary", "Runs compared on the same images"), lines) if lines else Markup()


def _cell(measured: Evaluation | Score | None, metric: str, strong: bool = False) -> Markup:
    if measured is None:
        return tag("td", "\u2013", class_="num")
    spread = tag("small", f"seeds ±{amount(measured['spread'], metric)}") if "spread" in measured else None
    value = tag("b" if strong else "span", amount(measured["value"], metric))
    return tag("td", value, tag("small", span(measured.get("interval"), metric)), spread, class_="num")


def _warnings(records: Sequence[RunRecord]) -> list[Markup]:
    return [
        tag("p", tag("b", f"{s.name}, {protocol_name(e)}: "), str(warning), class_="warning")
        for s in records
        for e in s.evaluations
        for warning in e.get("warnings", ())
    ]


def _protocols(records: Sequence[RunRecord]) -> Markup:
    shown = ("baselines", "warnings", "value", "interval", "protocol", "data", "metric", "per_image")
    lists = [
        join(
            [
                tag("h3", f"{s.name}: {protocol_name(e)} on {e['data']}"),
                facts_list({_label(name): v for name, v in flat(e).items() if name.partition(".")[0] not in shown}),
            ]
        )
        for s in records
        for e in s.evaluations
    ]
    return tag("details", tag("summary", "The protocols in full"), lists)


def _label(name: str) -> str:
    """`settings.batch_size_of_extraction` as `batch size of extraction`."""
    return name.removeprefix("settings.").removeprefix("details.").replace("_", " ")


def facts_list(facts: Mapping[str, str]) -> Markup:
    """Names and values: short ones in columns, then long ones, a line each."""
    ordered = sorted(facts.items(), key=lambda fact: _is_long(*fact))
    rows = [
        tag("div", tag("dt", name), tag("dd", value), class_="long" if _is_long(name, value) else None)
        for name, value in ordered
    ]
    return tag("dl", rows, class_="facts")


def _is_long(name: str, value: str) -> bool:
    return len(name) + len(value) > ONE_COLUMN


def knn_over_time(records: Sequence[RunRecord]) -> Markup:
    """k-NN accuracy on the held-out slice, by epoch."""
    titles = [_validation_title(s) for s in records]
    alike = len(set(titles)) == 1
    title = titles[0] if alike else "k-NN"
    names = [s.name if alike else f"{s.name}, {own}" for s, own in zip(records, titles, strict=True)]
    lines = [series(s, s.validations, "epoch", "knn", name) for s, name in zip(records, names, strict=True)]
    if not any(line.x for line in lines):
        return tag(
            "p", "No k-NN score over time: the training data had no labels for a held-out slice.", class_="absent"
        )
    shown = [Line(line.name, line.x, [100 * y for y in line.y], line.colour) for line in lines]
    words = "; ".join(f"{line.name} ends at {line.y[-1]:.1f}%" for line in shown if line.y)
    summary = f"{title} accuracy by epoch: {words}."
    chart = line_chart(shown, x_label="epoch", y_label=f"{title} accuracy, %", summary=summary)
    return figure(f"{title} accuracy while training,", chart, "% on held-out images.")


def _validation_title(record: RunRecord) -> str:
    """The k-NN that a run was validated by; earlier runs, which do not say it, all had the default."""
    last: dict[str, Any] = next((line for line in reversed(record.validations) if "knn" in line), {})
    k, temperature = last.get("knn_k", K), last.get("knn_temperature", TEMPERATURE)
    return protocol_title("knn", {"k": k, "temperature": temperature})


def speed(records: Sequence[RunRecord]) -> Markup:
    """Images per second and the share of time spent waiting for data."""
    panels = []
    for name, title, scale in (
        ("images_per_s", "Images per second", 1.0),
        ("data_wait", "Time waiting for data, %", 100.0),
    ):
        lines = []
        for s in records:
            rows, x = training_lines(s)
            line = series(s, rows, x, name, s.name)
            lines.append(Line(line.name, line.x, [scale * y for y in line.y], line.colour))
        if any(line.x for line in lines):
            words = "; ".join(f"{line.name} ends at {number(line.y[-1])}" for line in lines if line.y)
            panels.append(
                figure(
                    title,
                    line_chart(
                        lines, x_label=training_lines(records[0])[1], y_label=title, summary=f"{title}: {words}."
                    ),
                )
            )
    return tag("div", panels, class_="grid2") if panels else Markup()


def took(record: RunRecord) -> str:
    """How long the run took, or nothing."""
    seconds = record.facts.get("wall_s")
    return f" in {duration(seconds)}" if seconds else ""
