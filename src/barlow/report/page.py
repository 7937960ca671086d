"""`barlow report`: one self-contained HTML page from run folders."""

import base64
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from barlow.errors import InputError
from barlow.files import COMMENT, write_text
from barlow.numbers import flat, plain
from barlow.report import evidence, health, pictures
from barlow.report.markup import Child, join, tag
from barlow.report.record import RunRecord, method, read_record

if TYPE_CHECKING:
    from barlow.run import Run

MOST_RUNS = 8  # as many as there are series colours
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PAGES = Environment(loader=PackageLoader("barlow.report"), autoescape=True, undefined=StrictUndefined)


def write_report(runs: "Sequence[Run]", out: Path) -> Path:
    """Write the page that tells, of one run or several side by side: is the encoder good, is it healthy, what
    was trained on what. It needs no network and no other file. Returns `out`.

    Pictures come from `make_gallery`; what a run lacks, the page says, with the command that adds it.
    Raises InputError for no runs or too many, or a damaged run folder.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise InputError(f"a report shows 1 to {MOST_RUNS} runs, got {len(runs)}; name fewer run folders")
    page = render([read_record(run, colour) for colour, run in enumerate(runs)])
    write_text(out, page + COMMENT)
    return out


def render(records: Sequence[RunRecord]) -> str:
    """The page. Its security policy lets nothing run but the page's own script, and nothing load from anywhere."""
    script = file("page.js")
    return PAGES.get_template("page.html").render(
        title=" · ".join(record.name for record in records),
        policy=f"{POLICY}; script-src {script_source(script)}",
        style=Markup(file("page.css") + pictures.atlas_style(records)),
        body=_body(records),
        galleries=pictures.gallery_data(records),
        script=Markup(script),
    )


def script_source(script: str) -> str:
    """The source expression of a content security policy that allows this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def file(name: str) -> str:
    """A style or a script of this package."""
    return resources.files("barlow.report").joinpath(name).read_text(encoding="utf-8")


def _body(records: Sequence[RunRecord]) -> Markup:
    return join([_head(records), _good(records), _healthy(records), _trained(records), _foot()])


def _head(records: Sequence[RunRecord]) -> Markup:
    rows = [_in_short(s, named=len(records) > 1) for s in records]
    contents = [("good", "Is it good?"), ("healthy", "Is it healthy?"), ("trained", "What was trained on what?")]
    links = [tag("a", name, href=f"#{target}") for target, name in contents]
    return tag(
        "header",
        tag("div", tag("span", "barlow report"), tag("nav", links, aria_label="Contents"), class_="top"),
        tag("h1", f"{len(records)} runs side by side" if len(records) > 1 else records[0].name),
        rows,
    )


def _in_short(record: RunRecord, named: bool) -> Markup:
    state, score = evidence.quality_line(record)
    verdict, words = health.verdict_of(record)
    lines = [
        ("Good?", health.tone(state), score),
        ("Healthy?", health.tone(verdict), health.leading(words) if words else Markup("not checked yet")),
        ("Trained", "", join([_sentence(record)])),
    ]
    return tag(
        "section",
        tag("h2", record.name, class_=f"key s{record.colour}") if named else None,
        tag(
            "dl", [tag("div", tag("dt", name), tag("dd", words, class_=f"tone {tone}")) for name, tone, words in lines]
        ),
        class_="short",
        aria_label=f"{record.name} in short",
    )


def _sentence(record: RunRecord) -> str:
    """What was trained on what, in one sentence."""
    facts = record.facts
    images = f"{facts['n']:,} samples" if "n" in facts else "samples"
    data = f" of {facts['data_name']}" if facts.get("data_name") else ""
    size = f", {facts['image_size']} pixels" if facts.get("image_size") else ""
    status = facts.get("status", "unknown")
    ending = "" if status == "finished" else f" Status: {status}."
    epochs = record.setting("training", "epochs")
    encoder = (record.encoder and record.encoder["architecture"].get("name")) or record.setting("model", "encoder")
    return f"{encoder} with {method(record)} on {images}{data}{size}, {epochs} epochs{evidence.took(record)}.{ending}"


def _section(identifier: str, name: str, *parts: Child) -> Markup:
    return tag("section", tag("h2", name), parts, id=identifier)


def _good(records: Sequence[RunRecord]) -> Markup:
    return _section(
        "good",
        "Is the encoder good?",
        evidence.scores(records),
        tag("h3", "See for yourself"),
        pictures.maps(records),
        pictures.strips(records),
    )


def _healthy(records: Sequence[RunRecord]) -> Markup:
    return _section(
        "healthy",
        "Is it healthy?",
        health.verdicts(records),
        evidence.key(records),
        tag(
            "div",
            health.curves(records),
            health.spectrum(records),
            health.mixing(records),
            health.correlations(records),
            class_="grid2",
        ),
        health.measures(records),
    )


def _trained(records: Sequence[RunRecord]) -> Markup:
    return _section(
        "trained",
        "What was trained on what?",
        [tag("p", tag("b", f"{s.name}: ") if len(records) > 1 else None, _sentence(s)) for s in records],
        pictures.views(records),
        pictures.curiosities(records),
        evidence.speed(records),
        _comparison("Settings", [flat(s.config) for s in records], records),
        _comparison(
            "Data, views, encoder, environment", [flat(s.facts) | flat(s.encoder or {}) for s in records], records
        ),
    )


def _comparison(name: str, columns: Sequence[Mapping[str, Any]], records: Sequence[RunRecord]) -> Markup:
    """One row per setting, one column per run; rows in which the runs differ stand out and come first."""
    names = list(dict.fromkeys(key for column in columns for key in column))
    if not names:
        return tag("p", f"{name}: nothing was recorded.", class_="absent")
    differ = [key for key in names if len({column.get(key) for column in columns}) > 1]
    order = differ + [key for key in names if key not in differ]
    rows = [
        tag(
            "tr",
            tag("th", key, scope="row"),
            [tag("td", plain(c.get(key))) for c in columns],
            class_="differs" if key in differ else None,
        )
        for key in order
    ]
    head = tag("thead", tag("tr", tag("th", "Name", scope="col"), [tag("th", s.name, scope="col") for s in records]))
    table = tag(
        "div", tag("table", head, tag("tbody", rows)), class_="scroll", tabindex="0", role="region", aria_label=name
    )
    note = f" ({len(differ)} differ)" if len(records) > 1 else f" ({len(names)})"
    return tag("details", tag("summary", name, tag("small", note)), table)


def _foot() -> Markup:
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return tag("footer", f"Written {today} by barlow. Intervals are 95% unless a protocol says otherwise.")
