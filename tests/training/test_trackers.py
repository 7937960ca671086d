"""The metrics file across kills and resumes, and what each tracker is told."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from barlow.errors import InputError
from barlow.training.trackers import MetricsLog, TensorBoard, open_trackers


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def step_line(step: int) -> dict[str, Any]:
    return {"kind": "step", "step": step, "loss": 1.0 / step}


def written(path: Path, steps: range) -> MetricsLog:
    log = MetricsLog(path)
    for step in steps:
        log.log(step_line(step))
    return log


def test_a_line_is_on_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = written(path, range(1, 3))
    assert lines(path) == [step_line(1), step_line(2)]  # not closed, as after a kill
    log.close()


@pytest.mark.parametrize("torn", ["", '{"kind": "step", "st', '{"kind": "step", "step": 3, "loss": 0.1}', "\n\n[]\n"])
def test_resume_leaves_every_line_up_to_the_checkpoint_once(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, range(1, 10)).close()
    with path.open("a") as file:
        file.write(torn)
    resumed = MetricsLog(path, resume_step=6)
    for step in range(7, 13):
        resumed.log(step_line(step))
    resumed.sync()
    resumed.close()
    assert lines(path) == [step_line(step) for step in range(1, 13)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_epoch_and_validation_lines_of_the_checkpoints_step_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    kept: list[dict[str, Any]] = [step_line(4), {"kind": "epoch", "epoch": 1, "step": 4}]
    for line in [*kept, step_line(5)]:
        log.log(line)
    log.close()
    MetricsLog(path, resume_step=4).close()
    assert lines(path) == kept


def test_a_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, range(1, 4)).close()
    MetricsLog(path).close()
    assert path.read_text() == ""


def test_a_value_that_is_not_finite_is_null_so_that_every_line_is_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log({"kind": "step", "step": 1, "loss": float("nan"), "lr": float("inf")})
    log.close()
    assert lines(tmp_path / "metrics.jsonl") == [{"kind": "step", "step": 1, "loss": None, "lr": None}]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_back_each_step_once_after_a_resume(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        first.log({"kind": "step", "step": step, "loss": float(step), "note": "text", "flag": True})
    first.close()
    second = TensorBoard(tmp_path, resume_step=2)
    for step in (3, 4):
        second.log({"kind": "step", "step": step, "loss": 10.0 * step})
    second.close()
    assert scalars(tmp_path, "step/loss") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


class Recorder(ModuleType):
    """Stands in for wandb and mlflow: remembers every call."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.calls: list[tuple[str, Any]] = []

    def init(self, **settings: Any) -> Any:
        self.calls.append(("init", settings["id"]))
        return SimpleNamespace(id="w1", log=self.log, finish=lambda: self.calls.append(("finish", None)))

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", (values, step)))

    log_metrics = log

    def start_run(self, run_id: str | None, run_name: str) -> Any:
        self.calls.append(("start_run", (run_id, run_name)))
        return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

    def log_params(self, params: dict[str, str]) -> None:
        self.calls.append(("log_params", params))

    def end_run(self) -> None:
        self.calls.append(("end_run", None))


def session(folder: Path, name: str, resume_step: int | None) -> None:
    trackers = open_trackers([name], folder, config={"seed": 0, "data": {"path": "x"}}, resume_step=resume_step)
    for tracker in trackers:
        tracker.log(step_line(1))
        tracker.close()


def test_wandb_is_told_each_line_and_resumed_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    session(tmp_path, "wandb", None)
    session(tmp_path, "wandb", 1)
    session(tmp_path, "wandb", None)
    log: list[tuple[str, Any]] = [("log", ({"step/loss": 1.0}, 1)), ("finish", None)]
    assert wandb.calls == [("init", None), *log, ("init", "w1"), *log, ("init", None), *log]


def test_mlflow_is_told_settings_once_and_resumed_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    session(tmp_path, "mlflow", None)
    session(tmp_path, "mlflow", 1)
    log: list[tuple[str, Any]] = [("log", ({"step/loss": 1.0}, 1)), ("end_run", None)]
    begin = [("start_run", (None, tmp_path.name)), ("log_params", {"seed": "0", "data.path": "x"})]
    assert mlflow.calls == [*begin, *log, ("start_run", ("m1", tmp_path.name)), *log]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_tracker_is_one_line_and_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"^tracker '{name}' is not installed: pip install 'barlow\[{name}\]'\.$"):
        open_trackers([name], tmp_path, config={})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'wandb'"):
        open_trackers(["wanbd"], tmp_path, config={})
