"""Batches decoded while training runs: in worker processes, every view of a sample cut from one decoded image."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .order import replacement
from .source import CorruptSample, IntArray, Source

ATTEMPTS = 64
"""Replacements tried for one unreadable sample: 64 unreadable draws in a row mean a broken data set."""


class Box(Protocol):
    """What the stream needs to know of a view's place: pixels of the full-size image, and the view's side."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def size(self) -> int: ...


class Maker(Protocol):
    """The half of a `barlow.views.ViewMaker` that works where images are decoded."""

    def boxes(self, id: int, epoch: int, height: int, width: int) -> Sequence[Any]: ...
    def cut(self, image: Tensor, boxes: Sequence[Any], scale: float = 1.0) -> list[Tensor]: ...


class Planned(NamedTuple):
    """One batch to read: the epoch, positions in its order, and the samples there."""

    epoch: int
    positions: IntArray
    ids: IntArray


class Read(NamedTuple):
    """One batch as read. `views` has one tensor [B, C, h, w] per cut, or the images alone without a maker."""

    views: list[Tensor]
    ids: Tensor
    corrupt: list[tuple[int, str]]
    """Index in the source and reason, of every sample that was to be read and could not."""


class WorkerDied(RuntimeError):  # noqa: N818
    """A worker process ended without a word; the message names it."""


@dataclass
class Reader(Dataset[Read]):
    """Reads planned batches; picklable, and the same in every process."""

    source: Source
    indices: IntArray
    seed: int
    maker: Maker | None

    def __getitem__(self, planned: Planned) -> Read:
        corrupt: list[tuple[int, str]] = []
        ids, samples = [], []
        for position, i in zip(planned.positions.tolist(), planned.ids.tolist(), strict=True):
            found = self._readable(planned.epoch, position, i, corrupt)
            if found is None:
                return Read([], torch.empty(0, dtype=torch.int64), corrupt)
            ids.append(found[0])
            samples.append(found[1])
        views = [torch.stack(view) for view in zip(*samples, strict=True)]
        return Read(views, torch.tensor(ids, dtype=torch.int64), corrupt)

    def _readable(
        self, epoch: int, position: int, i: int, corrupt: list[tuple[int, str]]
    ) -> tuple[int, list[Tensor]] | None:
        """The sample, or the first readable one of its replacements; None when there is none in sight."""
        for attempt in range(ATTEMPTS):
            try:
                return i, self._views(epoch, i)
            except CorruptSample as error:
                corrupt.append((i, error.reason))
            i = replacement(self.indices, seed=self.seed, epoch=epoch, position=position, attempt=attempt)
        return None

    def _views(self, epoch: int, i: int) -> list[Tensor]:
        if self.maker is None:
            return [self.source.read(i)]
        image = self.source.image(i)
        boxes = self.maker.boxes(i, epoch, image.height, image.width)
        pixels, reduction = image.decode(allowed_reduction(boxes))
        return self.maker.cut(pixels, boxes, scale=1 / reduction)


def allowed_reduction(boxes: Sequence[Box]) -> int:
    """The most a JPEG may be reduced on decoding so that no box has fewer pixels than its view."""
    spare = min(min(box.height, box.width) / box.size for box in boxes)
    return max(r for r in (1, 2, 4, 8) if r == 1 or r <= spare)


class Stream:
    """Planned batches in, read batches out, in order; workers live as long as the stream."""

    def __init__(self, reader: Reader, workers: int, *, pin: bool) -> None:
        self._reader, self._workers = reader, workers
        self._plan = _Plan()
        self._loader = None if workers == 0 else self._pool(pin)

    def __call__(self, plan: Sequence[Planned]) -> Iterator[Read]:
        if self._loader is None:
            yield from (self._reader[planned] for planned in plan)
            return
        self._plan.batches = plan
        yield from self._from_workers(self._loader)

    def _from_workers(self, loader: "DataLoader[Read]") -> Iterator[Read]:
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of forking with threads about; workers touch neither threads nor the GPU
                warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
                batches = iter(loader)
            yield from batches
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise WorkerDied(
                f"{' '.join(str(error).split())} This ends the run: a worker is mostly killed for memory or by a full "
                "/dev/shm; use fewer workers, or none."
            ) from error

    def _pool(self, pin: bool) -> "DataLoader[Read]":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            return DataLoader(
                self._reader,
                batch_size=None,
                sampler=self._plan,
                num_workers=self._workers,
                collate_fn=_as_read,
                pin_memory=pin,
                persistent_workers=True,
            )


class _Plan(Sampler[Planned]):
    """The batches that the workers are handed next; set before each iteration."""

    def __init__(self) -> None:
        self.batches: Sequence[Planned] = ()

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.batches)


def _as_read(read: Any) -> Any:
    return read  # a batch already, as the reader made it
