"""Every diagnostic: the same answer in any units, and an answer to any features."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from barlow import diagnostics
from barlow.diagnostics.information import bottleneck_terms, gaussian_entropy, neighbour_entropy

Floats = NDArray[np.float64]
LABELS = np.arange(12) % 3


def stacked(x: Floats) -> Floats:
    """Two views [N, 2, F]: the features, and the features in another order."""
    return np.stack([x, x[:, ::-1]], axis=1)


def shuffled(x: Floats) -> Floats:
    """Six "views" [N, 6, F] of every sample: six different samples."""
    return np.stack([np.roll(x, i, axis=0) for i in range(6)], axis=1)


def odd_square(rows: torch.Tensor) -> torch.Tensor:
    """Not linear, and a factor comes out squared."""
    return rows * rows.abs()


# Every measure of features [12, 4] that does not depend on their units, as a flat list of numbers.
MEASURES: dict[str, Callable[[Floats], object]] = {
    "rankme": diagnostics.rankme,
    "effective_rank": diagnostics.effective_rank,
    "alpha_req": diagnostics.alpha_req,
    "lidar": lambda x: diagnostics.lidar(stacked(x)),
    "dead_share": diagnostics.dead_share,
    "relative_spread": diagnostics.relative_spread,
    "uniformity": diagnostics.uniformity,
    "alignment": lambda x: diagnostics.alignment(x, x[:, ::-1]),
    "class_distances": lambda x: list(diagnostics.class_distances(x, LABELS).values()),
    "cross_correlation": lambda x: diagnostics.cross_correlation(x, x[:, ::-1]),
    "correlation_summary": lambda x: list(diagnostics.correlation_summary(x, x[:, ::-1]).values()),
    "correlation_sample": lambda x: diagnostics.correlation_sample(x, x[:, ::-1])["matrix"],
    "bottleneck_terms": lambda x: list(bottleneck_terms(shuffled(x), directions=4).values()),
    "deviation": lambda x: list(
        diagnostics.deviation(odd_square, torch.from_numpy(x[:6].copy()), torch.from_numpy(x[6:].copy())).values()
    ),
}
# Those that have the unit of the features, and how a factor changes them.
WITH_UNITS: dict[str, tuple[Callable[[Floats], object], Callable[[NDArray[np.floating], float], object]]] = {
    "singular_values": (diagnostics.singular_values, lambda found, factor: found * factor),
    "covariance_eigenvalues": (diagnostics.covariance_eigenvalues, lambda found, factor: found * factor**2),
    "gaussian_entropy": (gaussian_entropy, lambda found, factor: found + 4 * np.log(factor)),
    "neighbour_entropy": (neighbour_entropy, lambda found, factor: found + 4 * np.log(factor)),
}


def features(seed: int) -> Floats:
    """A few directions, one of them small, and a mean."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((12, 4)) * [1.0, 0.5, 0.1, 0.003] + 0.3


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 7.0, 1e3, 1e6])
@pytest.mark.parametrize("name", [*MEASURES, *WITH_UNITS])
def test_units_do_not_change_a_diagnostic(name: str, factor: float) -> None:
    x = features(1)
    measure, changed = WITH_UNITS[name] if name in WITH_UNITS else (MEASURES[name], lambda found, _: found)
    expected = changed(np.asarray(measure(x)), factor)
    np.testing.assert_allclose(np.asarray(measure(factor * x)), np.asarray(expected), rtol=1e-6, atol=1e-12)


def test_no_diagnostic_of_features_is_left_out_of_these_tests() -> None:
    others = {"Evidence", "State", "Verdict", "verdict", "health", "view_loss", "overfitting_evidence"}
    others |= {"expected_initial_loss", "mixing_deviation", "distinct_share"}  # of widths, networks and inputs
    assert set(diagnostics.__all__) - others == {*MEASURES, *WITH_UNITS} - {
        "bottleneck_terms", "gaussian_entropy", "neighbour_entropy",
    }  # fmt: skip


HOSTILE = st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e-38, 1e6, -1e38, 1e200, np.nan, np.inf, -np.inf, 5e-324])


@pytest.mark.parametrize("name", [*MEASURES, *WITH_UNITS])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=arrays(np.float64, (12, 4), elements=HOSTILE, fill=st.sampled_from([0.0, 1.0, 1e6])))
def test_every_diagnostic_answers_any_features(name: str, x: Floats) -> None:
    """A number or NaN, and NaN where a feature is NaN or infinite."""
    measure = WITH_UNITS[name][0] if name in WITH_UNITS else MEASURES[name]
    found = np.asarray(measure(x), dtype=np.float64)
    assert np.isfinite(x).all() or np.isnan(found).any()


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_rounding_errors_of_constant_features_are_not_measured(name: str, value: float) -> None:
    x = np.full((12, 4), value)
    first, second = (np.asarray(MEASURES[name](x * factor)) for factor in (1.0, 1e-6))
    np.testing.assert_allclose(first, second, atol=1e-9)
