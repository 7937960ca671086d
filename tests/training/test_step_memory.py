"""What a run says of its memory, before and after it ran out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from barlow.config import config_from_settings
from barlow.data import Loader, open_source
from barlow.errors import InputError
from barlow.plan import make_plan
from barlow.training import memory
from barlow.training.memory import USABLE_SHARE, StepMemory
from barlow.training.pretrain import pretrain
from barlow.training.trainer import Trainer
from barlow.training.validation import Validator

GIB = 2**30
SMALL: dict[str, Any] = {"encoder": "resnet10-narrow", "projector": (32, 32), "batch_size": 16, "epochs": 1}


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)


def made(free: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> StepMemory:
    """The memory of a run on a device with `free` bytes once the network is on it, and none later."""
    left = [free]
    monkeypatch.setattr(memory, "available_bytes", lambda _: left.pop() if left else 0)
    config = config_from_settings({**SMALL, **settings})
    plan = make_plan(config, open_source(images()))
    trainer = Trainer(config, plan)
    return StepMemory(config, plan, trainer.network, trainer.method, [(3, 16, 16)] * 2)


def test_a_step_that_fits_the_empty_device_is_advised_though_the_failed_one_still_fills_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = made(0, monkeypatch).estimate().weights
    free = int((made(0, monkeypatch).estimate(batch=8).total + 1) / USABLE_SHARE["cpu"]) - weights + 1
    assert "--batch-size 8 (" in made(free, monkeypatch).advice()


def test_auto_takes_the_whole_batch_when_it_fits_beside_the_weights_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = made(0, monkeypatch).estimate()
    enough = int((whole.total + 1) / USABLE_SHARE["cpu"]) - whole.weights + 1
    assert made(enough, monkeypatch, micro_batch="auto").micro_batch() is None
    assert made(enough - GIB // 1024, monkeypatch, micro_batch="auto").micro_batch() is not None


def test_auto_takes_the_largest_of_half_a_quarter_and_so_on_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    quarter = made(0, monkeypatch).estimate(micro_batch=4)
    enough = int((quarter.total + 1) / USABLE_SHARE["cpu"]) - quarter.weights + 1
    assert made(enough, monkeypatch, micro_batch="auto").micro_batch() == 4
    assert made(0, monkeypatch, micro_batch="auto").micro_batch() == 2
    assert made(0, monkeypatch, micro_batch="auto", batch_size=2).micro_batch() is None
    assert "None of the usual settings would fit" in made(0, monkeypatch).advice()


def test_a_run_in_micro_batches_is_advised_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = made(10 * GIB, monkeypatch, micro_batch="8").advice()
    assert "--micro-batch 4 (" in advice
    assert "--micro-batch 8" not in advice


def out_of_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")


def test_a_step_that_runs_out_of_memory_ends_the_run_in_one_line_with_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "train_step", out_of_memory)
    with pytest.raises(InputError) as caught:
        pretrain(images(), tmp_path / "run", quiet=True, **SMALL)
    text = str(caught.value)
    assert text.startswith("out of memory: the device has room for ")
    assert "Would fit: --micro-batch 8 (about " in text
    assert ", or --batch-size 8 (about " in text
    assert "\n" not in text


@pytest.mark.parametrize("settings", [{}, {"resume": True}])
def test_a_network_that_does_not_fit_is_refused_in_one_line(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if settings:
        pretrain(images(), tmp_path / "run", quiet=True, **SMALL)
    monkeypatch.setattr(Trainer, "load_state_dict" if settings else "_build_network", out_of_memory)
    with pytest.raises(
        InputError, match=r"^out of memory: cpu had .* GiB for the network .*; use a smaller encoder, .*$"
    ):
        pretrain(images(), tmp_path / "run", quiet=True, **SMALL, **settings)


def test_the_first_validation_that_runs_out_of_memory_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validator, "__call__", out_of_memory)
    with pytest.raises(InputError, match=r"^out of memory: .* Would fit: --micro-batch 8 .*$"):
        pretrain(images(), tmp_path / "run", quiet=True, **SMALL)


def test_data_that_the_loader_keeps_is_not_counted_as_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[Loader] = []

    def opening(*arguments: Any, **settings: Any) -> Loader:
        opened.append(Loader(*arguments, **settings))
        return opened[0]

    monkeypatch.setattr("barlow.training.pretrain.Loader", opening)
    monkeypatch.setattr(memory, "available_bytes", lambda _: (8 if opened else 10) * GIB)
    pretrain(images(), tmp_path / "run", **SMALL)
    assert "of 8.0" in " ".join(capsys.readouterr().err.split())


class Branching(nn.Module):
    """An encoder whose path depends on the values that it meets."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        return out.relu() if out.abs().max() > 0 else out


def test_an_encoder_that_cannot_be_estimated_trains_and_the_reason_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrain(images(), tmp_path / "run", **{**SMALL, "encoder": Branching()})
    assert run.facts["status"] == "finished"
    said = " ".join(capsys.readouterr().err.split())
    assert "not estimated (what the network does depends on the values it meets)" in said


def test_without_an_estimate_auto_asks_for_a_number_and_the_advice_is_what_is_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SMALL, "encoder": Branching()}
    with pytest.raises(
        InputError, match=r"--micro-batch auto cannot tell what fits \(what .*\); give a number instead"
    ):
        pretrain(images(), tmp_path / "auto", quiet=True, **settings, micro_batch="auto")
    monkeypatch.setattr(Trainer, "train_step", out_of_memory)
    with pytest.raises(InputError, match=r"out of memory: .*\. Try --micro-batch 8 or --batch-size 8\."):
        pretrain(images(), tmp_path / "run", quiet=True, **settings)


def test_a_batch_that_the_micro_batch_does_not_divide_trains_through_batch_norm(tmp_path: Path) -> None:
    run = pretrain(images(), tmp_path / "run", quiet=True, **SMALL, micro_batch=5)
    assert run.facts["status"] == "finished"
