"""Run folders as training, evaluation and diagnostics leave them, small and made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from barlow.config import PretrainConfig, config_to_dict
from barlow.data import Source, open_source
from barlow.files import write_json
from barlow.models import Encoder, Preprocess, build_encoder, save_encoder
from barlow.report import make_gallery
from barlow.run import Run

HOSTILE = "<img src=x onerror=alert(1)>\"'&</script>"
MakeRun = Callable[..., Run]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """60 coloured 16-pixel images in three classes, one of them with a hostile name, and one double."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 60, (60, 16, 16, 3), dtype=np.uint8)
    images[np.arange(60), :, :, labels] += 150
    images[1] = images[4]
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    found = open_source(tmp_path / "data.npz")
    found.classes = ("red", HOSTILE, "blue")
    found.keys = [f"{i}.png" if i != 7 else HOSTILE for i in range(60)]
    return found


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = build_encoder("resnet10-narrow", channels=3, image_size=16)
    made.preprocess = Preprocess(16, 3, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    return made.eval()


def evaluation(protocol: str, value: float, low: float, high: float, **baselines: float) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "data": f"photos {HOSTILE}",
        "metric": "accuracy",
        "value": value,
        "interval": [low, high],
        "n": 1234,
        "n_train": 4321,
        "split": "20% held out",
        "seed": 0,
        "settings": {"k": 200, "temperature": 0.5} if protocol.startswith("knn") else {},
        "wall_s": 1.5,
        "encoder_hash": "ab" * 32,
        "baselines": {
            k.replace("_", "-"): {"value": v, "interval": [v - 0.01, v + 0.01]} for k, v in baselines.items()
        },
        "warnings": ["3 evaluation images were seen in pretraining"],
        "finished": "2026-01-01T00:00:00+00:00",
    }


def metrics() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for epoch in range(6):
        terms = {"loss": 90.0 - 10 * epoch, "invariance": 50.0 - 6 * epoch, "redundancy": 40.0 - 4 * epoch}
        speed = {"images_per_s": 900.0 + epoch, "data_wait": 0.05}
        lines.append({"kind": "epoch", "epoch": epoch, "step": 10 * epoch, **terms, **speed})
        held = {"knn": 0.3 + 0.1 * epoch, "heldout_loss": 95.0 - 9 * epoch, "train_loss": 94.0 - 10 * epoch}
        lines.append({"kind": "validation", "epoch": epoch, "step": 10 * epoch, **held, "rankme": 20.0 + epoch})
    return lines


def health() -> dict[str, Any]:
    c = np.eye(8) * 0.9 + 0.05
    return {
        "rankme": 33.3,
        "diagonal": 0.95,
        "off_diagonal": 0.05,
        "dead_share": 0.125,
        "lidar": 17.25,
        "class_distances": {"intra": 0.5, "inter": 1.0, "ratio": 0.5},
        "mixing": {"encoder": {"0.5": 0.08, "0.1": 0.01}, "projector": {"0.1": 0.03, "0.5": 0.02}},
        "spectrum": [10.0, 5.0, 1.0, 0.1],
        "correlation": {"matrix": c.tolist(), "width": 128},
        "verdict": {"state": "healthy", "text": "Healthy: the views agree.", "evidence": {"n": 512, "diagonal": 0.95}},
    }


@pytest.fixture
def make_run(tmp_path: Path, source: Source, encoder: Encoder) -> MakeRun:
    """`make_run(name, bare=True)` has nothing but its configuration."""

    def make(name: str = "first", *, bare: bool = False, pictures: bool = True) -> Run:
        folder = tmp_path / "runs" / name
        write_json(folder / "config.json", config_to_dict(PretrainConfig()))
        run = Run(folder)
        if bare:
            return run
        facts = {"data_name": HOSTILE, "n": 60, "image_size": 16, "channels": 3, "mean": [0.4] * 3, "std": [0.2] * 3}
        write_json(folder / "run.json", {**facts, "status": "finished", "wall_s": 90.0, "note": HOSTILE})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()))
        write_json(folder / "health.json", health())
        run.save_evaluation(evaluation("linear", 0.91, 0.90, 0.92, raw_pixels=0.5, random_init=0.6))
        run.save_evaluation(evaluation("knn", 0.55, 0.50, 0.60, raw_pixels=0.56, random_init=0.3))
        assert encoder.preprocess is not None
        save_encoder(encoder, encoder.preprocess, folder)
        if pictures:
            make_gallery(run, source, run.encoder(), layout="tsne")
        return run

    return make
