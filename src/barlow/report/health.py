"""Second answer of the page: is it healthy."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from barlow.numbers import heading, number, plain
from barlow.report.charts import Line, heat_map, line_chart
from barlow.report.evidence import absent, facts_list, figure
from barlow.report.markup import join, tag
from barlow.report.record import RunRecord, series, training_lines

TERMS = {
    "loss": "Loss",
    "invariance": "Invariance term",
    "redundancy": "Redundancy term",
    "mix": "Mixing term",
    "variance": "Variance term",
    "covariance": "Covariance term",
}
NO_TERMS = {"kind", "step", "epoch", "lr", "images_per_s", "data_wait", "gradient_norm"}

FIGURES: Mapping[str, str] = {
    "n": "images measured",
    "width": "width of the embedding",
    "dead_share": "dead features",
    "relative_spread": "spread of features",
    "effective_rank": "effective rank, embedding",
    "diagonal": "mean diagonal of C",
    "off_diagonal": "mean off-diagonal |C|",
    "heldout_loss": "loss, held out",
    "train_loss": "loss, trained on",
    "loss_gap": "gap of the losses",
    "initial_loss": "loss before training",
    "initial_diagonal": "mean diagonal before training",
    "best_heldout_loss": "lowest earlier loss",
    "knn": "k-NN accuracy",
    "best_knn": "best earlier k-NN",
    "knn_images": "images that k-NN was measured on",
    "n_train": "images trained on",
    "distinct_share": "images that are different",
    "step": "steps taken",
}
"""What a verdict rests on, in a person's words."""

SHARES = {"dead_share", "distinct_share", "knn", "best_knn", "loss_gap"}

MEASURES = {
    "rankme": ("RankMe", "directions the features use; higher is better"),
    "effective_rank": ("Effective rank", "the same of their covariance, where large directions count more"),
    "lidar": ("LiDAR", "directions that tell images apart, not views of one image; higher is better"),
    "alpha_req": ("alpha-ReQ", "how fast the spectrum decays; near 1 is best, far above is collapse"),
    "dead_share": ("Dead features", "that are the same for every image"),
    "alignment": ("Alignment", "squared distance of two views of an image; lower is better"),
    "uniformity": ("Uniformity", "how evenly images fill the sphere; lower is better, 0 is one point"),
    "class_ratio": ("Class distances", "within classes over between them, where there are labels; lower is better"),
}
"""Name and reading of every figure of `health.json` that needs no labels (the last: where there are some)."""


def verdict_of(record: RunRecord) -> tuple[str, str]:
    """(state, words) of the run's health."""
    verdict = record.health.get("verdict")
    return (verdict["state"], verdict["text"]) if verdict else ("unknown", "")


def verdicts(records: Sequence[RunRecord]) -> Markup:
    """The verdict in words, with its evidence."""
    return join([_verdict(s, named=len(records) > 1) for s in records])


def _verdict(record: RunRecord, named: bool) -> Markup:
    state, words = verdict_of(record)
    if "verdict" not in record.health:
        missing = f"No health check of {record.name}: it is made on samples that are held out of training."
        return absent(missing, "barlow pretrain DATA --out NEW --holdout 0.1")
    evidence = record.health["verdict"].get("evidence", {})
    return tag(
        "div",
        tag("p", f"{record.name}. " if named else None, leading(words)),
        facts_list(
            {FIGURES.get(name, name.replace("_", " ")): _figure_of(name, value) for name, value in evidence.items()}
        ),
        class_=f"verdict {tone(state)}",
    )


def tone(state: str) -> str:
    """Which of the three tones a state is shown in."""
    return {
        "healthy": "good",
        "good": "good",
        "collapsed": "bad",
        "overfitting": "bad",
        "diverged": "bad",
        "bad": "bad",
    }.get(state.partition("-")[0], "open")


def leading(text: str) -> Markup:
    """A verdict with its first words, up to the colon, in bold."""
    head, colon, rest = text.partition(":")
    return join([tag("b", head + colon), rest]) if colon and len(head) < 40 else join([text])


def _figure_of(name: object, value: object) -> str:
    if name in SHARES and isinstance(value, float | int):
        return f"{100 * value:.1f}%"
    return number(value) if isinstance(value, float | int) else plain(value)


def curves(records: Sequence[RunRecord]) -> Markup:
    """Every term of the loss while training, then what was measured on held-out images beside it."""
    if not any(s.epochs or s.steps for s in records):
        return tag("p", "Nothing was logged while training.", class_="absent")
    return join([_term(records, name) for name in _terms(records)] + [_loss_gap(records), _rank_curve(records)])


def _terms(records: Sequence[RunRecord]) -> list[str]:
    """The names of the logged terms, of whichever method: those of Barlow Twins first."""
    logged = dict.fromkeys(name for s in records for row in training_lines(s)[0] for name in row)
    return [name for name in TERMS if name in logged] + [n for n in logged if n not in TERMS and n not in NO_TERMS]


def _term(records: Sequence[RunRecord], name: str) -> Markup:
    x = "epoch" if all(training_lines(s)[1] == "epoch" for s in records) else "step"
    lines = [series(s, s.epochs if x == "epoch" else s.steps, x, name, s.name) for s in records]
    title = TERMS.get(name, f"{heading(name.replace('_', ' '))} term")
    return figure(title, _curves(lines, x, name, f"{title} by {x}"))


def _curves(lines: Sequence[Line], x: str, y: str, title: str) -> Markup:
    """On a log scale where all values are above zero; the summary says where each begins and ends."""
    words = "; ".join(f"{line.name} from {number(line.y[0])} to {number(line.y[-1])}" for line in lines if line.y)
    positive = all(value > 0 for line in lines for value in line.y)
    return line_chart(lines, x_label=x, y_label=y, summary=f"{title}: {words}.", log_y=positive)


def _loss_gap(records: Sequence[RunRecord]) -> Markup | None:
    """Overfitting to see: one objective, the same number of images, half of them never trained on."""
    trained = [series(s, s.validations, "epoch", "train_loss", f"{s.name}, trained on") for s in records]
    held = [series(s, s.validations, "epoch", "heldout_loss", f"{s.name}, held out", dashed=True) for s in records]
    if not any(line.x for line in held):
        return None
    caption = (
        "solid: on images trained on, dashed: on as many held out, both in eval mode. A gap that grows is overfitting."
    )
    chart = _curves([*trained, *held], "epoch", "loss", "Barlow Twins loss by epoch")
    return figure("Barlow Twins loss, held out against trained on,", chart, caption)


def _rank_curve(records: Sequence[RunRecord]) -> Markup | None:
    lines = [series(s, s.validations, "epoch", "rankme", s.name) for s in records]
    if not any(line.x for line in lines):
        return None
    words = "; ".join(f"{line.name} ends at {number(line.y[-1])}" for line in lines if line.y)
    chart = line_chart(lines, x_label="epoch", y_label="RankMe", summary=f"RankMe by epoch: {words}.")
    return figure("RankMe,", chart, "the effective number of dimensions in use.")


def spectrum(records: Sequence[RunRecord]) -> Markup:
    """Singular values of the features, largest first."""
    have = [s for s in records if s.health.get("spectrum")]
    if not have:
        return Markup()
    lines = [_spectrum_line(s) for s in have]
    ranks = "; ".join(f"{s.name}: RankMe {number(rank)}" for s in have if (rank := s.health.get("rankme")) is not None)
    chart = line_chart(
        lines,
        x_label="dimension",
        y_label="share of the largest singular value",
        log_x=True,
        log_y=True,
        summary=f"Singular values of the features on log scales. {ranks}.",
    )
    return figure("Spectrum of the features,", chart, f"relative to the largest singular value, log scales. {ranks}.")


def _spectrum_line(record: RunRecord) -> Line:
    values = record.health["spectrum"]
    largest = max(values[0], 1e-300)
    return Line(record.name, list(range(1, len(values) + 1)), [v / largest for v in values], record.colour)


def correlations(records: Sequence[RunRecord]) -> Markup:
    """The cross-correlation matrix of the two views' embeddings."""
    have = [s for s in records if "correlation" in s.health and s.health["correlation"]["matrix"]]
    return join([_correlation(s, named=len(records) > 1) for s in have])


def _correlation(record: RunRecord, named: bool) -> Markup:
    correlation = record.health["correlation"]
    matrix = correlation["matrix"]
    width = correlation["width"]
    shown = f"{len(matrix)} of {width:,} features" if width > len(matrix) else f"all {width} features"
    diagonal, rest = (record.health.get(name) for name in ("diagonal", "off_diagonal"))
    means = (
        ""
        if diagonal is None or rest is None
        else f" Mean of the diagonal {diagonal:.3f}, of the rest {rest:.3f} (absolute)."
    )
    title = "Cross-correlation" + (f" of {record.name}" if named else "") + ","
    caption = f"{shown} of the embedding: red 1, blue \u22121. Barlow Twins wants a red diagonal on empty paper.{means}"
    return figure(title, heat_map(matrix, summary=f"Cross-correlation of two views, {shown}.{means}"), caption)


def mixing(records: Sequence[RunRecord]) -> Markup:
    """How far the embedding of a mixed image is from the mix of the embeddings."""
    lines = [
        _mixing_line(s, part, dashed=part == "projector")
        for s in records
        for part in ("encoder", "projector")
        if _mixes(s, part)
    ]
    if not lines:
        return Markup()
    chart = line_chart(
        lines,
        x_label="mixing weight",
        y_label="deviation",
        summary="Deviation from linear mixing by mixing weight: "
        + "; ".join(f"{line.name} at most {number(max(line.y))}" for line in lines)
        + ".",
    )
    caption = (
        "|f(mix) \u2212 mix of f|\u00b2 as a share of |f(x) \u2212 f(x\u2032)|\u00b2; solid: encoder, "
        "dashed: projector. Mixed Barlow Twins assumes 0."
    )
    return figure("Do embeddings mix as images do?", chart, caption)


def _mixes(record: RunRecord, part: str) -> list[tuple[float, float]]:
    """(weight, deviation) by weight; those that could not be measured are left out."""
    deviations = record.health.get("mixing", {}).get(part) or {}
    return sorted((float(weight), float(value)) for weight, value in deviations.items() if value is not None)


def _mixing_line(record: RunRecord, part: str, dashed: bool) -> Line:
    deviations = _mixes(record, part)
    return Line(f"{record.name}, {part}", [a for a, _ in deviations], [d for _, d in deviations], record.colour, dashed)


def measures(records: Sequence[RunRecord]) -> Markup:
    """Rank, collapse and geometry: a row per measure, with how to read it."""
    flat = [s.health | {"class_ratio": s.health.get("class_distances", {}).get("ratio")} for s in records]
    rows = [
        tag(
            "tr",
            tag("th", name, tag("small", meaning), scope="row"),
            [tag("td", "\u2013" if (v := f.get(key)) is None else _figure_of(key, v), class_="num") for f in flat],
        )
        for key, (name, meaning) in MEASURES.items()
        if any(f.get(key) is not None for f in flat)
    ]
    if not rows:
        return Markup()
    head = [tag("th", "Features of held-out images, no labels needed", scope="col")]
    head += [tag("th", s.name, scope="col", class_="num") for s in records]
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", rows))
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Measures without labels")
