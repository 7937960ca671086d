"""`barlow demo`: the main job from end to end on data that is embedded, in minutes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from barlow.evaluation import KNN, FewShot, Linear, Result, evaluate
from barlow.files import check_outputs
from barlow.methods import method_class
from barlow.report import report
from barlow.report.command import PAGE
from barlow.run import Run
from barlow.tables import BOLD, INTERVALS, comparison, score_of
from barlow.training.pretrain import pretrain

DATA = "digits"
PROTOCOLS = (KNN(), Linear(), FewShot(1), FewShot(5))
SETTINGS: dict[str, Any] = {
    "encoder": "whitenet",
    "projector": (512, 512),
    "epochs": 28,
    "batch_size": 64,  # of 1,295 digits: 20 steps an epoch
    "validate_every": 5,
}
METHODS = ("barlow-twins", "mixed-barlow-twins")


def run_demo(
    out: Path, *, seed: int = 0, overwrite: bool = False, quiet: bool = False, **settings: Any
) -> list[Result]:
    """Pretrain both methods on the digits, measure them beside raw pixels and a random encoder, write a report.

    What an interrupted demo left in `out` is continued, unless `overwrite`. `settings` are laid over the demo's own.
    Returns the results of both methods, in the order of `METHODS`.
    """
    console = Console(quiet=quiet)
    runs: list[Run] = []
    results: list[list[Result]] = []
    check_outputs([out / PAGE], overwrite=overwrite)
    for method in METHODS:
        console.print(f"\n{method_class(method).title} on {DATA}", style="bold")
        chosen = {**SETTINGS, **settings, "method": method, "seed": seed}
        folder = out / method
        runs.append(pretrain(DATA, folder, resume=not overwrite, overwrite=overwrite, quiet=quiet, **chosen))
        results.append(_measured(runs[-1], seed, results[0] if results else None))
    console.print(_table(results))
    first = results[0][0]
    console.print(f"{first.n} digits scored, {first.split}; few-shot: mean of {FewShot().draws} draws")
    console.print(f"{INTERVALS}. {BOLD} in its column")
    page = report([run.path for run in runs], out=out / PAGE, overwrite=overwrite)
    console.print(f"report: {page}", markup=False, soft_wrap=True)
    return [result for per_run in results for result in per_run]


def _measured(run: Run, seed: int, other: list[Result] | None) -> list[Result]:
    """The scores of a run. Its baselines are those of the `other` one, which has the same data, seed and encoder."""
    if other is None:
        return evaluate(run, DATA, PROTOCOLS, seed=seed)
    alone = evaluate(run, DATA, PROTOCOLS, seed=seed, baselines=(), save=False)
    results = [replace(mine, baselines=its.baselines) for mine, its in zip(alone, other, strict=True)]
    for result in results:
        run.save_evaluation(result.to_dict())
    return results


def _table(results: list[list[Result]]) -> Any:
    plain = results[0]
    baselines = [(name, [result.baselines.get(key) for result in plain]) for key, name in BASELINES.items()]
    trained = [
        (method_class(method).title, [score_of(r) for r in per_run])
        for method, per_run in zip(METHODS, results, strict=True)
    ]
    return comparison([result.title for result in plain], [*baselines, *trained])


BASELINES = {"raw-pixels": "raw pixels", "random-init": "random-init encoder, 3 seeds"}
