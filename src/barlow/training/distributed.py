"""Many processes as one run: torchrun's environment, a few collectives, and an end for all when one fails."""

import datetime
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from barlow.errors import InputError

COLLECTIVE_TIMEOUT_S = 1800.0  # a living rank that is silent for this long ends the run; one validates alone
LOST_AFTER_S = 30.0  # a rank that shows no sign of life for this long is lost, and ends the run
FAILED = 1  # exit code of a rank that ends because another one failed


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """number among the processes of this machine; also the number of its GPU"""

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and talks."""
        return self.rank == 0


def set_up(device: str, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> World:
    """Join the run that torchrun describes in the environment; alone, where it describes none.

    device: "cuda" (NCCL, this process's GPU becomes the current one; Gloo for tensors on the CPU) or "cpu" (Gloo).
    Raises InputError when the environment is incomplete or there are more processes than GPUs.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(f"RANK is set but {missing[0]} is not: start the run with torchrun, or unset RANK.")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = World(rank, size, int(os.environ.get("LOCAL_RANK", "0")))
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        if world.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"{world.local_rank + 1} processes or more on a machine with {torch.cuda.device_count()} GPUs: "
                "use torchrun --nproc-per-node with at most as many, or --device cpu."
            )
        torch.cuda.set_device(world.local_rank)
    timeout = datetime.timedelta(seconds=timeout_s)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=_meet(world, timeout), rank=rank, world_size=size, timeout=timeout)
    return world


def _meet(world: World, timeout: datetime.timedelta) -> Any:
    """A part of the launcher's key-value store that only the living ranks of this attempt know.

    torchrun keeps its store over restarts, with the addresses of the dead processes in it, and its count of restarts
    differs between machines. So every rank says hello under a name made up now, and the main rank, once it lives,
    answers each name with a token made up now.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = _connect(timeout, is_master=world.is_main and not hosted)
    if world.is_main:
        token = uuid.uuid4().hex
        _welcome(store, token, set(range(1, world.size)), time.monotonic() + timeout.total_seconds())
    else:
        name = uuid.uuid4().hex
        store.set(f"hello/{world.rank}", name)
        token = store.get(f"welcome/{name}").decode()
        store.set(f"{token}/here/{world.rank}", "")
    return dist.PrefixStore(token, store)  # type: ignore[attr-defined]


def _welcome(store: Any, token: str, absent: set[int], deadline: float) -> None:
    """Answer every hello, those of dead ranks too, until all living ranks have taken the token."""
    while absent:
        for rank in sorted(absent):
            if store.check([f"hello/{rank}"]):
                store.set(f"welcome/{store.get(f'hello/{rank}').decode()}", token)
            if store.check([f"{token}/here/{rank}"]):
                absent.discard(rank)
        if absent and time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(absent)} did not arrive in time")
        time.sleep(0.02)


def _connect(timeout: datetime.timedelta, *, is_master: bool = False) -> Any:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=is_master, timeout=timeout, wait_for_workers=False
    )


def shut_down() -> None:
    """Leave the group; `ending_together` has waited for the others. Does nothing for a process alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on at least one rank; the same answer on all."""
    return bool(largest(int(flag)))


def largest(value: int) -> int:
    """The largest of the ranks' values, on all ranks."""
    if not dist.is_initialized():
        return value
    votes = torch.tensor([value])  # on the CPU: no wait for the GPU
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return int(votes.item())


def gather(value: Any) -> list[Any]:
    """Every rank's `value` (plain values and CPU tensors) in the order of the ranks, on all ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """The main rank's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def check_ranks_agree(what: str, value: Any) -> None:
    """Raise InputError on every rank when `value` (settings, data fingerprint) is not the same on all of them."""
    values = gather(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise InputError(f"{what} differs between ranks: {values[0]!r} on rank 0, {other!r} on rank {rank}.")


@contextmanager
def ending_together(world: World, lost_after_s: float = LOST_AFTER_S) -> Iterator[None]:
    """Within this block an exception or death of one rank ends every rank, with the reason on each one's stderr.

    An exception is told to the other ranks, which exit with code 1 within about three seconds, also out of a
    collective that would wait for the failed rank. A rank that is killed, stopped or loses its network is noticed
    after `lost_after_s`. Leaving the block waits for all ranks. Does nothing for a process alone.
    """
    if world.size == 1:
        yield
        return
    watch = _Watch(world, lost_after_s)
    watch.start()
    try:
        yield
        dist.barrier()  # nobody stops breathing while another still looks
    except BaseException as error:
        watch.report(error)
        raise
    finally:
        watch.stop()


class _Watch(threading.Thread):
    """Breathes, listens for a failure, and looks whether the rank before it breathes; over a store of its own."""

    def __init__(self, world: World, lost_after_s: float) -> None:
        super().__init__(name="rank-watch", daemon=True)
        self.rank, self.neighbour = world.rank, (world.rank - 1) % world.size
        self.lost_after_s = lost_after_s
        self.pause_s = min(1.0, lost_after_s / 6)
        self.over = threading.Event()
        self.failing = threading.Event()  # this rank ends by an exception of its own
        self.store = _own_store(lost_after_s)
        self.breaths = 0
        self.heard, self.heard_at = b"", time.monotonic()

    def run(self) -> None:
        while not self.over.wait(self.pause_s):
            try:
                reason = self._look()
            except RuntimeError:  # torch's network errors among them
                reason = f"{os.environ['MASTER_ADDR']}, which ties the ranks together, does not answer any more"
            if reason and not self.failing.is_set():
                print(f"rank {self.rank} ends: {reason}", file=sys.stderr, flush=True)
                self.over.wait(2 * self.pause_s)  # this process may hold the store: let the others read
                os._exit(FAILED)  # only the end of the process frees a thread that hangs in a collective

    def _look(self) -> str | None:
        """Breathe once; the reason to end, if there is one."""
        self.breaths += 1
        self.store.set(f"breath/{self.rank}", str(self.breaths))
        breath = self._read(f"breath/{self.neighbour}")
        if breath != self.heard:
            self.heard, self.heard_at = breath, time.monotonic()
        if time.monotonic() - self.heard_at > self.lost_after_s:
            self._publish(f"rank {self.neighbour} is lost: no sign of life for {self.lost_after_s:g} s")
        return self._read("failure").decode() or None

    def report(self, error: BaseException) -> None:
        """Tell all ranks why this one ends. A broken connection is only a consequence: the cause is waited for."""
        if _is_broken_connection(error):
            self.over.wait(self.lost_after_s + 3 * self.pause_s)  # once the cause is known, `run` ends the process
        self.failing.set()
        message = str(error).splitlines()[0] if str(error) else "no message"
        try:
            self._publish(f"rank {self.rank} on {socket.gethostname()} failed: {type(error).__name__}: {message}")
            self.over.wait(2 * self.pause_s)
        except RuntimeError:
            return  # nobody is left to tell

    def stop(self) -> None:
        self.over.set()
        self.join()

    def _read(self, key: str) -> bytes:
        return bytes(self.store.get(key)) if self.store.check([key]) else b""

    def _publish(self, reason: str) -> None:
        self.store.compare_set("failure", "", reason)  # the first reason stands


def _own_store(timeout_s: float) -> Any:
    """A connection of its own to the run's store: the group's may be blocked by a waiting collective."""
    token = from_main(uuid.uuid4().hex)
    store = _connect(datetime.timedelta(seconds=timeout_s))
    return dist.PrefixStore(f"{token}/watch", store)  # type: ignore[attr-defined]


def _is_broken_connection(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("connection", "timed out", "gloo", "nccl"))
    )
