"""Intervals: their coverage, their determinism, and the cases without spread."""

import numpy as np
import pytest
from scipy import stats

from barlow.errors import InputError
from barlow.evaluation import bootstrap_interval, mean_interval, wilson_interval
from barlow.evaluation.intervals import image_interval


def test_bootstrap_equals_the_literal_resampling_of_rows() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 60)
    rows = np.random.default_rng(1).integers(60, size=(20_000, 60))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    found = bootstrap_interval(values, seed=2, resamples=20_000)
    np.testing.assert_allclose(found, (low, high), atol=0.03)


@pytest.mark.parametrize("n", [200, 359, 1000])
@pytest.mark.parametrize("p", [0.5, 0.8, 0.9, 0.95, 0.985])
def test_wilsons_interval_covers_what_it_states(n: int, p: float) -> None:
    # exact: every count of right answers, weighted by its probability
    counts = np.flatnonzero(stats.binom.pmf(np.arange(n + 1), n, p) > 1e-9)
    intervals = [wilson_interval(np.arange(n) < count) for count in counts]
    held = np.array([low <= p <= high for low, high in intervals])
    assert 0.93 <= (held * stats.binom.pmf(counts, n, p)).sum() <= 0.97


def test_wilsons_interval_is_the_formula_and_has_a_width_where_all_are_right() -> None:
    z, n, share = stats.norm.ppf(0.975), 40, 0.75
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    margin = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    np.testing.assert_allclose(wilson_interval(np.arange(n) < 30), (centre - margin, centre + margin))
    np.testing.assert_allclose(wilson_interval(np.ones(20)), (20 / (20 + z**2), 1.0))


def test_shares_of_right_answers_get_wilson_and_everything_else_the_bootstrap() -> None:
    right = np.random.default_rng(5).random(100) < 0.9
    assert image_interval(right, seed=0) == (wilson_interval(right), "Wilson score over test images")
    values = np.random.default_rng(6).random(100)
    interval, name = image_interval(values, seed=3)
    assert interval == bootstrap_interval(values, seed=3)
    assert name.startswith("bootstrap")


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(4).random(50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_mean_interval_is_students() -> None:
    draws = [0.71, 0.75, 0.69, 0.8]
    expected = stats.ttest_1samp(draws, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(mean_interval(draws), expected)
    assert mean_interval([0.5]) == (0.5, 0.5)


def test_no_values_are_refused() -> None:
    with pytest.raises(InputError, match="at least one value"):
        bootstrap_interval([], seed=0)
    with pytest.raises(InputError, match="at least one value"):
        wilson_interval([])
