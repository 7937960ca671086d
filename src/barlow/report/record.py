"""A run folder read once, and how its values are put into words."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from barlow.evaluation import ahead, protocol_title
from barlow.files import read_json
from barlow.methods import METHODS, method_class
from barlow.models.files import FACTS as ENCODER
from barlow.records import EncoderRecord, Evaluation, Facts, Health
from barlow.report.charts import Line
from barlow.report.gallery import Gallery, read_gallery
from barlow.run import CONFIG, Run

BASELINES = {"random-init": "Random init", "raw-pixels": "Raw pixels"}


@dataclass(frozen=True)
class RunRecord:
    """All that the page tells of one run."""

    name: str
    path: str
    colour: int
    config: dict[str, dict[str, Any]]
    facts: Facts
    epochs: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    evaluations: list[Evaluation]
    health: Health
    encoder: EncoderRecord | None
    """architecture and preprocessing; None before the first encoder was saved"""
    gallery: Gallery | None

    def setting(self, section: str, name: str) -> Any:
        """One leaf of the configuration; None where an older version did not have it."""
        return self.config.get(section, {}).get(name)


def read_record(run: Run, colour: int) -> RunRecord:
    """Read the folder. The configuration is taken as it is, so that runs of older versions can be shown too."""
    lines = run.metrics()
    kinds = {kind: [line for line in lines if line["kind"] == kind] for kind in ("epoch", "step", "validation")}
    return RunRecord(
        name=run.name,
        path=str(run.path),
        colour=colour,
        config=read_json(run.path / CONFIG, dict[str, dict[str, Any]]),
        facts=run.facts,
        epochs=kinds["epoch"],
        steps=kinds["step"],
        validations=kinds["validation"],
        evaluations=run.evaluations(),
        health=run.health(),
        encoder=read_json(run.path / ENCODER, EncoderRecord) if (run.path / ENCODER).exists() else None,
        gallery=read_gallery(run.path),
    )


def training_lines(record: RunRecord) -> tuple[list[dict[str, Any]], str]:
    """The lines to draw training from, and their x: epochs, or steps while there are fewer than three epochs."""
    return (record.epochs, "epoch") if len(record.epochs) > 2 else (record.steps, "step")


def series(
    record: RunRecord, rows: Iterable[Mapping[str, Any]], x: str, y: str, name: str, dashed: bool = False
) -> Line:
    """One curve out of metric lines; lines without the value are left out."""
    points = [(float(row[x]), float(row[y])) for row in rows if row.get(y) is not None and x in row]
    return Line(name, [p[0] for p in points], [p[1] for p in points], record.colour, dashed)


def protocol_name(evaluation: Evaluation) -> str:
    """The protocol of an evaluation as people call it, a k-NN with its k and T."""
    return protocol_title(str(evaluation["protocol"]), evaluation.get("settings") or {})


def method(record: RunRecord) -> str:
    """The method's name as in its paper."""
    name = str(record.setting("objective", "method") or "unknown method")
    return method_class(name).title if name in METHODS else name


def outcome(evaluation: Evaluation) -> tuple[str, str]:
    """(state, words): is the encoder ahead of its baselines by more than the test images leave to chance?"""
    baselines = evaluation.get("baselines") or {}
    if not baselines:
        return "open", "no baseline was measured beside it"
    against = {BASELINES.get(name, name).lower(): ahead(evaluation, score) for name, score in baselines.items()}
    for side, state, words in ((-1, "bad", "behind"), (0, "open", "not clearly ahead of")):
        rivals = [name for name, standing in against.items() if standing == side]
        if rivals:
            return state, f"{words} {' and '.join(rivals)}"
    return "good", f"ahead of {' and '.join(against)}"


def best_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The evaluation that answers first: the linear probe, else k-NN, else whatever there is."""
    return min(evaluations, key=lambda e: protocol_order(protocol_name(e)), default=None)


def protocol_order(name: str) -> int:
    """The linear probe comes first, then every k-NN, then the others."""
    return 0 if name.startswith("linear probe") else 1 if name.startswith("k-NN") else 2
