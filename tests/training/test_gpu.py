"""What only a GPU can show. BARLOW_TEST_DEVICE=cpu rehearses the tests where there is none."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from barlow.config import config_from_settings
from barlow.data import Loader, open_source
from barlow.models.network import deterministic_kernels
from barlow.plan import make_plan
from barlow.run import Run
from barlow.training.loop import Meter
from barlow.training.pretrain import Interrupted, pretrain
from barlow.training.trainer import Trainer

DEVICE = os.environ.get("BARLOW_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
METHODS = ("barlow-twins", "mixed-barlow-twins")
SMALL: dict[str, Any] = {"encoder": "resnet10-narrow", "projector": (32, 32), "batch_size": 16, "log_every": 1}


def images() -> np.ndarray:
    """Smooth random colour images [64, 32, 32, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def run(out: Path, **settings: Any) -> Run:
    return pretrain(images(), out, **{**SMALL, "device": DEVICE, "epochs": 3, "quiet": True, **settings})


def losses(found: Run) -> np.ndarray:
    return np.array([line["loss"] for line in found.metrics("step")])


@pytest.mark.skipif(DEVICE != "cuda", reason="only CUDA tells of waits")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # said once by torch
@pytest.mark.parametrize("method", METHODS)
def test_the_host_never_waits_for_the_gpu_inside_a_step(method: str) -> None:
    config = config_from_settings({**SMALL, "device": DEVICE, "method": method, "ema": 0.9, "clip": 10.0, "epochs": 9})
    source = open_source(images())
    plan = make_plan(config, source)
    trainer, meter = Trainer(config, plan), Meter()
    batches = list(Loader(source, np.arange(len(source)), 16, device=plan.device).epoch(0))
    meter.add(trainer.train_step(batches[0], 0))  # the first step allocates and chooses kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            meter.add(trainer.train_step(batch, 0))
            assert trainer.watch.poll() is None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(meter.means()["loss"])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_and_resumed_equals_the_run_left_alone(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", method=method)
    original = Trainer.train_step

    def train_step(self: Trainer, *arguments: Any) -> Any:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", method=method)
    monkeypatch.undo()
    resumed = run(tmp_path / "cut", method=method, resume=True)
    assert (losses(whole) == losses(resumed)).all()
    names = (folder / "encoder.safetensors" for folder in (whole.path, resumed.path))
    first, second = (name.read_bytes() for name in names)
    assert first == second


def test_the_curve_is_that_of_the_cpu(tmp_path: Path) -> None:
    settings = {"precision": "float32", "optimizer": "lars"}
    with deterministic_kernels():
        here, cpu = run(tmp_path / "here", **settings), run(tmp_path / "cpu", **{**settings, "device": "cpu"})
    np.testing.assert_allclose(losses(here), losses(cpu), rtol=2e-2)  # TF32 convolutions keep ten bits


@pytest.mark.slow
def test_the_compiled_network_follows_the_same_curve(tmp_path: Path) -> None:
    settings = {"precision": "float32", "optimizer": "lars"}
    plain, compiled = run(tmp_path / "plain", **settings), run(tmp_path / "compiled", compile=True, **settings)
    np.testing.assert_allclose(losses(compiled), losses(plain), rtol=2e-2)
