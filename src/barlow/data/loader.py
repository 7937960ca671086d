"""Batches for pretraining: which samples, in which order, decoded where."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from barlow.errors import InputError, suggest

from .order import epoch_order, rank_positions, replacement
from .source import IntArray, Source
from .store import CACHES, Cache, Store, common_shape, open_store
from .streaming import ATTEMPTS, Maker, Planned, Read, Reader, open_stream

CORRUPT_SHARE = 0.01
"""Share of a source's samples that may be unreadable before a run ends."""
_EARLIEST_VERDICT = 10_000  # samples seen before their share stands for the whole


@dataclass(frozen=True)
class Batch:
    """One step's samples of one rank; exactly one of `images` and `cuts` is there."""

    images: Tensor | None
    """[B, C, H, W] uint8 or float32 (signals [B, C, T], tables [B, F])."""
    cuts: list[Tensor] | None
    """Views cut where the images were decoded, [B, C, h, w] each, for `maker.finish`."""
    ids: Tensor
    """[B] int64 indices into the source, of the samples really read."""
    wait_s: float
    """Seconds the caller waited for this batch."""


class Loader:
    """Complete batches of the samples at `indices`, for one rank.

    The order is a pure function of (seed, epoch): step s of all ranks together is the same global batch for any number
    of ranks (of the same global size) and of workers. Images of one small size are decoded once (`cache`, see
    `open_store`); others are decoded in `workers` processes, where `maker` also cuts the views. An unreadable sample
    is skipped for a readable one that (seed, epoch, position) decides, counted and named in `skipped`.

    Raises InputError for settings that make no batch, for mixed sizes without a maker, and, here or while batches are
    drawn, when over CORRUPT_SHARE of the samples cannot be read; WorkerDied when a worker process is killed.
    """

    def __init__(
        self,
        source: Source,
        indices: IntArray,
        batch_size: int,
        *,
        maker: Maker | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        cache: Cache = "auto",
        device: str | torch.device = "cpu",
    ) -> None:
        self._source, self._indices = source, np.asarray(indices, np.int64)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._seed, self._device = seed, torch.device(device)
        _check(source, self._indices, batch_size, rank, world_size, workers)
        if cache not in CACHES:
            raise InputError(f"There is no cache '{cache}'. {suggest(cache, CACHES)}")
        self._corrupt: dict[int, str] = {}
        self._seen = np.zeros(len(source), bool)
        self._store = open_store(source, self._indices, cache, self._device, _corrupt_limit(len(source)))
        if self._store is not None:
            self._count(self._store.corrupt.items(), self._indices)
            self._bad = np.isin(np.arange(len(source)), list(self._store.corrupt))
        else:
            self._stream = self._open_stream(maker, workers)

    @property
    def steps_per_epoch(self) -> int:
        """Complete global batches in an epoch; what is left over waits for the next epoch's order."""
        return len(self._indices) // (self._batch_size * self._world_size)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(key, reason) of every sample found unreadable so far, by index in the source."""
        return [(self._source.keys[i], self._corrupt[i]) for i in sorted(self._corrupt)]

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch]:
        """The epoch's batches of this rank, from `start_step` on. One epoch at a time: close it before the next."""
        batches = self._batches(self._planned(epoch, start_step))
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            yield replace(self._on_device(batch), wait_s=time.perf_counter() - began)

    def of_all_ranks(self, epoch: int, step: int) -> Batch:
        """The global batch of one step, of which each rank gets its part. No epoch may be open."""
        whole = rank_positions(step, self._batch_size * self._world_size, 0, 1)
        with closing(self._batches([Planned(epoch, whole, self._order(epoch)[whole])])) as batches:
            return next(batches)

    def _planned(self, epoch: int, start_step: int) -> list[Planned]:
        order = self._order(epoch)
        steps = range(start_step, self.steps_per_epoch)
        positions = [rank_positions(step, self._batch_size, self._rank, self._world_size) for step in steps]
        return [Planned(epoch, at, order[at]) for at in positions]

    def _order(self, epoch: int) -> IntArray:
        groups = None if self._source.groups is None else self._source.groups[self._indices]
        return epoch_order(self._indices, seed=self._seed, epoch=epoch, groups=groups)

    def _batches(self, plan: list[Planned]) -> Generator[Batch]:
        store = self._store
        if store is None:
            batches = (self._as_batch(read) for read in self._stream(plan))
        else:
            batches = (self._stored(store, planned) for planned in plan)
        if self._device.type == "cuda" and (store is None or not store.on_device):
            return ahead(pinned(batch) for batch in batches)
        slow = self._device.type != "cpu" if store is None else store.on_disk
        return ahead(batches) if slow else batches

    def _stored(self, store: Store, planned: Planned) -> Batch:
        ids = planned.ids.copy()
        for k in np.flatnonzero(self._bad[ids]):
            ids[k] = self._stand_in(planned.epoch, int(planned.positions[k]))
        return Batch(store.gather(ids), None, torch.from_numpy(ids), 0.0)

    def _stand_in(self, epoch: int, position: int) -> int:
        draws = (
            replacement(self._indices, seed=self._seed, epoch=epoch, position=position, attempt=attempt)
            for attempt in range(ATTEMPTS)
        )
        return next(i for i in draws if not self._bad[i])

    def _as_batch(self, read: Read) -> Batch:
        self._count(read.corrupt, read.ids.numpy())
        if not read.views:  # one sample and all its replacements
            raise self._too_corrupt()
        if self._cuts:
            return Batch(None, read.views, read.ids, 0.0)
        return Batch(read.views[0], None, read.ids, 0.0)

    def _on_device(self, batch: Batch) -> Batch:
        """The batch on the device; its ids stay on the CPU, where views are drawn from them."""
        if self._device.type == "cpu":
            return batch
        images = None if batch.images is None else batch.images.to(self._device, non_blocking=True)
        cuts = None if batch.cuts is None else [cut.to(self._device, non_blocking=True) for cut in batch.cuts]
        return replace(batch, images=images, cuts=cuts)

    def _open_stream(self, maker: Maker | None, workers: int) -> Callable[[list[Planned]], Iterator[Read]]:
        cuts = maker if self._source.kind == "image" else None
        if cuts is None and common_shape(self._source, self._indices) is None:
            raise InputError(
                f"{self._source.name}: images of several sizes make no batch before a view is cut from each."
            )
        self._cuts = cuts is not None
        reader = Reader(self._source, self._indices, self._seed, cuts)
        return open_stream(reader, workers)

    def _count(self, corrupt: Iterable[tuple[int, str]], ids: IntArray) -> None:
        """Note what was read and what could not be; raise InputError when too much could not."""
        self._corrupt.update(corrupt)
        self._seen[ids] = True
        if not self._corrupt:
            return
        self._seen[list(self._corrupt)] = True
        counted = max(int(np.count_nonzero(self._seen)), min(len(self._source), _EARLIEST_VERDICT))
        if len(self._corrupt) > _corrupt_limit(counted):
            raise self._too_corrupt()

    def _too_corrupt(self) -> InputError:
        named = "; ".join(f"{key} ({reason})" for key, reason in self.skipped[:3])
        more = ", ..." if len(self._corrupt) > 3 else ""
        return InputError(
            f"{self._source.name}: {len(self._corrupt)} of {len(self._source)} samples cannot be read, over the limit "
            f"of {CORRUPT_SHARE:.0%}: {named}{more}. Repair or remove them."
        )


def _corrupt_limit(n: int) -> int:
    return max(1, int(CORRUPT_SHARE * n))  # one stray file among few does not end a run


def _check(source: Source, indices: IntArray, batch_size: int, rank: int, world_size: int, workers: int) -> None:
    if batch_size < 1 or workers < 0:
        raise InputError(f"The batch size must be at least 1 and workers at least 0, not {batch_size} and {workers}.")
    if not 0 <= rank < world_size:
        raise InputError(f"The rank must lie in 0..{world_size - 1}, not {rank}.")
    if len(indices) < batch_size * world_size:
        raise InputError(
            f"{source.name}: {len(indices)} samples do not fill one batch of {batch_size * world_size}; "
            "choose a smaller batch size or give more samples."
        )


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from where a GPU copies while it computes."""
    images = None if batch.images is None else batch.images.pin_memory()
    cuts = None if batch.cuts is None else [cut.pin_memory() for cut in batch.cuts]
    return replace(batch, images=images, cuts=cuts)


def ahead(batches: Iterator[Batch], depth: int = 2) -> Generator[Batch]:
    """The same batches, up to `depth` of them prepared in a thread while the caller works."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, batches, None) for _ in range(depth))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, batches, None))
            yield batch
