"""Where the cells run: one after the other in this process, as Slurm jobs, or as Ray tasks."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from barlow.errors import InputError, suggest
from barlow.files import user_path
from barlow.studies.cell import Data, Outcome, look_up, run_cell
from barlow.studies.plan import Cell

LAUNCHERS = ("local", "slurm", "ray")


def launch(
    where: str, out: Path, cells: Sequence[Cell], data: Data, wanted: tuple[str, ...], options: Mapping[str, Any]
) -> Iterator[Outcome]:
    """The outcome of each cell as it ends. Jobs elsewhere open `data` themselves and share the folder `out`.

    `options` are what submitit's `update_parameters` takes (slurm) or a remote function's `options` (ray). Raises
    InputError for an unknown launcher, one that is not installed, or options that belong to none.
    """
    if where not in LAUNCHERS:
        raise InputError(f"unknown launcher '{where}'. {suggest(where, LAUNCHERS)}")
    if where == "local":
        if options:
            raise InputError("--launch-with is for slurm and ray; a local study has no such options")
        yield from (run_cell(out, cell, data, wanted) for cell in cells)
        return
    if not isinstance(data, str | Path):
        raise InputError(f"--launch {where} needs data that other processes can open: a path or the name of a data set")
    path = user_path(data)
    place = str(path.resolve() if path.exists() else data)
    start = _slurm if where == "slurm" else _ray
    yield from start(out.resolve(), cells, place, wanted, {name: _number(value) for name, value in options.items()})


def _number(value: Any) -> Any:
    """Text that is a number as that number, as Slurm's and Ray's options want it."""
    try:
        return int(value) if str(value).isdigit() else float(value)
    except (TypeError, ValueError):
        return value


def _slurm(
    out: Path, cells: Sequence[Cell], data: str, wanted: tuple[str, ...], options: Mapping[str, Any]
) -> Iterator[Outcome]:
    """One job array; where there is no Slurm, submitit runs its jobs as processes of this machine."""
    submitit = optional("submitit", "slurm")
    executor = submitit.AutoExecutor(folder=str(out / "slurm"))
    executor.update_parameters(**{"name": "barlow-study", "timeout_min": 24 * 60, **options})
    with executor.batch():
        jobs = [executor.submit(run_cell, out, cell, data, wanted) for cell in cells]
    for cell, job in zip(cells, jobs, strict=True):
        job.wait()
        yield job.result() if job.exception() is None else _lost(out, cell, wanted, str(job.exception()))


def _ray(
    out: Path, cells: Sequence[Cell], data: str, wanted: tuple[str, ...], options: Mapping[str, Any]
) -> Iterator[Outcome]:
    """One task per cell, on the cluster that RAY_ADDRESS names, or on one started here."""
    ray = optional("ray", "ray")
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    task = ray.remote(run_cell).options(**{"num_cpus": 1, "max_retries": 1, **options})
    waiting = {task.remote(out, cell, data, wanted): cell for cell in cells}
    while waiting:
        done, _ = ray.wait(list(waiting))
        cell = waiting.pop(done[0])
        try:
            yield ray.get(done[0])
        except ray.exceptions.RayError as error:
            yield _lost(out, cell, wanted, str(error))


def _lost(out: Path, cell: Cell, wanted: tuple[str, ...], reason: str) -> Outcome:
    """A job that died: what it left on the disk counts."""
    known = look_up(out, cell, wanted)
    if known.status != "pending":
        return known
    last = (reason.strip().splitlines() or ["no reason was given"])[-1]
    return Outcome(cell, "failed", f"the job died: {last}", fresh=True)


def optional(module: str, extra: str) -> ModuleType:
    """A package that an extra brings."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{module} is not installed: pip install 'barlow[{extra}]'") from None
