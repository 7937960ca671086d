"""`barlow report`: one self-contained HTML page from run folders."""

import base64
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from shlex import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from barlow.errors import InputError
from barlow.files import COMMENT, write_text
from barlow.numbers import flat, plain
from barlow.report import evidence, health, pictures
from barlow.report.record import RunRecord, method, read_record
from barlow.run import Run

MOST_RUNS = 8  # as many as there are series colours
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PAGES = Environment(
    loader=PackageLoader("barlow.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(runs: Sequence[Run], out: Path) -> Path:
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
    data = [flat(record.facts) | flat(record.encoder or {}) for record in records]
    return PAGES.get_template("page.html").render(
        records=records,
        several=len(records) > 1,
        title=" · ".join(record.name for record in records),
        policy=f"{POLICY}; script-src {script_source(script)}",
        style=Markup(file("page.css") + pictures.atlas_style(records)),
        script=Markup(script),
        galleries=pictures.gallery_data(records),
        comparisons=[
            ("Settings", _compared([flat(record.config) for record in records])),
            ("Data, views, encoder, environment", _compared(data)),
        ],
        now=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        evidence=evidence,
        health=health,
        pictures=pictures,
        sentence=_sentence,
        quote=quote,
    )


def script_source(script: str) -> str:
    """The source expression of a content security policy that allows this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def file(name: str) -> str:
    """A style or a script of this package."""
    return resources.files("barlow.report").joinpath(name).read_text(encoding="utf-8")


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


def _compared(columns: Sequence[Mapping[str, str]]) -> list[tuple[str, bool, list[str]]]:
    """(name, whether the runs differ in it, value per run) of every setting; those that differ come first."""
    names = dict.fromkeys(key for column in columns for key in column)
    rows = [(name, [plain(column.get(name)) for column in columns]) for name in names]
    return sorted(((name, len(set(values)) > 1, values) for name, values in rows), key=lambda row: not row[1])
