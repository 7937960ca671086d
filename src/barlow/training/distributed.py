"""Many processes as one run: torchrun's environment, a process group, and an end for all when one fails."""

import contextlib
import datetime
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from barlow.errors import InputError, tell
from barlow.ranks import Team

COLLECTIVE_TIMEOUT_S = 1800.0  # a living rank that is silent for this long ends the run: the others wait for validation
LOST_AFTER_S = 45.0  # a rank that does not arrive, or shows no sign of life, for this long is lost, and ends the run
LOST_AFTER = "BARLOW_LOST_AFTER_S"  # environment variable that sets another time
FAILED = 1  # exit code of a rank that ends because another one failed


@contextmanager
def joined(device: str, *, lost_after_s: float | None = None) -> Iterator[Team]:
    """Join the run that torchrun describes in the environment, and leave it together; alone, where it describes none.

    device: "cuda" (NCCL, this process's GPU becomes the current one; Gloo for tensors on the CPU) or "cpu" (Gloo).
    lost_after_s: by default BARLOW_LOST_AFTER_S of the environment, else 45.

    From here to the end of the block an exception or death of one rank ends every rank, with the reason on each one's
    stderr. An exception is told to the other ranks, which exit with code 1 within a few seconds, also out of a
    collective that would wait for the failed rank. A rank that never arrives, is killed, stopped or loses its network
    is noticed after `lost_after_s`. Leaving the block waits for all ranks.

    Raises InputError when the environment is incomplete, there are more processes than GPUs, or a rank is absent.
    """
    team = _described()
    if team.size == 1:
        yield team
        return
    limit = _lost_after() if lost_after_s is None else lost_after_s
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        if team.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"{team.local_rank + 1} processes or more on a machine with {torch.cuda.device_count()} GPUs: "
                "use torchrun --nproc-per-node with at most as many, or --device cpu."
            )
        torch.cuda.set_device(team.local_rank)
    store, token = _meet(team, limit)
    try:
        with _Watch(team, token, limit) as watch:
            if team.is_main:
                _welcome(store, token, watch, limit)
            timeout = datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S)
            store.set_timeout(timeout)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=dist.PrefixStore(f"{token}/group", store),  # type: ignore[attr-defined]
                rank=team.rank,
                world_size=team.size,
                timeout=timeout,
            )
            yield team
            team.barrier()  # the heartbeat goes on until every rank has stopped checking its neighbour
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _described() -> Team:
    """The team that torchrun's environment variables describe."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Team()
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(f"RANK is set but {missing[0]} is not: start the run with torchrun, or unset RANK.")
    return Team(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0")))


def _lost_after() -> float:
    text = os.environ.get(LOST_AFTER, str(LOST_AFTER_S))
    with contextlib.suppress(ValueError):
        if 1 <= float(text) <= COLLECTIVE_TIMEOUT_S:
            return float(text)
    raise InputError(f"{LOST_AFTER} must be seconds from 1 to {COLLECTIVE_TIMEOUT_S:g}, not '{text}'.")


def _meet(team: Team, limit_s: float) -> tuple[Any, str]:
    """The launcher's key-value store, and a token that only the living ranks of this attempt know.

    torchrun keeps its store over restarts, with the addresses of the dead processes in it, and its count of restarts
    differs between machines. So every rank says hello under a name made up now, and the main rank, once it lives,
    answers each name with a token made up now.
    """
    deadline = time.monotonic() + limit_s
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = _connect(limit_s, is_master=team.is_main and not hosted)
        if team.is_main:
            return store, uuid.uuid4().hex
        name = uuid.uuid4().hex
        store.set(f"hello/{team.rank}", name)
        store.set_timeout(datetime.timedelta(seconds=max(0.1, deadline - time.monotonic())))
        return store, store.get(f"welcome/{name}").decode()
    except RuntimeError as error:  # torch's network errors among them
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if team.is_main:
            raise InputError(f"rank 0 cannot use {where}: {str(error).splitlines()[0]}") from error
        raise InputError(f"rank {team.rank} ends: rank 0 did not answer at {where} within {limit_s:g} s.") from error


def _welcome(store: Any, token: str, watch: "_Watch", limit_s: float) -> None:
    """Answer every hello, those of dead ranks too, until all living ranks have shown a heartbeat."""
    deadline = time.monotonic() + limit_s
    while absent := [rank for rank in range(1, watch.team.size) if not watch.has_shown(rank)]:
        for rank in absent:
            if store.check([f"hello/{rank}"]):
                store.set(f"welcome/{store.get(f'hello/{rank}').decode()}", token)
        if time.monotonic() > deadline:
            raise InputError(
                f"of {watch.team.size} ranks these did not arrive within {limit_s:g} s: "
                f"{', '.join(map(str, absent))}; see what they say, or set {LOST_AFTER} where processes start slowly."
            )
        time.sleep(0.02)


def _connect(timeout_s: float, *, is_master: bool = False) -> Any:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = datetime.timedelta(seconds=timeout_s)
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=is_master, timeout=timeout, wait_for_workers=False
    )


class _Watch(threading.Thread):
    """Shows a heartbeat, listens for a failure, and checks the heartbeat of the rank before this one, while entered."""

    def __init__(self, team: Team, token: str, lost_after_s: float) -> None:
        super().__init__(name="rank-watch", daemon=True)
        self.team, self.neighbour = team, (team.rank - 1) % team.size
        self.lost_after_s = lost_after_s
        self.pause_s = min(1.0, lost_after_s / 6)
        self.over = threading.Event()
        self.failing = threading.Event()  # this rank ends by an exception of its own
        # A connection of its own: the group's may be blocked by a waiting collective.
        self.store = dist.PrefixStore(f"{token}/watch", _connect(lost_after_s))  # type: ignore[attr-defined]
        self.beats = 0
        self.heard, self.heard_at = b"", time.monotonic()
        self._beat()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._report(error)
        self.over.set()
        self.join()
        if error is None:
            self._part()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                reason = self._look()
            except RuntimeError:  # torch's network errors among them
                reason = f"{os.environ['MASTER_ADDR']}, which ties the ranks together, does not answer any more"
            if reason and not self.failing.is_set() and not self.over.is_set():
                tell(f"rank {self.team.rank} ends: {reason}")
                self._let_others_read()
                os._exit(FAILED)  # only the end of the process frees a thread that hangs in a collective
            self.over.wait(self.pause_s)

    def has_shown(self, rank: int) -> bool:
        """Whether the heartbeat of a rank was ever there."""
        return bool(self.store.check([f"beat/{rank}"]))

    def _look(self) -> str | None:
        """Show the heartbeat once; the reason to end, if there is one."""
        self._beat()
        beat = self._read(f"beat/{self.neighbour}")
        if beat != self.heard:
            self.heard, self.heard_at = beat, time.monotonic()
        # Of a rank that has yet to arrive the main rank knows better, unless it is lost itself.
        patience = self.lost_after_s + (0 if beat else 5 * self.pause_s)
        if time.monotonic() - self.heard_at > patience:
            self._publish(f"rank {self.neighbour} is lost: no sign of life for {self.lost_after_s:g} s")
        return self._read("failure").decode() or None

    def _beat(self) -> None:
        self.beats += 1
        self.store.set(f"beat/{self.team.rank}", str(self.beats))

    def _report(self, error: BaseException) -> None:
        """Tell all ranks why this one ends. A broken connection is only a consequence: the cause is waited for."""
        if _is_broken_connection(error):
            self.over.wait(self.lost_after_s + 3 * self.pause_s)  # once the cause is known, `run` ends the process
        self.failing.set()
        message = str(error).splitlines()[0] if str(error) else "no message"
        with contextlib.suppress(RuntimeError):  # nobody is left to tell
            self._publish(f"rank {self.team.rank} on {socket.gethostname()} failed: {type(error).__name__}: {message}")
            self._let_others_read()

    def _let_others_read(self) -> None:
        """The main rank may hold the store, and a store that is gone looks like a failure of its own."""
        if self.team.is_main:
            time.sleep(3 * self.pause_s)

    def _part(self) -> None:
        """Leave a run that went well; the main rank goes last, since it may hold the store."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"bye/{self.team.rank}", "")
            if self.team.is_main:
                everyone = [f"bye/{rank}" for rank in range(self.team.size)]
                self.store.wait(everyone, datetime.timedelta(seconds=self.lost_after_s))

    def _read(self, key: str) -> bytes:
        return bytes(self.store.get(key)) if self.store.check([key]) else b""

    def _publish(self, reason: str) -> None:
        self.store.compare_set("failure", "", reason)  # the first reason stands


def _is_broken_connection(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("connection", "timed out", "gloo", "nccl"))
    )
