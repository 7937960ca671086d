"""What a data set looks like, from a sample of it: sizes and per-channel statistics."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from barlow.errors import InputError

from .files import sample_indices
from .source import CorruptSample, Kind, Source, jpeg_reduction

_STATISTICS_SIDE = 128
"""Pixels a side that are enough for a mean and a standard deviation: larger JPEGs are decoded reduced."""


@dataclass(frozen=True)
class Description:
    """Sizes in pixels (a signal's width is its length); mean and std per channel, 8-bit pixels on the scale [0, 1]."""

    n: int
    channels: int
    dtype: str
    height: int
    width: int
    fixed_size: bool
    """Every sampled image has the same size."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: Kind


def describe(source: Source, *, sample: int = 512, seed: int = 0) -> Description:
    """Description of a source from up to `sample` of its samples, drawn by the seed.

    The standard deviation is over all pixels of the sample. Raises InputError when no sample can be read.
    """
    moments = _Moments(source.channels)
    sizes: list[tuple[int, int]] = []
    for height, width, values in _sampled(source, sample, seed):
        sizes.append((height, width))
        moments.add(values)
    height, width = (int(n) for n in np.median(np.array(sizes), axis=0))
    return Description(
        n=len(source),
        channels=source.channels,
        dtype=str(source.dtype).removeprefix("torch."),
        height=height,
        width=width,
        fixed_size=len(set(sizes)) == 1,
        mean=moments.mean(),
        std=moments.std(),
        kind=source.kind,
    )


def _sampled(source: Source, count: int, seed: int) -> Iterator[tuple[int, int, Tensor]]:
    """(height, width, values [C, ...] float64 on the scale of the statistics) of each readable sample."""
    failure: CorruptSample | None = None
    readable = 0
    for i in sample_indices(len(source), count, seed=seed):
        try:
            height, width, values = _one(source, int(i))
        except CorruptSample as error:
            failure = failure or error
            continue
        readable += 1
        yield height, width, values.double() / (255 if values.dtype == torch.uint8 else 1)
    if not readable:
        raise InputError(f"{source.name}: none of the sampled items can be read; the first is {failure}.")


def _one(source: Source, i: int) -> tuple[int, int, Tensor]:
    if source.kind != "image":
        values = source.read(i)
        return 1, values.shape[-1] if source.kind == "signal" else 1, values.reshape(source.channels, -1)
    image = source.image(i)
    reduction = jpeg_reduction(min(image.height, image.width) / _STATISTICS_SIDE)
    return image.height, image.width, image.decode(reduction)[0].flatten(1)


class _Moments:
    """Sums for a mean and a standard deviation per channel, over samples of different sizes."""

    def __init__(self, channels: int) -> None:
        self._n = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        self._n += values.shape[1]
        self._sum += values.sum(1)
        self._squares += values.square().sum(1)

    def mean(self) -> tuple[float, ...]:
        return tuple((self._sum / self._n).tolist())

    def std(self) -> tuple[float, ...]:
        variance = self._squares / self._n - (self._sum / self._n).square()
        return tuple(variance.clamp(min=0).sqrt().tolist())
