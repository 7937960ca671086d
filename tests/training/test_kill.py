"""Kill it at any moment, start it again: the result is bit for bit the one without the kill."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from barlow.cli import main
from barlow.run import Run
from barlow.training.checkpoint import checkpoint_steps
from barlow.training.trainer import Trainer

Rehearse = Callable[..., Any]
SETTINGS = [
    *("--encoder", "resnet10-narrow", "--projector", "16", "16", "--batch-size", "16", "--device", "cpu"),
    *("--precision", "float32", "--log-every", "1", "--checkpoint-steps", "1", "--ema", "0.9"),
]

KILLS = """
data, out, seed, kills, settings = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
from barlow import files
from barlow.training import loop, pretrain, trackers, validation

MOMENTS = {
    "preparing": (pretrain, "_prepare_folder"),
    "restoring": (pretrain._Session, "restore"),
    "step": (trainer.Trainer, "train_step"),
    "log": (trackers.MetricsLog, "log"),
    "copy": (checkpoint, "snapshot"),
    "write": (checkpoint, "_write"),
    "rename": (files, "_sync_folder"),
    "link": (checkpoint, "_link"),
    "prune": (checkpoint, "_prune"),
    "validate": (validation.Validator, "__call__"),
    "encoder": (pretrain._Session, "_save_encoder"),
}

def tell(moment, count, pipe):
    owner, name = MOMENTS[moment]
    original, seen = getattr(owner, name), [0]
    def told(*arguments, **named):
        seen[0] += 1
        if seen[0] == count:
            os.write(pipe, b"!")
        return original(*arguments, **named)
    setattr(owner, name, told)

def killed(moment, count, delay):
    ours, theirs = os.pipe()
    child = fork(command, lambda: tell(moment, count, theirs), f"{out}/killed.txt")
    os.close(theirs)
    os.read(ours, 1)
    os.close(ours)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return [moment, count, wait(child)]

whole = wait(fork(["pretrain", data, "--out", f"{out}/whole", *settings], out=f"{out}/whole.txt"))
command = ["pretrain", data, "--out", f"{out}/killed", "--resume", *settings]
draw, done = random.Random(seed), []
moments = list(MOMENTS) * 2
while len(done) < kills:
    moment = moments[len(done) % len(moments)]
    count = 1 if moment in ("preparing", "restoring", "validate", "encoder") else draw.randint(1, 4)
    done.append(killed(moment, count, draw.uniform(0, 0.01)))
print(json.dumps({"whole": whole, "kills": done, "last": wait(fork(command, out=f"{out}/killed.txt"))}))
"""


def state(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run.checkpoints / "last.pt", weights_only=True)
    return found


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    """Bit for bit, through every nested container."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_equal(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(a, b, f"{where}[{k}]")
    else:
        assert ours == theirs, where


def timeless(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait")} for line in run.metrics()]


def assert_same_run(ours: Run, theirs: Run) -> None:
    assert_equal(state(ours), state(theirs), "checkpoint")
    assert timeless(ours) == timeless(theirs)
    assert (ours.path / "encoder.safetensors").read_bytes() == (theirs.path / "encoder.safetensors").read_bytes()


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(rehearse: Rehearse, discs: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "--epochs", "20", "--validate-every", "4"]
    found = rehearse(KILLS, discs, tmp_path, 7, 20, *settings).answer
    assert found["whole"] == 0, (tmp_path / "whole.txt").read_text()
    assert found["last"] == 0, (tmp_path / "killed.txt").read_text()
    assert [code for _, _, code in found["kills"]] == [-9] * 20, found
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    assert_same_run(killed, whole)
    assert killed.facts["status"] == "finished"
    assert [line["step"] for line in killed.metrics("step")] == list(range(1, 81))
    assert not list(killed.path.rglob("*.tmp"))


SIGNALLED = """
data, out, settings = sys.argv[1], sys.argv[2], sys.argv[3:]
command = ["pretrain", data, *settings]

def send(name, after):
    original = trainer.Trainer.train_step
    def train_step(self, *arguments):
        if self.step == after and os.environ.get("RANK", "1") == "1":
            os.kill(os.getpid(), signal.Signals[name])
        return original(self, *arguments)
    trainer.Trainer.train_step = train_step

def alone(folder, *extra, before=lambda: None):
    return wait(fork([*command, "--out", f"{out}/{folder}", *extra], before, f"{out}/{folder}.txt"))
"""
ONE_RANK = (
    SIGNALLED
    + """
codes = [alone("whole")]
for name in ("SIGTERM", "SIGUSR1"):
    codes += [alone(name, before=lambda: send(name, 3)), alone(name, "--resume")]
print(json.dumps(codes))
"""
)


@pytest.mark.slow
def test_a_preempted_command_saves_exits_as_schedulers_expect_and_goes_on(
    rehearse: Rehearse, discs: Path, tmp_path: Path
) -> None:
    settings = [*SETTINGS[:-4], "--ema", "0.9", "--epochs", "2"]  # no checkpoint but the one that the signal asks for
    assert rehearse(ONE_RANK, discs, tmp_path, *settings).answer == [0, 143, 0, 138, 0]
    for name in ("SIGTERM", "SIGUSR1"):
        assert_same_run(Run(tmp_path / name), Run(tmp_path / "whole"))
        said = (tmp_path / f"{name}.txt").read_text()
        assert said.count(f"interrupted after saving; continue with --resume --out {tmp_path / name}\n") == 1
        assert "resuming   after step 4 of 8" in said


TWO_RANKS = (
    SIGNALLED
    + """
port = settings.pop()
command = ["pretrain", data, *settings]

def both(folder, *extra, before=lambda: None):
    shared = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    ranks = [fork([*command, "--out", f"{out}/{folder}", *extra], before, f"{out}/{folder}.txt", RANK=str(rank),
                  LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    return [wait(rank) for rank in ranks]

print(json.dumps([both("whole"), both("cut", before=lambda: send("SIGTERM", 3)), both("cut", "--resume")]))
"""
)


@pytest.mark.slow
def test_a_signal_to_one_rank_ends_all_after_saving_and_they_go_on(
    rehearse: Rehearse, discs: Path, free_port: int, tmp_path: Path
) -> None:
    settings = [*SETTINGS[:-4], "--ema", "0.9", "--epochs", "3"]
    found = rehearse(TWO_RANKS, discs, tmp_path, *settings, free_port).answer
    assert found == [[0, 0], [143, 143], [0, 0]], (tmp_path / "cut.txt").read_text()
    assert_same_run(Run(tmp_path / "cut"), Run(tmp_path / "whole"))
    said = (tmp_path / "cut.txt").read_text()
    assert said.count("interrupted after saving") == 1
    assert "resuming   after step 10 of 12" in said  # ranks agree every tenth step


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """120 rows of six related numbers, as .npy."""
    rows = np.random.default_rng(0).normal(size=(120, 2)) @ np.random.default_rng(1).normal(size=(2, 6))
    np.save(tmp_path / "rows.npy", rows.astype(np.float32))
    return tmp_path / "rows.npy"


def pretrain(data: Path, out: Path, *extra: str) -> Run:
    """One small run through the command line, in this process."""
    small = ["--encoder", "mlp", "--projector", "64", "64", "--batch-size", "32", "--device", "cpu", "--epochs", "3"]
    main(["pretrain", str(data), "--out", str(out), *small, "--log-every", "1", "--checkpoint-steps", "1", *extra])
    return Run(out)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    damage: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, torn = pretrain(table, tmp_path / "whole"), pretrain(table, tmp_path / "torn")
    last = torn.checkpoints / "last.pt"
    newest = max(torn.checkpoints.glob("step-*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    half = {"cut off": bytes(content[: len(content) // 2]), "one bit": bytes(content), "empty": b""}[damage]
    newest.write_bytes(half)
    assert last.stat().st_ino == newest.stat().st_ino  # the damage is in both names
    capsys.readouterr()
    resumed = pretrain(table, tmp_path / "torn", "--resume")
    said = capsys.readouterr().err
    assert said.count(f"barlow: warning: checkpoint {newest} is damaged") == 1
    assert f"resuming   after step {len(whole.metrics('step')) - 1} of" in said
    assert_same_run(resumed, whole)


def test_a_full_disk_costs_no_run_and_leaves_the_last_good_checkpoint(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit on a file's size stands for the full disk: a real failure of write(2), in the middle of a file."""
    whole = pretrain(table, tmp_path / "whole")
    size = (whole.checkpoints / "last.pt").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = Trainer.train_step

    def train_step(self: Trainer, *arguments: Any) -> Any:
        if self.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    capsys.readouterr()
    try:
        full = pretrain(table, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    said = capsys.readouterr().err
    last = checkpoint_steps(full.checkpoints)[-1]
    assert last in (4, 5)  # that of step 5 was being written when the disk filled up
    assert said.count("warning    no space left for checkpoint") == len(whole.metrics("step")) - last
    assert "the one before is kept" in said
    assert full.facts["status"] == "finished"
    assert (full.path / "encoder.safetensors").read_bytes() == (whole.path / "encoder.safetensors").read_bytes()
    assert_same_run(pretrain(table, tmp_path / "full", "--resume"), whole)


def test_a_disk_without_any_room_names_the_encoder_at_the_end_and_the_run_can_be_continued(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pretrain(table, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    original, steps = Trainer.train_step, []

    def train_step(self: Trainer, *arguments: Any) -> Any:
        if self.step == 5:  # less than any file has already: metrics.jsonl cannot grow either
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        steps.append(self.step)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as left:
            pretrain(table, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.splitlines()[-1] == f"barlow: File too large: {tmp_path / 'full' / 'encoder.safetensors'}"
    assert said.count("metrics.jsonl") == 1
    assert steps == list(range(len(whole.metrics("step"))))
    assert_same_run(pretrain(table, tmp_path / "full", "--resume"), whole)


@pytest.mark.parametrize("stderr", ["full disk", "closed pipe"])
def test_a_run_that_cannot_report_is_finished_all_the_same(stderr: str, table: Path, tmp_path: Path) -> None:
    small = ["--encoder", "mlp", "--projector", "8", "8", "--batch-size", "32", "--device", "cpu", "--epochs", "1"]
    command = [sys.executable, "-m", "barlow", "pretrain", str(table), "--out", str(tmp_path / "run"), *small]
    reading, closed = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr={"full disk": full, "closed pipe": closed}[stderr])
    os.close(closed)
    os.close(full)
    assert (done.returncode, done.stdout) == (0, b"")
    assert Run(tmp_path / "run").facts["status"] == "finished"


def test_a_resume_with_other_settings_names_the_fields(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(table, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        pretrain(table, tmp_path / "run", "--resume", "--lr", "0.5", "--seed", "3")
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.count("\n") == 1
    assert "--lr 0.5 (was None), --seed 3 (was 0)" in said
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_while_its_folder_was_made_begins_again(table: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / ".config.json.77-0a1b2c3d.tmp").write_text("{")
    run = pretrain(table, tmp_path / "run", "--resume")
    assert run.facts["status"] == "finished"
    assert not list(run.path.glob("*.tmp"))
