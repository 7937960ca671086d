"""What a run promises, on images small enough that a whole run takes a second or two."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import barlow
from barlow.data import Batch, open_source
from barlow.errors import InputError
from barlow.files import write_json
from barlow.run import Run
from barlow.training.faults import Fault, NonFiniteWatch
from barlow.training.pretrain import pretrain
from barlow.training.trainer import Trainer

METHODS = ("barlow-twins", "mixed-barlow-twins")


def blobs(n: int = 72, seed: int = 0) -> np.ndarray:
    """Grey images [n, 16, 16] of a bright disc somewhere."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    centres, radii = generator.uniform(4, 12, (n, 2, 1, 1)), generator.uniform(2, 6, (n, 1, 1))
    inside = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < radii**2
    noise = generator.integers(0, 40, (n, 16, 16))
    return np.asarray(inside * 200 + noise, np.uint8)


class Tiny(nn.Module):
    """An encoder with everything that can break a resume: batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 49, 12)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def tiny() -> Tiny:
    torch.manual_seed(7)
    return Tiny()


def run_tiny(out: Path, data: Any = None, **settings: Any) -> Run:
    defaults = {"epochs": 3, "batch_size": 16, "projector": (16, 16), "log_every": 1, "validate_every": 1}
    chosen = {"encoder": tiny(), "quiet": True, **defaults, **settings}
    return pretrain(blobs() if data is None else data, out, **chosen)


def weights(run: Run) -> dict[str, Tensor]:
    state = torch.load(run.checkpoints / "last.pt", weights_only=True)["trainer"]
    return {**state["network"], **{f"ema.{k}": v for k, v in (state["ema"] or {}).items()}}


def assert_same_weights(a: Run, b: Run) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def timeless(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait")} for line in run.metrics()]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(method: str, tmp_path: Path) -> None:
    first, again = (run_tiny(tmp_path / name, method=method) for name in "ab")
    assert_same_weights(first, again)
    assert timeless(first) == timeless(again)
    other = run_tiny(tmp_path / "c", method=method, seed=1)
    assert not torch.equal(weights(first)["projector.0.weight"], weights(other)["projector.0.weight"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_a_run_stopped_and_resumed_equals_the_run_left_alone(
    method: str, stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"method": method, "ema": 0.9, "clip": 50.0}
    whole = run_tiny(tmp_path / "whole", **settings)
    stop_at(monkeypatch, stop_after)
    with pytest.raises(Exception, match="interrupted after saving"):
        run_tiny(tmp_path / "cut", **settings)
    monkeypatch.undo()
    assert Run(tmp_path / "cut").facts["status"] == "interrupted"
    resumed = run_tiny(tmp_path / "cut", resume=True, **settings)
    assert resumed.facts["status"] == "finished"
    assert_same_weights(whole, resumed)
    assert timeless(whole) == timeless(resumed)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a SIGTERM arrive during step `step`."""
    import signal

    from barlow.training.trainer import Trainer

    original = Trainer.train_step

    def train_step(self: Trainer, *arguments: Any) -> Any:
        terms = original(self, *arguments)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_the_time_of_a_process_that_died_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.train_step

    def train_step(self: Trainer, *arguments: Any) -> Any:
        if self.step == 6:
            raise RuntimeError("power cut")
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(RuntimeError, match="power cut"):
        run_tiny(tmp_path, checkpoint_steps=2)
    monkeypatch.undo()
    left = Run(tmp_path).facts
    assert (left["status"], left["step"]) == ("running", 6)
    assert left["wall_s"] > 0
    write_json(tmp_path / "run.json", {**left, "wall_s": 1000.0})
    resumed = run_tiny(tmp_path, checkpoint_steps=2, resume=True)
    assert 1000 < resumed.facts["wall_s"] < 1300


def test_a_run_leaves_the_callers_generators_alone_and_does_not_depend_on_them(tmp_path: Path) -> None:
    drawn = []
    for seed, name in enumerate("ab"):
        noisy = Noisy()
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        expected = random.random(), np.random.rand(), torch.rand(1).item()
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        run = pretrain(blobs(), tmp_path / name, encoder=noisy, epochs=1, batch_size=16, projector=(16, 16), quiet=True)
        drawn.append(weights(run))
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    for name, value in drawn[0].items():
        assert torch.equal(value, drawn[1][name]), name


class Noisy(Tiny):
    """Draws from every generator that a caller's own module might use."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.rand_like(x) + random.random() + float(np.random.rand()))


def test_metrics_hold_every_step_epoch_and_validation_once(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run")
    assert [line["step"] for line in run.metrics("step")] == list(range(1, 13))
    assert [line["epoch"] for line in run.metrics("epoch")] == [1, 2, 3]
    assert [line["epoch"] for line in run.metrics("validation")] == [0, 1, 2, 3]
    for line in run.metrics("step"):
        assert line["loss"] == pytest.approx(line["invariance"] + line["redundancy"], rel=1e-5)
    for epoch in run.metrics("epoch"):
        steps = [line["loss"] for line in run.metrics("step") if line["epoch"] == epoch["epoch"]]
        assert epoch["loss"] == pytest.approx(np.mean(steps), rel=1e-6)


def test_labels_change_nothing_but_the_knn_score(tmp_path: Path) -> None:
    images = blobs()
    labels = (images.reshape(len(images), -1).mean(1) > 60).astype(np.int64)
    runs = []
    for name, y in (("true", labels), ("other", labels[::-1].copy()), ("none", None)):
        source = open_source(images)
        source.labels = y
        runs.append(run_tiny(tmp_path / name, source))
    assert_same_weights(runs[0], runs[1])
    assert_same_weights(runs[0], runs[2])
    assert all("knn" in line for line in runs[0].metrics("validation"))
    assert not any("knn" in line for line in runs[2].metrics("validation"))


def test_validating_more_often_does_not_change_the_weights(tmp_path: Path) -> None:
    assert_same_weights(run_tiny(tmp_path / "a"), run_tiny(tmp_path / "b", validate_every=3))


def test_held_out_samples_never_reach_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from barlow.config import config_from_settings
    from barlow.plan import split_indices
    from barlow.training.trainer import Trainer

    seen: set[int] = set()
    original = Trainer.train_step

    def train_step(self: Trainer, batch: Any, epoch: int) -> Any:
        seen.update(batch.ids.tolist())
        return original(self, batch, epoch)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    run_tiny(tmp_path / "run", holdout=0.25, epochs=6)
    train, held = split_indices(config_from_settings({"holdout": 0.25}), open_source(blobs()))
    assert seen == set(train.tolist())
    assert not seen & set(held.tolist())


def test_micro_batches_give_the_whole_batchs_step_where_there_are_no_batch_statistics(tmp_path: Path) -> None:
    def linear() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 12))

    # One layer: no batch norm in the head either. In bfloat16, kernels round by the size of the batch.
    settings = {"projector": (16,), "epochs": 1, "optimizer": "sgd", "precision": "float32"}
    whole = run_tiny(tmp_path / "whole", encoder=linear(), **settings)
    parts = run_tiny(tmp_path / "parts", encoder=linear(), micro_batch=5, **settings)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_network_follows_the_same_curve(tmp_path: Path) -> None:
    """Fused kernels round differently, by processor: 1e-5 at the first step, 1e-2 when a dozen have amplified it."""

    def small() -> nn.Module:
        torch.manual_seed(3)
        convolution = nn.Conv2d(1, 8, 3, stride=2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())

    settings = {"precision": "float32", "optimizer": "lars"}
    plain = run_tiny(tmp_path / "plain", encoder=small(), **settings)
    compiled = run_tiny(tmp_path / "compiled", encoder=small(), compile=True, **settings)
    for ours, theirs in zip(compiled.metrics("step"), plain.metrics("step"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5 if ours["step"] == 1 else 1e-2)


class InductorError(RuntimeError):
    """As torch.compile's own, whose module takes seconds to import."""

    __module__ = "torch._inductor.exc"


def test_a_compiler_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_step(self: Trainer, batch: Batch, epoch: int) -> dict[str, Tensor]:
        raise InductorError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 for more")

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(InputError, match=r"^--compile failed: InvalidCxxCompiler: [^\n]*; train without it[^\n]*$"):
        run_tiny(tmp_path, compile=True, holdout=0)


def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_can_be_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from barlow.training.replay import replay

    with pytest.raises(InputError, match=r"not finite at step \d+ \(samples \d+, ") as raised:
        run_tiny(
            tmp_path / "run", encoder="resnet10-narrow", lr=1e3, weight_decay=1e3, optimizer="sgd", precision="float32"
        )
    assert "\n" not in str(raised.value)
    assert Run(tmp_path / "run").facts["status"] == "failed"
    told = list(replay(tmp_path / "run"))
    assert "not finite at step" in told[0]
    assert len(told) > 1
    kept = next((tmp_path / "run").glob("replay-*.pt"))
    kept.write_bytes(kept.read_bytes()[:50])
    with pytest.raises(InputError, match=r"replay-\d+\.pt is damaged"):
        list(replay(tmp_path / "run"))


def test_a_failing_step_on_table_rows_is_replayed_with_the_rows_that_values_were_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the replay is the loss of the run, digit for digit."""
    from barlow.training.replay import replay

    rows = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    monkeypatch.setattr(NonFiniteWatch, "poll", lambda self, *, wait=False: Fault(2, ("loss",)) if wait else None)
    monkeypatch.setattr(NonFiniteWatch, "update", lambda self, step, values: self.tripped.fill_(float(step >= 2)))
    seen: list[float] = []
    original = Trainer.train_step

    def train_step(self: Trainer, batch: Batch, epoch: int) -> dict[str, Tensor]:
        terms = original(self, batch, epoch)
        seen.append(float(terms["loss"]))
        return terms

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(InputError, match="loss not finite at step 2"):
        run_tiny(tmp_path, rows, encoder="mlp", epochs=2, batch_size=16, validate_every=5, holdout=0)
    told = list(replay(tmp_path, device="cpu"))
    assert seen[-1] == seen[2]
    assert told[-1] == "every gradient is finite"


def test_a_fault_that_the_host_hears_of_late_is_never_saved_as_sound_nor_called_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the answer lags: nobody has heard of a fault unless he waits for it."""
    original = NonFiniteWatch.poll
    monkeypatch.setattr(NonFiniteWatch, "poll", lambda self, *, wait=False: original(self) if wait else None)
    settings: dict[str, Any] = {
        "encoder": "resnet10-narrow",
        "lr": 1e3,
        "weight_decay": 1e3,
        "optimizer": "sgd",
        "warmup_epochs": 0,
        "precision": "float32",
    }
    with pytest.raises(InputError, match=r"not finite at step \d+ .*; batch and state are kept"):
        run_tiny(tmp_path, epochs=4, **settings)
    assert Run(tmp_path).facts["status"] == "failed"
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_checkpoints_that_none_can_read_are_neither_passed_over_nor_deleted(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, checkpoint_steps=4)
    files = sorted(run.checkpoints.glob("step-*.pt"))
    for path in files:
        path.write_bytes(path.read_bytes()[:100])
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(InputError, match=r"No checkpoint of .* is intact; --overwrite starts anew"),
    ):
        run_tiny(tmp_path, checkpoint_steps=4, resume=True)
    assert sorted(run.checkpoints.glob("step-*.pt")) == files
    assert run.metrics("epoch")


@pytest.mark.slow
def test_a_folder_that_another_process_writes_is_refused_until_that_process_is_dead(tmp_path: Path) -> None:
    holding = "import sys, time; from pathlib import Path; from barlow.files import LOCK, locked"
    code = f"{holding}\nwith locked(Path(sys.argv[1]) / LOCK, wait=False): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"is being written by process {other.pid} on "):
            run_tiny(tmp_path)
        other.kill()
        other.wait()
    assert run_tiny(tmp_path, epochs=1).facts["status"] == "finished"


def test_the_encoder_file_is_the_trained_encoder(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run")
    loaded = barlow.load_encoder(run, module=Tiny())
    trained = {key: value for key, value in weights(run).items() if key.startswith("encoder.backbone.")}
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, trained[f"encoder.{key}"]), key


def test_with_ema_the_average_is_what_is_exported(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run", ema=0.5)
    loaded = barlow.load_encoder(run, module=Tiny()).state_dict()
    state = torch.load(run.checkpoints / "last.pt", weights_only=True)["trainer"]
    for key, value in loaded.items():
        assert torch.equal(value, state["ema"][key])
    assert not torch.equal(loaded["backbone.layers.0.weight"], state["network"]["encoder.backbone.layers.0.weight"])


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (blobs(10), {}, "only 9 samples to train on .1 more are held out.*use --batch-size 9 or less|fewer than"),
        (blobs(1), {"batch_size": 2}, "only 1 sample to"),
        (blobs(), {"epochs": 0}, "--epochs must be 1 or more"),
        (blobs(), {"device": "tpu"}, "unknown device 'tpu'|not available"),
        (blobs(), {"mean": (0.5, 0.5)}, "needs one value for each of 1 channels, got 2"),
        (blobs(), {"recipe": "cifr"}, "cifar"),
        (blobs(), {"method": "simclrr"}, "unknown method"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    data: np.ndarray, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        run_tiny(tmp_path / "run", data, **settings)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_resume_sees_that_the_data_changed_and_follows_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for i, image in enumerate(blobs()):
        Image.fromarray(image).save(tmp_path / "data" / f"{i:02}.bmp")  # all of one size
    run = run_tiny(tmp_path / "run", tmp_path / "data", epochs=1)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    for spelling in ("data", "./data/../data", tmp_path / "copy"):
        assert run_tiny(tmp_path / "run", spelling, epochs=1, resume=True).facts["status"] == "finished"
    assert run.open_data().location == str(tmp_path / "copy")
    for i, image in enumerate(blobs(30, seed=9)):
        Image.fromarray(image).save(tmp_path / "data" / f"{i:02}.bmp")
    with pytest.raises(InputError, match="cannot resume .*data does not hold .*contents differ"):
        run_tiny(tmp_path / "run", tmp_path / "data", epochs=1, resume=True)
    (tmp_path / "copy" / "03.bmp").rename(tmp_path / "copy" / "3.bmp")
    with pytest.raises(InputError, match="cannot resume .*copy does not hold .*names.* differ"):
        run_tiny(tmp_path / "run", tmp_path / "copy", epochs=1, resume=True)
    with pytest.raises(InputError, match="does not hold the data of .* any more: .*names.* differ"):
        run.open_data()


def test_an_existing_run_is_neither_replaced_nor_resumed_unless_asked(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match="already holds a run; use --resume .* or --overwrite"):
        run_tiny(tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match=r"other settings: --epochs 2 \(was 1\)"):
        run_tiny(tmp_path / "run", epochs=2, resume=True)
    with pytest.raises(InputError, match="cannot resume .* 80 samples now and 72 then"):
        run_tiny(tmp_path / "run", blobs(80), epochs=1, resume=True)
    assert run_tiny(tmp_path / "fresh", epochs=1, resume=True).facts["status"] == "finished"
    (tmp_path / "run" / "replay-000000001.pt").touch()
    again = run_tiny(tmp_path / "run", epochs=2, overwrite=True, holdout=0.0)
    assert len(again.metrics("epoch")) == 2
    assert not (tmp_path / "run" / "replay-000000001.pt").exists()


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("[[views]]\nflip = 0.5\n", {}, "makes one view of a sample"),
        ("[[views]]\nflip = 0.5\n", {"method": "simclr"}, "makes one view of a sample"),
        ("[[views]]\n[[views]]\nsize = 8\n", {"method": "mixed-barlow-twins"}, "views of two sizes"),
        ("[[views]]\nflipp = 0.5\n", {}, "unknown key 'flipp'"),
        ('kind = "signal"\n[[views]]\n[[views]]\n', {}, "makes views of signal samples"),
    ],
)
def test_a_recipe_that_is_refused_leaves_the_run_that_it_was_to_replace(
    recipe: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(recipe)
    run_tiny(tmp_path / "run", epochs=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        run_tiny(tmp_path / "run", overwrite=True, recipe=str(tmp_path / "mine.toml"), **settings)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a run"):
        run_tiny(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to .*Not a directory"):
        run_tiny(tmp_path / "file" / "run")


def test_settings_are_written_and_read_back(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "run", lambd=0.02)
    assert run.config.objective.lambd == 0.02
    assert json.loads((run.path / "config.json").read_text())["training"]["epochs"] == 3
    assert run.facts["n_train"] + run.facts["n_held"] == 72


@pytest.mark.slow
def test_signals_and_tables_go_through_the_same_door(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    time = np.arange(64) / 64
    signals = np.sin(2 * np.pi * generator.uniform(1, 8, (40, 2, 1)) * time).astype(np.float32)
    for name, data, kind in (("signal", signals, "signal"), ("table", "iris", "table")):
        run = run_tiny(tmp_path / name, data, encoder="auto", epochs=12, validate_every=12)
        assert run.facts["kind"] == kind
        first, last = run.metrics("validation")[0], run.metrics("validation")[-1]
        assert last["heldout_loss"] < first["heldout_loss"]
        assert run.encoder().preprocess is not None
