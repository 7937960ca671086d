"""What `barlow doctor` says is what was measured, and its advice follows from it."""

import importlib.metadata
import shutil
import time
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from barlow import doctor
from barlow.config import config_from_settings
from barlow.training.trainer import Trainer

SMALL = {"encoder": "resnet10-narrow", "projector": (16, 16), "batch_size": 8, "device": "cpu"}


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def examined(monkeypatch: pytest.MonkeyPatch, *, rate: float, free_gib: int) -> list[str]:
    monkeypatch.setattr(doctor, "measure_step", lambda config: rate)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, free_gib * 2**30))
    monkeypatch.setattr(torch.version, "cuda", None)
    return list(doctor.examine())


def test_the_rate_is_images_over_the_time_of_a_median_step(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter([0.5, 0.1, 0.4, 0.1])  # the first step warms up

    def step(self: Trainer, batch: Any, epoch: int) -> dict[str, Tensor]:
        time.sleep(next(waits))
        return {"loss": torch.zeros(())}

    monkeypatch.setattr(Trainer, "train_step", step)
    assert doctor.measure_step(config_from_settings(SMALL)) == pytest.approx(8 / 0.1, rel=0.2)


def test_the_whole_step_is_measured() -> None:
    assert doctor.measure_step(config_from_settings(SMALL)) > 0


def test_a_fast_machine_with_room_gets_figures_and_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = examined(monkeypatch, rate=2345.6, free_gib=64)
    told = {line.split()[0]: line for line in lines}
    assert list(told) == ["versions", "extras", "device", "precision", "speed", "memory", "disk"]
    assert f"torch {importlib.metadata.version('torch')}" in told["versions"]
    assert "2,346 images/s: ResNet-18, 32 px, batch 256" in told["speed"]
    assert "64.00 GiB free here" in told["disk"]


def test_a_slow_machine_with_a_full_disk_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = [line for line in examined(monkeypatch, rate=50.0, free_gib=1) if line.startswith("advice")]
    assert len(advice) == 2
    assert "100 epochs of 50,000 such images would take 28 hours here; use --encoder resnet10-narrow" in advice[0]
    assert "--keep-checkpoints 1" in advice[1]
