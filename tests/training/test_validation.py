"""What a run measures of itself on held-out samples: the verdict looks back at every earlier validation."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from barlow.config import config_from_settings
from barlow.data import open_source
from barlow.plan import make_plan, split_indices
from barlow.run import Run
from barlow.training import validation
from barlow.training.pretrain import Interrupted, pretrain
from barlow.training.trainer import Trainer
from barlow.training.validation import Validator


def test_a_falling_knn_score_reaches_the_verdict_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are made up; what is tested is that the best earlier one is remembered, over a resume too."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.integers(0, 256, (64, 8, 8), dtype=np.uint8), y=np.arange(64) % 2)
    scores = iter((0.5, 0.95, 0.9, 0.7))

    def score(*_: object, **__: object) -> float:
        value = next(scores)
        if value == 0.95:
            os.kill(os.getpid(), signal.SIGTERM)
        return value

    monkeypatch.setattr(validation, "knn_accuracy", score)

    def train(resume: bool) -> Run:
        return pretrain(
            tmp_path / "data.npz",
            tmp_path / "run",
            resume=resume,
            epochs=3,
            validate_every=1,
            encoder="resnet10-narrow",
            projector=(16, 16),
            batch_size=16,
            device="cpu",
            quiet=True,
        )

    with pytest.raises(Interrupted):
        train(resume=False)
    run = train(resume=True)
    assert [line["knn"] for line in run.metrics("validation")] == [0.5, 0.95, 0.9, 0.7]
    evidence = run.health()["verdict"]["evidence"]
    assert (evidence["knn"], evidence["best_knn"]) == (0.7, 0.95)
    assert evidence["initial_loss"] == run.metrics("validation")[0]["heldout_loss"]


def test_the_verdict_is_told_while_training_when_it_changes_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    states = iter(("random", "slow", "slow", "good", "good"))  # before training, then after each epoch

    def health(*_: object, **__: object) -> dict[str, object]:
        state = next(states)
        return {"heldout_loss": 1.0, "verdict": {"state": state, "text": f"{state.title()}: as it is."}}

    monkeypatch.setattr(validation, "health", health)
    pretrain(
        tmp_path / "data.npz",
        tmp_path / "run",
        epochs=4,
        validate_every=1,
        encoder="resnet10-narrow",
        projector=(16, 16),
        batch_size=16,
        device="cpu",
    )
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("health")]
    assert told == ["health     Slow: as it is.", "health     Good: as it is.", "health     Good: as it is."]


def measured(x: np.ndarray, seed: int) -> dict[str, Any]:
    """The diagnostics of one network whose features are half the pixels, on the held-out part of 2,000 images."""
    settings = {"batch_size": 64, "holdout": 0.5, "projector": (8,), "recipe": "digits"}
    settings |= {"mean": (0.4,), "std": (0.3,), "seed": seed, "device": "cpu", "precision": "float32"}
    config, source = config_from_settings({**settings, "encoder": "custom"}), open_source(x)
    encoder = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 64))
    torch.manual_seed(1)
    nn.init.orthogonal_(encoder[2].weight)  # type: ignore[arg-type]
    trainer = Trainer(config, make_plan(config, source), encoder=encoder)
    return Validator(source, *split_indices(config, source), trainer)(
        trainer, trainer.encoder, trainer.network.projector
    )[1]


def test_the_order_of_the_files_does_not_change_the_verdict() -> None:
    """As folders name their classes, whichever comes first: one is blank, of the others each has its own pattern."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (4, 16, 16))
    mixed = 0.6 * patterns[np.arange(2000) // 500] + 0.4 * rng.integers(0, 256, (2000, 16, 16))
    mixed[:600] = rng.integers(0, 3, (600, 1, 1))
    forward, backward = (measured(x.astype(np.uint8), seed=3) for x in (mixed, mixed[::-1]))
    assert forward["verdict"]["state"] == backward["verdict"]["state"]
    for name in ("rankme", "heldout_loss", "train_loss", "relative_spread", "diagonal", "off_diagonal", "uniformity"):
        assert forward[name] == pytest.approx(backward[name], rel=0.25), name
    for where, values in forward["mixing"].items():
        assert values == pytest.approx(backward["mixing"][where], rel=0.25), where
    assert forward["verdict"]["evidence"]["distinct_share"] == pytest.approx(
        backward["verdict"]["evidence"]["distinct_share"], abs=0.1
    )


@pytest.mark.parametrize("make", ["blank", "one picture"])
def test_a_run_on_blank_images_or_copies_of_one_is_told_to_look_at_its_data(make: str, tmp_path: Path) -> None:
    one = np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8)
    images = np.repeat(one if make == "one picture" else np.full_like(one, 128), 64, axis=0)
    np.savez(tmp_path / "data.npz", x=images)
    run = pretrain(
        tmp_path / "data.npz",
        tmp_path / "run",
        epochs=1,
        encoder="resnet10-narrow",
        projector=(16, 16),
        batch_size=16,
        device="cpu",
        quiet=True,
    )
    verdict = run.health()["verdict"]
    assert verdict["state"] == "too-little-data"
    assert "of the held-out images are different" in verdict["text"]
    assert "lambda" not in verdict["text"]
