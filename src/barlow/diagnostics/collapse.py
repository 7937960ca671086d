"""Signs of collapse: features that never change, and features that repeat each other.

No figure depends on the scale of the features; all are NaN where a feature is NaN or infinite.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from barlow.diagnostics.scale import centred, unit_scale
from barlow.errors import InputError

Floats = NDArray[np.floating]

EPS = 1e-5
"""Added to every variance, as a share of the features' mean variance: what BatchNorm adds to features of variance 1."""

SUMMARY_FEATURES = 1024
"""Features that the summary of C looks at."""

DEAD = 1e-4
"""A feature is dead when its standard deviation is below this share of the features' root mean square."""


def dead_share(z: Floats) -> float:
    """Share of the features of [N, F] that do not change from sample to sample; 1 for a constant output."""
    wide = unit_scale(z)
    scale = np.sqrt(np.mean(wide**2))
    return float("nan") if np.isnan(scale) else float(np.mean(wide.std(axis=0) <= DEAD * scale))


def relative_spread(z: Floats) -> float:
    """Root mean variance of the features of [N, F] over their root mean square: 0 for a constant, 1 for mean zero."""
    wide = unit_scale(z)
    scale = np.mean(wide**2)
    return 0.0 if scale == 0 else float(np.sqrt(wide.var(axis=0).mean() / scale))


def cross_correlation(z_a: Floats, z_b: Floats) -> NDArray[np.float64]:
    """C = Za' Zb / N [D, D] of two batches of views [N, D], each feature standardised (biased variance)."""
    if z_a.shape != z_b.shape or z_a.ndim != 2 or len(z_a) < 2:
        raise InputError(f"two views must be [N, D] of one shape with N of 2 or more, got {z_a.shape} and {z_b.shape}")
    a, b = standardise(z_a), standardise(z_b)
    return np.asarray(a.T @ b / len(a))


def standardise(embeddings: Floats) -> NDArray[np.float64]:
    """Every feature of [N, D] with mean 0 and variance 1; a constant one is 0.

    The objective adds 1e-5 to the variances whatever their scale. Here it is a share of their mean, so that
    embeddings in small units have the correlations that they have in large ones.
    """
    z = centred(embeddings)
    variance = (z**2).mean(axis=0)
    floor = EPS * variance.mean()
    return np.asarray(z if floor == 0 else z / np.sqrt(variance + floor))


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
