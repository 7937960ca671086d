"""How many directions the features use: RankMe, effective rank and alpha-ReQ, from their spectrum.

None of the three depends on the scale of the features; all are NaN where a feature is NaN or infinite.
"""

import numpy as np
from numpy.typing import NDArray

from barlow.diagnostics.scale import centred, unit_scale
from barlow.errors import InputError

Floats = NDArray[np.floating]
Spectrum = NDArray[np.float64]

RANKME_EPS = 1e-7
"""Added to every share of the spectrum, as RankMe's equation 2 has it for float32 features."""

FITTED = (11, 100)
"""Eigenvalues to which alpha-ReQ's power law is fitted: behind the largest, before the tail."""


def singular_values(x: Floats) -> Spectrum:
    """Singular values of the features as they are, not centred [min(N, F)], falling; NaN for features with NaN."""
    _check(x)
    if not np.isfinite(x).all():  # LAPACK would raise
        return np.full(min(x.shape), np.nan)
    return np.asarray(np.linalg.svd(x.astype(np.float64), compute_uv=False))


def covariance_eigenvalues(x: Floats) -> Spectrum:
    """Eigenvalues of the biased covariance of the features [min(N, F)], falling; NaN for features with NaN."""
    _check(x)
    rows = centred(x)
    if np.isnan(rows).any():
        return np.full(min(x.shape), np.nan)
    # The smaller of X'X and XX': both have the same non-zero eigenvalues.
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    values = np.maximum(np.linalg.eigvalsh(gram / len(rows))[::-1], 0.0)  # rounding may fall below zero
    largest = float(np.abs(x).max())
    with np.errstate(over="ignore"):
        return np.asarray(values * largest * largest)


def _check(x: Floats) -> None:
    if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
        raise InputError(f"a spectrum needs features [N, F] of two samples or more, got shape {x.shape}")


def entropy_rank(spectrum: Spectrum, eps: float) -> float:
    """exp of the entropy of the spectrum's shares, each plus `eps`: 0 for zeros, NaN for NaN."""
    total = spectrum.sum()
    if not total > 0:
        return float(total)
    share = spectrum / total + eps
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def rankme(x: Floats, *, eps: float = RANKME_EPS) -> float:
    """RankMe (arXiv 2210.02885, equation 2): exp of the entropy of the singular values of [N, F], not centred.

    Between 1 (one direction) and about min(N, F); 0 for features that are all zero. Its paper asks for
    many samples (25,600); with fewer, compare only values measured with the same number.
    """
    return entropy_rank(singular_values(unit_scale(x)), eps)


def effective_rank(x: Floats) -> float:
    """Effective rank (Roy and Vetterli 2007) of the features' covariance: exp of the entropy of its eigenvalues.

    Centred, and with variances instead of standard deviations, so it is lower than RankMe and blind to a mean.
    """
    return entropy_rank(covariance_eigenvalues(unit_scale(x)), 0.0)


def alpha_req(x: Floats, *, first: int | None = None, last: int | None = None) -> float:
    """alpha-ReQ (Agrawal et al. 2022): the exponent of the power law eigenvalue_j ~ j^-alpha of the covariance.

    Least squares on logarithms over the eigenvalues numbered `first` to `last`, counted from 1; without these, 11 to
    100 (the usual range since Stringer et al. 2019), and of fewer than 200 eigenvalues the same shares. The last half
    is never fitted: it falls steeply in any finite sample, so that N = F = 512 samples of a law of 1 would read 1.9.
    Eigenvalues at rounding level (below 1e-12 of the largest) are left out. Near 1 is best by its paper; a
    large alpha means that few directions hold all variance. NaN when fewer than two eigenvalues remain.
    """
    values = covariance_eigenvalues(unit_scale(x))
    count = int((values > 1e-12 * max(values.max(initial=0.0), 1e-300)).sum())
    share = min(1.0, count / (2 * FITTED[1]))
    low = max(1, round(FITTED[0] * share)) if first is None else first
    high = max(low + 1, round(FITTED[1] * share)) if last is None else last
    kept = values[:count][low - 1 : high]
    if len(kept) < 2:
        return float("nan")
    slope, _ = np.polyfit(np.log(np.arange(low, low + len(kept))), np.log(kept), 1)
    return float(-slope)
