"""A method is one file: this one, named in METHODS, trains, resumes, is evaluated and reported."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from barlow import Run, evaluate, pretrain, write_report
from barlow.config import PretrainConfig
from barlow.evaluation import KNN
from barlow.methods import METHODS
from barlow.methods.method import Method, Terms
from barlow.models.network import TwinNetwork
from barlow.plan import Plan, plan_from_dict
from barlow.training.checkpoint import load_latest


class Toy(Method):
    """Distance of two views, and a count of its steps that must survive a resume."""

    title = "Toy Distance"
    paper = "nobody, Nothing, arXiv 0000.00000"
    adaptive_lr = 0.003
    settings = "no settings"

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        self.memory["counter"] = torch.nn.BatchNorm1d(1)  # any module with a buffer
        self.count: Tensor = self.memory["counter"].get_buffer("num_batches_tracked")

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        return views[:2], lambda z: {"loss": (z[0] - z[1]).square().mean()}

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        self.count += 1


@pytest.mark.slow
def test_a_method_of_one_file_trains_resumes_is_evaluated_and_reported(
    tmp_path: Path, discs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "barlow.methods.toy", sys.modules[__name__])
    monkeypatch.setitem(METHODS, "toy", "toy.Toy")
    settings = {"encoder": "resnet10-narrow", "projector": (16, 16), "batch_size": 16, "epochs": 2, "device": "cpu"}
    left_alone = pretrain(discs, tmp_path / "left-alone", method="toy", quiet=True, **settings)  # type: ignore[arg-type]
    plan = plan_from_dict(left_alone.facts)
    assert plan.lr == pytest.approx(0.003 * 16 / 256)
    after_step = Toy.after_step

    def stop_in_third_step(self: Toy, network: TwinNetwork, step: int, skip: Tensor) -> None:
        after_step(self, network, step, skip)
        if int(self.count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Exception, match="interrupted after saving"):
        patch.setattr(Toy, "after_step", stop_in_third_step)
        pretrain(discs, tmp_path / "run", method="toy", quiet=True, **settings)  # type: ignore[arg-type]
    assert Run(tmp_path / "run").facts["status"] == "interrupted"
    run = pretrain(discs, tmp_path / "run", resume=True, quiet=True)
    trained, resumed = (load_latest(folder.path / "checkpoints") for folder in (left_alone, run))
    assert trained is not None
    assert resumed is not None
    assert int(resumed["trainer"]["method"]["counter.num_batches_tracked"]) == plan.total_steps > 3
    for name, value in trained["trainer"]["network"].items():
        assert torch.equal(value, resumed["trainer"]["network"][name]), name
    labelled = tmp_path / "labelled"
    for name in ("a", "b"):
        (labelled / name).mkdir(parents=True)
    for i in range(24):
        Image.new("L", (16, 16), 200 * (i % 2) + i).save(labelled / "ab"[i % 2] / f"{i}.png")
    (result,) = evaluate(run, labelled, protocols=(KNN(k=3),))
    assert result.value > 0.5
    run.save_evaluation(result.to_dict())
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "Toy Distance" in page
