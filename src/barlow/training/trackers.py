"""Where a run's numbers go: metrics.jsonl and TensorBoard always, Weights & Biases and MLflow when asked."""

import importlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from barlow.errors import InputError, suggest
from barlow.files import write_bytes

TRACKERS = ("wandb", "mlflow")

Line = Mapping[str, Any]  # {"kind": "step" | "epoch" | "validation", "step": int, name: number, ...}


class Tracker(Protocol):
    """Takes a run's lines in the order of their steps."""

    def log(self, line: Line) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """metrics.jsonl: one JSON object per line, on the disk's side of a crash of the process as soon as it is logged.

    resume_step: the step of the checkpoint that the run continues from; later lines and a torn last line go, so that
    none is doubled. None is missing either when every line up to a step is logged, and `sync` called, before that
    step's checkpoint is written. None starts an empty file. A value that is not finite becomes null. A line that cannot
    be written raises OSError, is cut off again, and is written before the next one.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        if resume_step is None:
            path.unlink(missing_ok=True)
        elif path.exists():
            _keep_until(path, resume_step)
        self._path, self._file, self._pending = path, path.open("ab", buffering=0), b""

    def log(self, line: Line) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._pending += json.dumps(finite, allow_nan=False).encode() + b"\n"
        self._write()

    def _write(self) -> None:
        end = os.fstat(self._file.fileno()).st_size
        left = self._pending
        try:
            while left:  # one call may write a part only
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(end)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._pending = b""

    def sync(self) -> None:
        """Return once all lines would survive a power cut."""
        self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines after `step` and those that are not whole, in one atomic step."""
    with path.open("rb") as file:
        kept = [line for line in file if (of := _step_of(line)) is not None and of <= step]
    write_bytes(path, b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """A whole line's step; None for a torn one."""
    if not line.endswith(b"\n"):
        return None
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


class TensorBoard:
    """Event files in `folder`; what was written after `resume_step` is hidden there."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: the import takes a while

        purge = None if resume_step is None else resume_step + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge)

    def log(self, line: Line) -> None:
        for name, value in numbers(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run on Weights & Biases, in the project "barlow" unless WANDB_PROJECT names another; resumed by its id."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resume_step: int | None = None) -> None:
        wandb = _optional("wandb")
        project = os.environ.get("WANDB_PROJECT", "barlow")
        run_id = _remembered(folder / "wandb-id.txt") if resume_step is not None else None
        self._run = wandb.init(
            project=project, name=folder.name, dir=str(folder), config=dict(config), id=run_id, resume="allow"
        )
        (folder / "wandb-id.txt").write_text(self._run.id)

    def log(self, line: Line) -> None:
        # Steps that a resumed run repeats are dropped by the server; they are equal to the ones it has.
        self._run.log(numbers(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run in MLflow, where MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say; resumed by its id."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resume_step: int | None = None) -> None:
        self._mlflow = _optional("mlflow")
        run_id = _remembered(folder / "mlflow-id.txt") if resume_step is not None else None
        run = self._mlflow.start_run(run_id=run_id, run_name=folder.name)
        (folder / "mlflow-id.txt").write_text(run.info.run_id)
        if run_id is None:
            self._mlflow.log_params({key: str(value) for key, value in _flat(config).items()})

    def log(self, line: Line) -> None:
        self._mlflow.log_metrics(numbers(line), step=line["step"])

    def close(self) -> None:
        self._mlflow.end_run()


def open_trackers(
    names: Sequence[str], folder: Path, *, config: Mapping[str, Any], resume_step: int | None = None
) -> list[Tracker]:
    """TensorBoard in `folder`/tensorboard, then the trackers asked for: "wandb", "mlflow".

    Raises InputError for an unknown name or a tracker that is not installed, before anything is opened.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"unknown tracker '{name}'. {suggest(name, TRACKERS)}")
        _optional(name)
    trackers: list[Tracker] = [TensorBoard(folder / "tensorboard", resume_step)]
    if "wandb" in names:
        trackers.append(WeightsAndBiases(folder, config, resume_step))
    if "mlflow" in names:
        trackers.append(MLflow(folder, config, resume_step))
    return trackers


def numbers(line: Line) -> dict[str, float]:
    """The numeric values of a line under "kind/name", without the step."""
    return {
        f"{line['kind']}/{name}": float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _optional(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"tracker '{name}' is not installed: pip install 'barlow[{name}]'.") from error


def _remembered(path: Path) -> str | None:
    return path.read_text().strip() if path.exists() else None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"part.field": value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
