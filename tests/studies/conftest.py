"""Studies small enough to run in a test, and a stand-in for pretraining that only leaves a run folder behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from barlow.config import PretrainConfig, config_to_dict
from barlow.data import Source, open_source
from barlow.errors import InputError
from barlow.files import write_json
from barlow.models import Encoder, build_encoder
from barlow.plan import environment, make_plan, plan_from_dict
from barlow.run import Run
from barlow.studies import STUDIES, Axis, Claim, Figure, Study, difference, numeric_axis

TINY = Study(
    name="tiny",
    question="Is more lambda & <more> mixing better?",
    source="Nowhere",
    axes=(
        numeric_axis("lambd", "lambda", (0.01, 0.1), lambda value: {"lambd": value}),
        Axis("method", "method", {"plain": {}, "mixed": {"method": "mixed-barlow-twins"}}),
    ),
    metrics=("knn", "heldout_loss", "knn_curve"),
    figure=Figure("lines", ("knn_curve",), series="lambd", panels="method"),
    claims=(Claim("Mixing helps.", "1 -> 2.", "knn", difference({"method": "mixed"}, {"method": "plain"})),),
    settings={"encoder": "resnet10-narrow", "projector": (16, 16), "epochs": 2, "batch_size": 16, "holdout": 0.25},
    columns="method",
)


@pytest.fixture
def source() -> Source:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (64, 16, 16), dtype=np.uint8)
    opened = open_source(images)
    opened.labels, opened.classes = np.arange(64) % 2, ("even", "odd")
    return opened


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr("barlow.studies.runner.STUDIES", {**STUDIES, "tiny": TINY})
    return TINY


class FakePretrain:
    """Leaves the folder of a finished run whose k-NN is known: .4 untrained, then .5; mixing adds .1, a seed .01."""

    def __init__(self) -> None:
        self.ran: list[PretrainConfig] = []
        self.state: Callable[[PretrainConfig], str] = lambda config: "healthy"
        self.fails: Callable[[PretrainConfig], bool] = lambda config: False

    def __call__(self, source: Source, folder: Path, *, config: PretrainConfig, **_: Any) -> Run:
        self.ran.append(config)
        if self.fails(config):
            raise InputError("the loss is not finite | <at> step 3")
        write_json(folder / "config.json", config_to_dict(config))
        facts = {**make_plan(config, source).to_dict(), "environment": environment(), "status": "finished"}
        write_json(folder / "run.json", facts)
        write_json(folder / "health.json", {"verdict": {"state": self.state(config), "text": ""}})
        knn = 0.5 + 0.1 * (config.objective.method != "barlow-twins") + 0.01 * config.training.seed
        lines = [
            {
                "kind": "validation",
                "step": i,
                "epoch": i,
                "knn": value,
                "heldout_loss": 3.0 - i,
                "train_loss": 2.0 - i / 2,
            }
            for i, value in enumerate((0.4, knn + 0.05, knn))
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Run(folder)


def untrained(run: Run) -> Encoder:
    plan = plan_from_dict(run.facts)
    encoder = build_encoder("resnet10-narrow", channels=plan.channels, image_size=plan.image_size)
    encoder.preprocess = plan.preprocess()
    return encoder.eval()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePretrain:
    pretend = FakePretrain()
    monkeypatch.setattr("barlow.studies.cell.pretrain", pretend)
    monkeypatch.setattr(Run, "encoder", untrained)
    return pretend
