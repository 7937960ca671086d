"""Features on one scale, so that no diagnostic depends on the scale, overflows, or fails on NaN."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

ROUNDING = 1e-13
"""Deviations from a mean below this share of the largest value are rounding errors of float64 sums."""


def unit_scale(x: Floats) -> NDArray[np.float64]:
    """`x` divided by its largest magnitude, in float64; zeros stay zeros; all NaN where a value is NaN or infinite."""
    wide = x.astype(np.float64)
    largest = np.abs(wide).max(initial=0.0)
    if not np.isfinite(largest):
        return np.full_like(wide, np.nan)
    return np.asarray(wide / largest if largest > 0 else wide)


def centred(x: Floats, axis: int | tuple[int, ...] = 0) -> NDArray[np.float64]:
    """`unit_scale(x)` minus its mean over `axis`; exactly zero where the difference is a rounding error."""
    wide = unit_scale(x)
    difference: NDArray[np.float64] = wide - wide.mean(axis=axis, keepdims=True)
    difference[np.abs(difference) < ROUNDING] = 0.0
    return difference
