"""Signs of collapse: features that never change, and features that repeat each other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from barlow.errors import InputError

Floats = NDArray[np.floating]

EPS = 1e-5
"""Added to the variance, as in the objective (BatchNorm's)."""

SUMMARY_FEATURES = 1024
"""Features that the summary of C looks at."""

DEAD = 1e-4
"""A feature is dead when its standard deviation is below this share of the features' root mean square."""


def dead_share(z: Floats) -> float:
    """Share of the features of [N, F] that do not change from sample to sample; 1 for a constant output."""
    wide = z.astype(np.float64)
    scale = np.sqrt(np.mean(wide**2))
    return float(np.mean(wide.std(axis=0) <= DEAD * scale))


def relative_spread(z: Floats) -> float:
    """Root mean variance of the features of [N, F] over their root mean square: 0 for a constant, 1 for mean zero."""
    wide = z.astype(np.float64)
    scale = np.mean(wide**2)
    return float(np.sqrt(wide.var(axis=0).mean() / scale)) if scale > 0 else 0.0


def cross_correlation(z_a: Floats, z_b: Floats) -> NDArray[np.float64]:
    """C = Za' Zb / N [D, D] of two batches of views [N, D], each feature standardised (biased variance, eps 1e-5)."""
    if z_a.shape != z_b.shape or z_a.ndim != 2 or len(z_a) < 2:
        raise InputError(f"two views must be [N, D] of one shape with N of 2 or more, got {z_a.shape} and {z_b.shape}")
    a, b = standardise(z_a), standardise(z_b)
    return np.asarray(a.T @ b / len(a))


def standardise(embeddings: Floats) -> NDArray[np.float64]:
    """Every feature of [N, D] with mean 0 and variance 1, as the objective does it."""
    z = embeddings.astype(np.float64)
    return np.asarray((z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + EPS))


def correlation_sample(z_a: Floats, z_b: Floats, side: int = 64) -> dict[str, Any]:
    """C between `side` features evenly spaced over the width, for a picture: `matrix` [s, s] (three decimals), `width`.

    Chosen features keep the diagonal as it is; averaging blocks of C would wash it out.
    """
    chosen = _evenly(z_a.shape[1], side)
    c = cross_correlation(z_a[:, chosen], z_b[:, chosen])
    return {"matrix": c.round(3).tolist(), "width": z_a.shape[1]}


def _evenly(width: int, count: int) -> NDArray[np.int64]:
    """At most `count` feature numbers, evenly spaced over the width."""
    return np.unique(np.linspace(0, width - 1, min(count, width)).round().astype(np.int64))


def correlation_summary(z_a: Floats, z_b: Floats, *, features: int = SUMMARY_FEATURES) -> dict[str, float]:
    """`diagonal`: mean C_ii (1: the views agree); `off_diagonal`: mean |C_ij|, i != j (0: nothing is said twice).

    Over at most `features` features, evenly spaced: all pairs of a wide embedding would cost more than a training step.
    """
    chosen = _evenly(z_a.shape[1], features)
    c = cross_correlation(z_a[:, chosen], z_b[:, chosen])
    diagonal = np.diagonal(c)
    off = (np.abs(c).sum() - np.abs(diagonal).sum()) / max(1, len(c) * (len(c) - 1))
    return {"diagonal": float(diagonal.mean()), "off_diagonal": float(off)}
