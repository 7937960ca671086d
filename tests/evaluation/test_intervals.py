"""Intervals: their coverage, their determinism, and the cases without spread."""

import numpy as np
import pytest
from scipy import stats

from barlow.errors import InputError
from barlow.evaluation import bootstrap_interval, mean_interval


def test_bootstrap_equals_the_literal_resampling_of_rows() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 60)
    rows = np.random.default_rng(1).integers(60, size=(20_000, 60))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    found = bootstrap_interval(values, seed=2, resamples=20_000)
    np.testing.assert_allclose(found, (low, high), atol=0.03)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    intervals = [bootstrap_interval(rng.random(400) < 0.8, seed=i, resamples=400) for i in range(300)]
    share = np.mean([low <= 0.8 <= high for low, high in intervals])
    assert 0.91 <= share <= 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(4).random(50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


@pytest.mark.parametrize("n", [1, 20, 1000])
def test_all_right_gets_the_exact_binomial_bound_instead_of_no_width(n: int) -> None:
    exact = stats.binomtest(n, n).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(bootstrap_interval(np.ones(n), seed=0), (exact.low, 1.0), atol=1e-9)
    np.testing.assert_allclose(bootstrap_interval(np.zeros(n), seed=0), (0.0, 1 - exact.low), atol=1e-9)


def test_mean_interval_is_students() -> None:
    draws = [0.71, 0.75, 0.69, 0.8]
    expected = stats.ttest_1samp(draws, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(mean_interval(draws), expected)
    assert mean_interval([0.5]) == (0.5, 0.5)


def test_no_values_are_refused() -> None:
    with pytest.raises(InputError, match="at least one value"):
        bootstrap_interval([], seed=0)
