"""Batches decoded while training runs: in worker processes, every view of a sample cut from one decoded image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .order import replacement
from .source import CorruptSample, IntArray, Source
from .workers import Workers

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


@dataclass
class Reader:
    """Reads planned batches; picklable, and the same in every process."""

    source: Source
    indices: IntArray
    seed: int
    maker: Maker | None

    def __call__(self, planned: Planned) -> Read:
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


def open_stream(reader: Reader, workers: int) -> Callable[[Sequence[Planned]], Iterator[Read]]:
    """Planned batches in, read batches out, in order; read in this process when there are no workers."""
    if workers == 0:
        return partial(map, reader)
    pool: Workers[Planned, Read] = Workers(reader, workers)
    return pool
