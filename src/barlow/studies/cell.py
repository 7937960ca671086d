"""One cell: train it, or continue it, or find it finished; measure it; leave a record."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from barlow.data import Source, open_source
from barlow.files import read_json, write_json
from barlow.run import Run
from barlow.studies.metrics import Measured, collect
from barlow.studies.plan import Cell
from barlow.training.pretrain import Interrupted, pretrain

RECORD = "study.json"
Status = Literal["finished", "failed", "skipped", "pending"]
Data = Any  # what open_source takes, or a source
LONGEST_REASON = 300


class Record(TypedDict):
    """study.json of a cell: what was measured, and the seconds it took."""

    measured: Measured
    wall_s: float


class Failure(TypedDict):
    """Why a cell could not be finished."""

    reason: str


@dataclass(frozen=True)
class Outcome:
    """What is known of a cell."""

    cell: Cell
    status: Status
    reason: str = ""
    measured: Measured = field(default_factory=dict)
    wall_s: float = 0.0
    """seconds of training and of measuring, over all attempts that ended"""
    fresh: bool = False
    """trained or measured just now"""


def folder_of(out: Path, cell: Cell) -> Path:
    """The cell's run folder."""
    return out / "cells" / cell.key


def look_up(out: Path, cell: Cell, wanted: Iterable[str]) -> Outcome:
    """What the disk says, without working. A record that lacks a wanted metric is not finished."""
    if cell.skipped:
        return Outcome(cell, "skipped", cell.skipped)
    record, failure = folder_of(out, cell) / RECORD, _failure_file(out, cell)
    if record.exists():
        content = read_json(record, Record)
        if set(wanted) <= set(content["measured"]):
            return Outcome(cell, "finished", measured=content["measured"], wall_s=content["wall_s"])
    if failure.exists():
        return Outcome(cell, "failed", read_json(failure, Failure)["reason"])
    return Outcome(cell, "pending", "not run yet")


def run_cell(out: Path, cell: Cell, data: Data, wanted: tuple[str, ...]) -> Outcome:
    """Do what is left to do of a cell. A failure is recorded and returned; an interruption is raised."""
    known = look_up(out, cell, wanted)
    if known.status in ("finished", "skipped"):
        return known
    started = time.perf_counter()
    folder, failure = folder_of(out, cell), _failure_file(out, cell)
    try:
        source = open_data(data, cell)
        run = _trained(folder, cell, source)
        earlier = _earlier(folder)
        missing = [name for name in wanted if name not in earlier["measured"]]
        measured = {**earlier["measured"], **collect(run, source, missing)}
    except Interrupted:
        raise
    except Exception as error:  # whatever one cell runs into, the others go on
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
        write_json(failure, {"key": cell.key, "levels": dict(cell.levels), "seed": cell.seed, "reason": reason})
        return Outcome(cell, "failed", reason, fresh=True)
    wall = earlier["wall_s"] + time.perf_counter() - started
    content = {"study": cell.study, "key": cell.key, "levels": dict(cell.levels), "seed": cell.seed}
    write_json(folder / RECORD, {**content, "measured": measured, "wall_s": round(wall, 3)})
    failure.unlink(missing_ok=True)
    return Outcome(cell, "finished", measured=measured, wall_s=wall, fresh=True)


def open_data(data: Data, cell: Cell) -> Source:
    """The cell's source; one that is open already is taken as it is."""
    if isinstance(data, Source):
        return data
    return open_source(data, split=cell.config.data.split, channels=cell.config.data.channels)


def _trained(folder: Path, cell: Cell, source: Source) -> Run:
    """The finished run: as it is, continued, or begun."""
    run = Run(folder) if (folder / "config.json").exists() else None
    if run is not None and run.facts.get("status") == "finished" and run.config == cell.config:
        return run
    return pretrain(source, folder, config=cell.config, resume=True, quiet=True)


def _earlier(folder: Path) -> Record:
    """The record as it is, to which metrics are added."""
    return read_json(folder / RECORD, Record) if (folder / RECORD).exists() else {"measured": {}, "wall_s": 0.0}


def _failure_file(out: Path, cell: Cell) -> Path:
    return out / "cells" / f"{cell.key}.failed.json"
