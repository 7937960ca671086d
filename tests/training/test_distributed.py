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
from barlow.ranks import Team
from barlow.training.distributed import joined

PROLOGUE = """
import os, signal, sys, time, traceback
import torch
from barlow.errors import InputError
from barlow.training.distributed import joined
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
    with joined("cpu") as team:
        assert (team, team.is_main) == (Team(0, 1, 0), True)
        assert (team.largest(3), team.gather("x")) == (3, ["x"])
        team.barrier()
        team.check_agree("seed", 1)


def test_half_a_torchrun_environment_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(InputError, match="RANK is set but MASTER_ADDR is not: start the run with torchrun"),
        joined("cpu"),
    ):
        pass


def test_more_processes_than_gpus_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "8", "WORLD_SIZE": "16", "LOCAL_RANK": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(InputError, match="9 processes or more on a machine with 8 GPUs"), joined("cuda"):
        pass


@pytest.mark.parametrize("text", ["soon", "0", "nan", "inf", "-3"])
def test_a_time_that_is_none_gets_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**names, "BARLOW_LOST_AFTER_S": text}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"BARLOW_LOST_AFTER_S must be seconds .*'{text}'"), joined("cpu"):
        pass


COLLECTIVES = """
def main():
    with joined("cpu") as team:
        assert team.largest(10 * team.rank) == 20
        assert team.gather({"rank": team.rank}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        team.barrier()
        team.check_agree("seed", 5)
        try:
            team.check_agree("seed", 5 if team.rank < 2 else 6)
        except InputError as error:
            assert str(error) == "seed differs between ranks: 5 on rank 0, 6 on rank 2.", error
        else:
            raise AssertionError
"""


@pytest.mark.slow
def test_collectives_give_the_same_answer_on_every_rank(free_port: int) -> None:
    outcome = rehearse(COLLECTIVES, 3, free_port)
    assert outcome.exits == [0, 0, 0], outcome.err


RAISING = """
def main():
    with joined("cpu", lost_after_s=6) as team:
        team.barrier()
        if team.rank == 1:
            raise ValueError("the disk of this machine is on fire")
        if team.rank == 0:
            time.sleep(60)  # busy with something else
        team.barrier()  # waits for rank 1 for ever
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
    with joined("cpu", lost_after_s=3) as team:
        team.barrier()
        if team.rank == {victim}:
            os.kill(os.getpid(), signal.{how})
        while True:
            team.barrier()
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


ABSENT = """
def main():
    if os.environ["RANK"] == "{victim}":
        os.kill(os.getpid(), signal.SIGKILL)
    with joined("cpu", lost_after_s=3):
        pass
"""


@pytest.mark.slow
def test_a_rank_that_never_arrives_ends_all_and_is_named(free_port: int) -> None:
    outcome = rehearse(ABSENT.format(victim=2), 3, free_port)
    assert outcome.exits == [1, 1, -9]
    assert outcome.wall_s < 20
    absent = "of 3 ranks these did not arrive within 3 s: 2; see what they say"
    assert f"InputError: {absent}" in outcome.err
    assert f"rank 1 ends: rank 0 on {socket.gethostname()} failed: InputError: {absent}" in outcome.err


@pytest.mark.slow
def test_an_absent_main_rank_ends_all_and_is_named(free_port: int) -> None:
    outcome = rehearse(ABSENT.format(victim=0), 2, free_port)
    assert outcome.exits == [-9, 1]
    assert outcome.wall_s < 20
    assert f"InputError: rank 1 ends: rank 0 did not answer at 127.0.0.1:{free_port} within 3 s." in outcome.err


RESTARTED = """
import os, pathlib, sys
from barlow.training.distributed import joined

attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
with joined("cpu") as team:
    team.barrier()
    if attempt == "0" and team.is_main:
        os._exit(9)
    if attempt == "0":
        team.barrier()
    # A file each: lines of two processes on one stream may run into each other.
    pathlib.Path(sys.argv[1], f"{attempt}-{team.rank}.txt").write_text(f"met {team.gather(team.rank)}")
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
