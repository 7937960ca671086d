"""What a run measures of itself on held-out samples: the verdict looks back at every earlier validation."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from barlow.run import Run
from barlow.training import validation
from barlow.training.pretrain import Interrupted, pretrain


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
