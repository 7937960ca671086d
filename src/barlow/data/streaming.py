"""Batches decoded while training runs: in worker processes, every view of a sample cut from one decoded image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .order import replacement
from .source import CorruptSample, IntArray, LazyImage, Source, jpeg_reduction
from .workers import Workers

ATTEMPTS = 64
"""Replacements tried for one unreadable sample: 64 unreadable draws in a row mean a broken data set."""

_TOGETHER = 16  # samples whose boxes are drawn in one call; as many images are held at a time

T = TypeVar("T")


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

    def batch_boxes(
        self, ids: Sequence[int], epoch: int, heights: Sequence[int], widths: Sequence[int]
    ) -> Sequence[Sequence[Any]]: ...
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
        ids = planned.ids.copy()
        samples: dict[int, list[Tensor]] = {}
        for attempt in range(ATTEMPTS):
            missing = [slot for slot in range(len(ids)) if slot not in samples]
            for start in range(0, len(missing), _TOGETHER):
                samples.update(self._read(planned.epoch, ids, missing[start : start + _TOGETHER], corrupt))
            for slot in missing:
                if slot not in samples:
                    ids[slot] = self._replacement(planned, slot, attempt)
            if len(samples) == len(ids):
                views = [torch.stack(view) for view in zip(*(samples[slot] for slot in range(len(ids))), strict=True)]
                return Read(views, torch.from_numpy(ids), corrupt)
        return Read([], torch.empty(0, dtype=torch.int64), corrupt)

    def _replacement(self, planned: Planned, slot: int, attempt: int) -> int:
        position = int(planned.positions[slot])
        return replacement(self.indices, seed=self.seed, epoch=planned.epoch, position=position, attempt=attempt)

    def _read(
        self, epoch: int, ids: IntArray, slots: list[int], corrupt: list[tuple[int, str]]
    ) -> dict[int, list[Tensor]]:
        """By slot, the views of those samples that can be read; the others are noted."""
        maker = self.maker
        if maker is None:
            return _each(slots, ids, lambda slot: [self.source.read(int(ids[slot]))], corrupt)
        images = _each(slots, ids, lambda slot: self.source.image(int(ids[slot])), corrupt)
        if not images:
            return {}
        sides = [image.height for image in images.values()], [image.width for image in images.values()]
        every_box = maker.batch_boxes([int(ids[slot]) for slot in images], epoch, *sides)
        boxes = dict(zip(images, every_box, strict=True))
        return _each(list(images), ids, lambda slot: _cuts(maker, images.pop(slot), boxes[slot]), corrupt)


def _cuts(maker: Maker, image: LazyImage, boxes: Sequence[Any]) -> list[Tensor]:
    pixels, reduction = image.decode(allowed_reduction(boxes))
    return maker.cut(pixels, boxes, scale=1 / reduction)


def _each(
    slots: Sequence[int], ids: IntArray, read: Callable[[int], T], corrupt: list[tuple[int, str]]
) -> dict[int, T]:
    """read(slot) of every slot for which it does not find its sample corrupt."""
    done = {}
    for slot in slots:
        try:
            done[slot] = read(slot)
        except CorruptSample as error:
            corrupt.append((int(ids[slot]), error.reason))
    return done


def allowed_reduction(boxes: Sequence[Box]) -> int:
    """The most a JPEG may be reduced on decoding for every view to be like one of the whole image."""
    return jpeg_reduction(min(min(box.height, box.width) / box.size for box in boxes))


def open_stream(reader: Reader, workers: int) -> Callable[[Sequence[Planned]], Iterator[Read]]:
    """Planned batches in, read batches out, in order; read in this process when there are no workers."""
    if workers == 0:
        return partial(map, reader)
    pool: Workers[Planned, Read] = Workers(reader, workers)
    return pool
