"""findings.md: what a study says of each claim of the papers, and under what conditions."""

from collections.abc import Mapping, Sequence

from barlow.studies.claims import LEVEL, Finding
from barlow.studies.metrics import METRICS, Metric
from barlow.studies.results import StudyResults, beside_scores, escape


def findings_page(results: StudyResults, conditions: Mapping[str, str]) -> str:
    """The page: conditions, then one section per claim."""
    study = results.plan.study
    left = len(results.outcomes) - len(results.having("finished"))
    parts = [f"# Findings: {study.name}", f"{study.question} {study.source}."]
    if not results.complete:
        parts.append(f"**Not complete: {left} of {len(results.outcomes)} cells have no results.**")
    parts.append("\n".join(f"- {name}: {escape(text)}" for name, text in conditions.items()))
    parts.append(
        f"Intervals: {LEVEL:.0%}, over seeds: Welch's, from the spread of each cell that is compared, with "
        "Satterthwaite's degrees of freedom; of a mean, Student's, from the spread of the seeds' means. A claim is "
        "confirmed when the whole interval lies where the claim puts it, not confirmed when it lies outside, and else "
        "not resolvable at this budget. The intervals are not corrected for there being several claims."
    )
    parts += beside_scores(results)
    parts += [_section(number, finding) for number, finding in enumerate(results.findings(), 1)]
    return "\n\n".join(parts) + "\n"


def _section(number: int, finding: Finding) -> str:
    claim, metric = finding.claim, METRICS[finding.claim.metric]
    lines = [f"## {number}. {claim.text}", f"**{finding.verdict[0].upper()}{finding.verdict[1:]}.** {_said(finding)}"]
    asked = [f"above {_figure(metric, claim.above)}"] if claim.above is not None else []
    asked += [f"below {_figure(metric, claim.below)}"] if claim.below is not None else []
    lines.append(f"Measured: {metric.label}; the claim asks for a contrast {' and '.join(asked)}.")
    lines += [f"{_compared(finding)}."] if finding.compared else []
    return "\n\n".join([*lines, f"The papers: {claim.figures}"])


def _compared(finding: Finding) -> str:
    return f"Compared: {escape(finding.compared)}"


def _said(finding: Finding) -> str:
    metric = METRICS[finding.claim.metric]
    if finding.estimate is None:
        return f"{finding.reason[0].upper()}{finding.reason[1:]}."
    if finding.interval is None:
        return f"Contrast {_signed(metric, finding.estimate)}; {finding.reason}."
    low, high = (_signed(metric, end) for end in finding.interval)
    return f"Contrast {_signed(metric, finding.estimate)} ({low} to {high}), {finding.seeds} seeds."


def _signed(metric: Metric, value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{_figure(metric, abs(value))}"


def _figure(metric: Metric, value: float) -> str:
    unit = "points" if metric.scale == 100 else metric.unit
    sign = "-" if value < 0 else ""
    return f"{sign}{metric.show(abs(value))} {unit}".rstrip()


def verdicts(findings: Sequence[Finding]) -> list[str]:
    """One line per claim, for a terminal."""
    return [" ".join(filter(None, _line(finding))) for finding in findings]


def _line(finding: Finding) -> tuple[str, str]:
    return (
        f"{finding.verdict}: {finding.claim.text} {_said(finding)}",
        f"Compared: {finding.compared}." if finding.compared else "",
    )
