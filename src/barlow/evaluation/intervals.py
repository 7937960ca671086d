"""Intervals around a score."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from barlow.errors import InputError

LEVEL = 0.95
"""Coverage of every interval this package states."""


def _exact_bound(n: int, level: float) -> float:
    """Clopper-Pearson: the success rate above which n failures in a row stay likely enough."""
    return float(1 - ((1 - level) / 2) ** (1 / n))


def bootstrap_interval(
    values: ArrayLike, *, seed: int, level: float = LEVEL, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-sample values [N].

    Resampling N values is drawing how often each distinct value comes up, so right-or-wrong values cost
    one binomial draw per resample. Where every answer is right (or every one wrong) the bootstrap has no
    spread; the exact binomial (Clopper-Pearson) bound is given instead.

    Raises:
        InputError: No values.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    n = int(counts.sum())
    if n == 0:
        raise InputError("an interval needs at least one value, got none: pass a non-empty test set")
    if len(distinct) == 1:
        return _degenerate(float(distinct[0]), n, level)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [rng.multinomial(n, counts / n, size=size) @ distinct / n for size in _chunks(resamples, len(distinct))]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _chunks(resamples: int, categories: int) -> list[int]:
    """Sizes that add up to `resamples`, each small enough for about 64 MB of counts."""
    size = max(1, min(resamples, 8_000_000 // categories))
    return [size] * (resamples // size) + ([resamples % size] if resamples % size else [])


def _degenerate(value: float, n: int, level: float) -> tuple[float, float]:
    bound = _exact_bound(n, level)
    if value == 1.0:
        return 1.0 - bound, 1.0
    return (0.0, bound) if value == 0.0 else (value, value)


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, float]:
    """Student-t interval of the mean of repeated measurements (draws, seeds) [R]; a point when R is 1."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    margin = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean - margin, mean + margin
