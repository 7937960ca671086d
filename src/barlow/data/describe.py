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
    value_range: tuple[float, float]
    """Values that images show as black and as white: (0, 1) for 8-bit images, also where they are stored as floats;
    else from the lowest value (0 where none is negative) to the highest."""
    kind: Kind


def describe(source: Source, *, sample: int = 512, seed: int = 0) -> Description:
    """Description of a source from up to `sample` of its samples, drawn by the seed.

    The standard deviation is over all pixels of the sample. Raises InputError when no sample can be read, or a mean or
    a standard deviation is not finite.
    """
    moments = _Moments(source.channels)
    sizes: list[tuple[int, int]] = []
    for height, width, values in _sampled(source, sample, seed):
        sizes.append((height, width))
        moments.add(values)
    if not all(np.isfinite([*moments.mean(), *moments.std()])):
        raise InputError(f"{source.name}: samples hold NaN or infinity; remove or fill them first.")
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
        value_range=moments.value_range(),
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
    """Mean, standard deviation and range of samples of different sizes, by the pairwise update of Chan et al. (1979).

    A difference of two sums of squares would lose the deviation of data that lie far from 0.
    """

    def __init__(self, channels: int) -> None:
        self._n = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)  # of the deviations from the mean, summed
        self._low = self._high = 0.0
        self._eight_bit = True

    def add(self, values: Tensor) -> None:
        n = values.shape[1]
        mean = values.mean(1)
        apart = mean - self._mean
        self._n += n
        self._mean += apart * (n / self._n)
        self._squares += (values - mean[:, None]).square().sum(1) + apart.square() * (n * (self._n - n) / self._n)
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        if self._eight_bit:  # every value is k / 255, to the precision of float32
            levels = 255 * values
            self._eight_bit = bool(((levels - levels.round()).abs() <= 1e-6 * levels.abs()).all())

    def mean(self) -> tuple[float, ...]:
        return tuple(self._mean.tolist())

    def std(self) -> tuple[float, ...]:
        return tuple((self._squares / self._n).sqrt().tolist())

    def value_range(self) -> tuple[float, float]:
        eight_bit = self._eight_bit and self._low == 0 and self._high <= 1
        return (0.0, 1.0) if eight_bit or self._low == self._high else (self._low, self._high)
