"""Signals and table rows through the same two calls as images: what is learned beats the raw values and chance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import barlow
from barlow.evaluation import FewShot, Result


def waves(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sine, square, saw and triangle waves [n, 1, 128] of any frequency, phase and gain, in noise; and which it is."""
    generator = np.random.default_rng(seed)
    kind = np.arange(samples) % 4
    frequency, start = generator.uniform(3, 9, (samples, 1)), generator.uniform(0, 1, (samples, 1))
    phase = (frequency * np.arange(128) / 128 + start) % 1
    shapes = np.stack([np.sin(2 * np.pi * phase), np.sign(phase - 0.5), 2 * phase - 1, 1 - 4 * np.abs(phase - 0.5)])
    clean = shapes[kind, np.arange(samples)] * generator.uniform(0.5, 2, (samples, 1))
    return (clean + generator.normal(0, 0.2, clean.shape)).astype(np.float32)[:, None], kind


def five_shot(data: str | Path, out: Path, **settings: Any) -> Result:
    run = barlow.pretrain(data, out, projector=(64, 64), quiet=True, validate_every=1000, **settings)
    (result,) = barlow.evaluate(run, data, protocols=(FewShot(5),))
    return result


@pytest.mark.slow
def test_wave_forms_are_told_apart_better_than_by_raw_values_or_a_random_network(tmp_path: Path) -> None:
    (x_train, y_train), (x_test, y_test) = waves(512, seed=0), waves(256, seed=1)
    data = tmp_path / "waves.npz"
    np.savez(data, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    result = five_shot(data, tmp_path / "run", epochs=16, batch_size=64, lr=0.002)
    assert result.value > result.baselines["random-init"]["value"] + 0.08
    assert result.value > result.baselines["raw-pixels"]["value"] + 0.2


@pytest.mark.slow
def test_flowers_are_told_apart_better_than_by_their_measures(tmp_path: Path) -> None:
    result = five_shot("iris", tmp_path / "run", epochs=60, batch_size=32)
    # 98.7% against 95.0% of the untrained network, whose statistics are calibrated on the same flowers
    assert result.value > max(baseline["value"] for baseline in result.baselines.values()) + 0.02
