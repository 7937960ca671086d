"""`barlow study`: plan, run what is not there yet, write tables, figure and findings."""

import platform
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from barlow.data import Source, open_source
from barlow.errors import InputError, suggest, tell
from barlow.files import write_text
from barlow.plan import environment, split_indices
from barlow.run import Run
from barlow.studies.catalogue import STUDIES
from barlow.studies.cell import Data, Outcome, folder_of, look_up
from barlow.studies.figures import draw
from barlow.studies.findings import findings_page, verdicts
from barlow.studies.launch import launch
from barlow.studies.metrics import METRICS, measured_of
from barlow.studies.plan import StudyPlan, make_plan, share_of
from barlow.studies.results import StudyResults, long_table, markdown, save_parquet
from barlow.studies.study import Study

TABLE, FIGURE, FINDINGS, ROWS = "table.md", "figure.svg", "findings.md", "results.parquet"


def run_study(
    name: str,
    data: Data,
    out: str | Path,
    *,
    seeds: int = 3,
    settings: Mapping[str, Any] | None = None,
    budget: str = "full",
    cells: str = "",
    launch_on: str = "local",
    launch_with: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> StudyResults:
    """Run a study's cells that are not finished in `out`, and write its results there.

    `name` is one of `STUDIES`; `data` is what `barlow.pretrain` takes. `settings` choose levels of the study's axes by
    name, or set what all cells have in common (`barlow.studies.settings.apply`); `budget` is one of `BUDGETS`;
    `cells` "i/n" runs a share of the cells only. `out` holds a run folder per cell under `cells/`, named by the hash
    of its config and data, and results.parquet, table.md, figure.svg and findings.md, written also when cells are
    missing.

    Raises InputError for unknown names, values, or data; a cell that fails does not end the study, see
    `StudyResults.failed`.
    """
    study, folder, say = find_study(name), Path(out), _sayer(quiet)
    source = _open(data, settings or {})
    plan = make_plan(study, source, seeds=seeds, settings=settings, budget=budget)
    chosen, wanted = share_of(plan.cells, cells), measured_of(study)
    known = {cell.key: look_up(folder, cell, wanted) for cell in plan.cells}
    left = [cell for cell in chosen if known[cell.key].status in ("pending", "failed")]
    _make_folder(folder)
    _announce(plan, known, len(chosen), len(left), say)
    command = _command(name, source.name, folder, seeds, settings or {}, budget)
    here: dict[str, Outcome] = {}
    started = time.perf_counter()
    try:
        where = launch(launch_on, folder, left, source if launch_on == "local" else data, wanted, launch_with or {})
        for done, outcome in enumerate(where, 1):
            here[outcome.cell.key] = outcome
            say(_progress(outcome, done, len(left), time.perf_counter() - started, study))
    finally:
        # Looked up again: other shares may have finished cells meanwhile.
        found = (here.get(cell.key) or look_up(folder, cell, wanted) for cell in plan.cells)
        results = StudyResults(plan, tuple(found))
        write_results(results, folder, source, command)
    say(f"results    {folder / TABLE}, {folder / FIGURE}, {folder / FINDINGS}, {folder / ROWS}")
    return results


def find_study(name: str) -> Study:
    """The study of that name. InputError with the nearest one, or all."""
    if name not in STUDIES:
        raise InputError(f"unknown study '{name}'. {suggest(name, STUDIES)}")
    return STUDIES[name]


def _sayer(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else tell


def _open(data: Data, settings: Mapping[str, Any]) -> Source:
    if isinstance(data, Source):
        return data
    channels = settings.get("channels")
    return open_source(data, split=settings.get("split"), channels=None if channels is None else int(channels))


def _make_folder(folder: Path) -> None:
    foreign = [name for name in (TABLE, FIGURE, FINDINGS, ROWS) if (folder / name).exists()]
    if foreign and not (folder / "cells").is_dir():
        raise InputError(f"{folder / foreign[0]} exists and is not of a study; choose another --out")
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None


def _announce(plan: StudyPlan, known: Mapping[str, Outcome], share: int, left: int, say: Callable[[str], None]) -> None:
    say(f"study      {plan.study.name}: {plan.study.question}")
    for axis in plan.axes:
        say(f"axis       {axis.name}: {', '.join(axis.levels)}")
    counts = [f"{sum(o.status == status for o in known.values())} {status}" for status in ("finished", "skipped")]
    say(f"cells      {len(plan.cells)}, {', '.join(counts)}; {left} to run here" + _of_share(share, len(plan.cells)))
    for reason in dict.fromkeys(o.reason for o in known.values() if o.status == "skipped"):
        say(f"skipped    {reason}")


def _of_share(share: int, total: int) -> str:
    return f" of a share of {share}" if share < total else ""


def _progress(outcome: Outcome, done: int, total: int, elapsed: float, study: Study) -> str:
    said = outcome.reason
    if outcome.status == "finished":
        metric = next((name for name in study.metrics if isinstance(outcome.measured.get(name), float)), None)
        score = "" if metric is None else f", {METRICS[metric].title} {METRICS[metric].show(outcome.measured[metric])}"
        said = f"{outcome.wall_s:.1f} s{score}"
    left = f"; about {elapsed / done * (total - done):.0f} s left" if done < total else ""
    return f"cell {done}/{total}  {outcome.cell.label}: {outcome.status}, {said}{left}"


def write_results(results: StudyResults, out: Path, source: Source, command: str) -> None:
    """The four files of results, of whatever is finished."""
    conditions = _conditions(results, out, source, command)
    caption = " ".join(f"{name}: {text}." for name, text in conditions.items())
    save_parquet(results, out / ROWS)
    write_text(out / TABLE, markdown(results, caption))
    write_text(out / FIGURE, draw(results) + "\n")
    write_text(out / FINDINGS, findings_page(results, conditions))


def _conditions(results: StudyResults, out: Path, source: Source, command: str) -> dict[str, str]:
    first, finished = results.outcomes[0].cell, results.having("finished")
    train, held = split_indices(first.config, source)
    seeds = len({outcome.cell.seed for outcome in results.outcomes})
    split = (
        f"{len(held):,} of the {len(source):,} samples of {source.name}, held out by every run (drawn from its seed)"
    )
    runs = [Run(folder_of(out, outcome.cell)) for outcome in finished]
    return {
        "Command": f"`{command}`",
        "Scored": f"{split}, after training on {len(train):,}; no test split is read; k-NN: k 20, T .07, cosine",
        "Table": f"mean ± standard deviation over {seeds} seeds",
        "Cells": f"{len(finished)} of {len(results.outcomes)} finished, {sum(o.wall_s for o in finished):.0f} s in all",
        "Hardware": hardware(run.facts for run in runs) if runs else "nothing has run",
    }


def hardware(facts: Iterable[Mapping[str, Any]]) -> str:
    """What runs were made on, each kind once, from their run.json."""
    here = environment()
    return ". Also: ".join(dict.fromkeys(_machine(of["environment"], of, here) for of in facts))


def _machine(made_on: Mapping[str, Any], facts: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """One machine. Runs do not record the processor's name: it is this one's where platform and cores are."""
    same = all(made_on.get(name) == here[name] for name in ("platform", "cores"))
    processor = _processor() if same else made_on.get("machine", "processor not recorded")
    on_gpu = made_on["gpus"] and facts["device"] != "cpu"
    parts = [", ".join(made_on["gpus"]) if on_gpu else processor, f"{made_on['cores']} cores"]
    threads = made_on.get("threads")
    parts += [f"{threads} thread{'s' * (threads > 1)}"] if threads else []
    return f"{', '.join(parts)}; torch {made_on['torch']}, {facts['precision']}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _command(name: str, data: str, out: Path, seeds: int, settings: Mapping[str, Any], budget: str) -> str:
    parts = ["barlow", "study", name, data, "--out", str(out), "--seeds", str(seeds), "--budget", budget]
    for key, value in settings.items():
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        parts += ["--set", f"{key}={text}"]
    return shlex.join(parts)


def overview() -> Sequence[str]:
    """One line per study."""
    width = max(map(len, STUDIES))
    return [f"{name:<{width}}  {study.question}" for name, study in STUDIES.items()]


def report_on(results: StudyResults) -> list[str]:
    """The table and the verdicts, for a terminal."""
    return [*long_table(results), "", *verdicts(results.findings())]
