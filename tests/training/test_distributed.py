"""Several processes on one machine: collectives, and an end for all when one fails, with the reason."""

import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from barlow.errors import InputError
from barlow.training.distributed import (
    World,
    any_rank,
    check_ranks_agree,
    ending_together,
    from_main,
    gather,
    set_up,
    shut_down,
)

PROLOGUE = """
import os, signal, sys, time, traceback
import torch, torch.distributed as dist
from barlow.errors import InputError
from barlow.training.distributed import *
torch.set_num_threads(1)
children = []
for rank in range({size}):
    child = os.fork()
    if child == 0:
        os.environ.update(RANK=str(rank), WORLD_SIZE="{size}", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT="{port}")
        code = 1
        try:
            main()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    children.append(child)
for rank, child in enumerate(children):
    print("exit", rank, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """What became of the ranks of one rehearsal."""

    out: list[str]
    err: str
    wall_s: float

    @property
    def exits(self) -> list[int]:
        return [int(line.split()[2]) for line in self.out if line.startswith("exit")]


def rehearse(main: str, size: int, port: int) -> Outcome:
    """Run `main` (source of a function `main()`) in `size` forked processes that know of each other as by torchrun."""
    prologue, fork = PROLOGUE.format(size=size, port=port).split("children = []")
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", f"{prologue}\n{main}\nchildren = []{fork}"], capture_output=True, text=True, timeout=120
    )
    return Outcome(done.stdout.splitlines(), done.stderr, time.monotonic() - begin)


def test_a_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    world = set_up("cpu")
    assert (world, world.is_main) == (World(0, 1, 0), True)
    assert (any_rank(True), any_rank(False), gather("x"), from_main(3)) == (True, False, ["x"], 3)
    check_ranks_agree("seed", 1)
    with ending_together(world):
        pass
    shut_down()


def test_half_a_torchrun_environment_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="RANK is set but MASTER_ADDR is not: start the run with torchrun"):
        set_up("cpu")


def test_more_processes_than_gpus_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "8", "WORLD_SIZE": "16", "LOCAL_RANK": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(InputError, match="9 processes or more on a machine with 8 GPUs"):
        set_up("cuda")


COLLECTIVES = """
def main():
    world = set_up("cpu", timeout_s=30)
    with ending_together(world):
        assert any_rank(world.rank == 1) and not any_rank(False)
        assert gather({"rank": world.rank}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert from_main(world.rank * 10 + 7) == 7
        check_ranks_agree("seed", 5)
        try:
            check_ranks_agree("seed", 5 if world.rank < 2 else 6)
        except InputError as error:
            assert str(error) == "seed differs between ranks: 5 on rank 0, 6 on rank 2.", error
        else:
            raise AssertionError
    shut_down()
"""


@pytest.mark.slow
def test_collectives_give_the_same_answer_on_every_rank(free_port: int) -> None:
    outcome = rehearse(COLLECTIVES, 3, free_port)
    assert outcome.exits == [0, 0, 0], outcome.err


RAISING = """
def main():
    world = set_up("cpu", timeout_s=30)
    try:
        with ending_together(world, lost_after_s=6):
            dist.barrier()
            if world.rank == 1:
                raise ValueError("the disk of this machine is on fire")
            if world.rank == 0:
                time.sleep(60)  # busy with something else
            any_rank(False)  # waits for rank 1 for ever
    finally:
        shut_down()
"""


@pytest.mark.slow
def test_an_exception_on_one_rank_ends_all_with_its_reason(free_port: int) -> None:
    outcome = rehearse(RAISING, 3, free_port)
    assert outcome.exits == [1, 1, 1]
    assert outcome.wall_s < 20
    reason = "the disk of this machine is on fire"
    assert f"rank 0 ends: rank 1 on {socket.gethostname()} failed: ValueError: {reason}" in outcome.err
    assert f"rank 2 ends: rank 1 on {socket.gethostname()} failed: ValueError: {reason}" in outcome.err


KILLED = """
def main():
    world = set_up("cpu", timeout_s=30)
    with ending_together(world, lost_after_s=3):
        dist.barrier()
        if world.rank == {victim}:
            os.kill(os.getpid(), signal.{how})
        while True:
            any_rank(False)
"""


@pytest.mark.slow
def test_a_killed_rank_ends_all_within_the_stated_time_and_is_named(free_port: int) -> None:
    outcome = rehearse(KILLED.format(victim=2, how="SIGKILL"), 3, free_port)
    assert outcome.exits == [1, 1, -9]
    assert outcome.wall_s < 20
    for rank in (0, 1):
        assert f"rank {rank} ends: rank 2 is lost: no sign of life for 3 s" in outcome.err


@pytest.mark.slow
def test_the_loss_of_the_rank_that_holds_the_store_ends_all_too(free_port: int) -> None:
    outcome = rehearse(KILLED.format(victim=0, how="SIGKILL"), 2, free_port)
    assert outcome.exits == [-9, 1]
    assert "rank 1 ends: 127.0.0.1, which ties the ranks together, does not answer any more" in outcome.err


RESTARTED = """
import os, pathlib, sys
import torch.distributed as dist
from barlow.training.distributed import any_rank, ending_together, gather, set_up, shut_down

attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
world = set_up("cpu", timeout_s=30)
with ending_together(world):
    dist.barrier()
    if attempt == "0" and world.rank == 0:
        os._exit(9)
    if attempt == "0":
        any_rank(False)
    # A file each: lines of two processes on one stream may run into each other.
    pathlib.Path(sys.argv[1], f"{attempt}-{world.rank}.txt").write_text(f"met {gather(world.rank)}")
shut_down()
"""


@pytest.mark.slow
def test_ranks_that_torchrun_restarts_meet_again_and_not_the_dead(tmp_path: Path) -> None:
    """torchrun gives the second attempt the store of the first, with the addresses of its processes."""
    (tmp_path / "restarted.py").write_text(RESTARTED)
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [sys.executable, "-m", *launch, str(tmp_path / "restarted.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    met = {file.name: file.read_text() for file in tmp_path.glob("*.txt")}
    assert met == {f"1-{rank}.txt": "met [0, 1]" for rank in range(2)}


SHARDED = """
import copy
from torch import nn
from torch.distributed.fsdp import fully_shard
from barlow.training.optimizers import build_optimizer, clip_gradients, parameter_groups

def train(net):
    optimizer = build_optimizer("lars", parameter_groups(net), lr=0.2, lr_biases=0.005, weight_decay=0.01)
    for step in range(5):
        torch.manual_seed(step)
        net(torch.randn(6, 5)).square().mean().backward()
        norm = clip_gradients(optimizer, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return norm

def main():
    set_up("cpu", timeout_s=30)
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    parts = copy.deepcopy(whole)
    from torch.distributed.device_mesh import init_device_mesh
    fully_shard(parts, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    torch.testing.assert_close(train(whole), train(parts))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b.full_tensor(), rtol=1e-6, atol=1e-7)
    shut_down()
"""


@pytest.mark.slow
def test_lars_and_clipping_on_sharded_weights_equal_those_on_whole_ones(free_port: int) -> None:
    outcome = rehearse(SHARDED, 2, free_port)
    assert outcome.exits == [0, 0], outcome.err
