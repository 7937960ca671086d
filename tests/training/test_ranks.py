"""Several processes as one run, through the command line: the same curve, one writer, one end for all."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from barlow.run import Run

Rehearse = Callable[..., Any]
STEPS = 20
SETTINGS = [
    *("--encoder", "resnet10-narrow", "--projector", "32", "32", "--batch-size", "16", "--epochs", "5"),
    *("--precision", "float32", "--device", "cpu", "--log-every", "1", "--lr", "0.004", "--warmup-epochs", "0"),
]

RANKS = """
data, out, port, settings = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
command = ["pretrain", data, *settings]

def two_ranks(before, folder="two"):
    shared = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    ranks = [
        fork([*command, "--out", f"{out}/{folder}"], before, f"{out}/{folder}-{rank}.txt", RANK=str(rank),
             LOCAL_RANK=str(rank), **shared)
        for rank in range(2)
    ]
    return [wait(rank) for rank in ranks]
"""
BOTH = (
    RANKS
    + """
def remember_samples():
    rank, original = os.environ.get("RANK", "alone"), trainer.Trainer.train_step
    def train_step(self, batch, epoch):
        with open(f"{out}/samples-{rank}.jsonl", "a") as file:
            print(json.dumps(batch.ids.tolist()), file=file)
        return original(self, batch, epoch)
    trainer.Trainer.train_step = train_step

def in_float64():
    remember_samples()
    build, layout = trainer.Trainer._build_network, trainer.to_layout
    trainer.Trainer._build_network = lambda self, encoder: build(self, encoder).double()
    trainer.to_layout = lambda batch: layout(batch.double())

before = in_float64 if sys.argv[5] == "float64" else remember_samples
alone = wait(fork([*command, "--out", f"{out}/one"], before, f"{out}/one.txt"))
print(json.dumps([alone, *two_ranks(before)]))
"""
)


def curves(run: Path) -> np.ndarray:
    """Loss and gradient norm of every step, [steps, 2]."""
    lines = Run(run).metrics("step")
    return np.array([[line["loss"], line["gradient_norm"]] for line in lines])


def samples(file: Path) -> np.ndarray:
    return np.array([json.loads(line) for line in file.read_text().splitlines()])


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "loss", "gradient"), [("float32", 5e-5, 0.05), ("float64", 1e-11, 1e-11)])
def test_two_processes_follow_the_curve_of_one_to_rounding(
    precision: str, loss: float, gradient: float, rehearse: Rehearse, discs: Path, free_port: int, tmp_path: Path
) -> None:
    """In float32 Adam turns the rounding of small gradients into steps of full size; float64 shows it is rounding."""
    settings = SETTINGS if precision == "float32" else [*SETTINGS, "--holdout", "0"]  # which is validated in float32
    found = rehearse(BOTH, discs, tmp_path, free_port, json.dumps(settings), precision)
    said = "".join(file.read_text() for file in tmp_path.glob("*.txt"))
    assert found.answer == [0, 0, 0], said
    assert "warning" not in said.lower()
    one, two = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert len(one) == STEPS
    np.testing.assert_allclose(two[:, 0], one[:, 0], rtol=loss)
    np.testing.assert_allclose(two[:, 1], one[:, 1], rtol=gradient)
    assert np.ptp(one[:, 0]) > 1  # the curve does something
    _one_rank_speaks_and_writes(tmp_path)
    _ranks_see_halves_of_the_same_batches(tmp_path)


def _one_rank_speaks_and_writes(folder: Path) -> None:
    assert "finished" in (folder / "two-0.txt").read_text()
    assert (folder / "two-1.txt").read_text() == ""
    lines = Run(folder / "two").metrics()
    assert len(lines) == len(Run(folder / "one").metrics())
    assert Run(folder / "two").facts["world_size"] == 2


def _ranks_see_halves_of_the_same_batches(folder: Path) -> None:
    alone, first, second = (samples(folder / f"samples-{name}.jsonl") for name in ("alone", 0, 1))
    assert first.shape == second.shape == (STEPS, 8)
    for whole, a, b in zip(alone, first, second, strict=True):
        assert not set(a) & set(b)
        assert sorted([*a, *b]) == sorted(whole)


@pytest.mark.slow
def test_two_torchrun_agents_rehearse_two_machines(discs: Path, free_port: int, tmp_path: Path) -> None:
    """The commands of docs/scaling.md for several machines, both on loopback."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port}", "--local-addr", "127.0.0.1"]
    command = [*launch, "-m", "barlow", "pretrain", str(discs), "--out", str(tmp_path / "run"), *SETTINGS]
    agents = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [agent.communicate(timeout=250)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert sum("finished" in text for text in said) == 1
    assert not any("warning" in text.lower() for text in said)
    run = Run(tmp_path / "run")
    assert (run.facts["world_size"], run.facts["status"]) == (2, "finished")
    assert len(run.metrics("step")) == STEPS


FAILING = (
    RANKS
    + """
def fail_on_the_second():
    original = trainer.Trainer.train_step
    def train_step(self, batch, epoch):
        if self.step == 3 and os.environ["RANK"] == "1":
            raise barlow.data.WorkerDied("data worker 3 (pid 77) was killed by SIGKILL: use fewer workers.")
        return original(self, batch, epoch)
    trainer.Trainer.train_step = train_step

print(json.dumps(two_ranks(fail_on_the_second)))
"""
)


@pytest.mark.slow
def test_a_rank_whose_data_worker_dies_ends_both_with_one_line(
    rehearse: Rehearse, discs: Path, free_port: int, tmp_path: Path
) -> None:
    found = rehearse(FAILING, discs, tmp_path, free_port, json.dumps(SETTINGS))
    assert found.answer == [1, 2]
    died = "data worker 3 (pid 77) was killed by SIGKILL: use fewer workers."
    assert (tmp_path / "two-1.txt").read_text() == f"barlow: {died}\n"
    last = (tmp_path / "two-0.txt").read_text().splitlines()[-1]
    assert last.startswith("rank 0 ends: rank 1 on ")
    assert last.endswith(died)


LOST = """
from barlow.training import distributed, pretrain, signals, validation

data, out, settings, moments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
AT = {
    "meeting": (distributed.dist, "init_process_group"),
    "opening": (pretrain, "open_source"),
    "restoring": (pretrain, "load_latest"),
    "first step": (trainer.Trainer, "train_step"),
    "validating": (validation.Validator, "__call__"),
    "leaving": (signals.SignalFlag, "__exit__"),
}

def die_at(moment):
    def killed(*arguments, **named):
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(*AT[moment], killed)

children = {}
for moment, victim, port in moments:
    for rank in range(2):
        children[moment, rank] = fork(
            ["pretrain", data, *settings, "--resume", "--out", f"{out}/{moment}"],
            (lambda moment=moment: die_at(moment)) if rank == victim else (lambda: None),
            f"{out}/{moment}-{rank}.txt", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), BARLOW_LOST_AFTER_S="4",
        )
began = time.monotonic()
codes = [[moment, rank, wait(child)] for (moment, rank), child in children.items()]
print(json.dumps([codes, time.monotonic() - began]))
"""


@pytest.mark.slow
def test_a_rank_killed_at_any_moment_ends_the_other_with_one_line(
    rehearse: Rehearse, discs: Path, free_ports: Callable[[], int], tmp_path: Path
) -> None:
    """All at once: they mostly wait. Only the main rank validates; it holds the store, so that its loss is one too."""
    victims = {"meeting": 1, "opening": 1, "restoring": 1, "first step": 1, "validating": 0, "leaving": 1}
    moments = [(moment, victim, free_ports()) for moment, victim in victims.items()]
    settings = [*SETTINGS, "--epochs", "1"]
    codes, took_s = rehearse(LOST, discs, tmp_path, json.dumps(settings), json.dumps(moments)).answer
    said = {moment: (tmp_path / f"{moment}-{1 - victim}.txt").read_text() for moment, victim in victims.items()}
    assert codes == [[m, rank, -9 if rank == victim else 1] for m, victim in victims.items() for rank in range(2)], said
    assert took_s < 60
    for moment, victim in victims.items():
        reasons = [line for line in said[moment].splitlines() if line.startswith(f"rank {1 - victim} ends: ")]
        gone = "127.0.0.1, which ties the ranks together, does not answer any more"
        assert reasons == [f"rank {1 - victim} ends: {'rank 1 is lost: no sign of life for 4 s' if victim else gone}"]
        assert "Traceback" not in said[moment]
