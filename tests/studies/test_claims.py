"""Verdicts on results made by hand, and the arithmetic behind them."""

import math

import numpy as np
import pytest
from scipy import stats

from barlow.studies.claims import (
    FIRST,
    LAST,
    Claim,
    Contrast,
    Group,
    Results,
    difference,
    gain_of,
    judge,
    mean_of,
    standard_error,
    trend,
)

AXES = ("width", "method")


def results(**means: tuple[float, ...]) -> Results:
    """`w16_plain=(a, b)`: the values of seeds 0 and 1 of a cell."""
    values = {tuple(name[1:].split("_")): dict(enumerate(of)) for name, of in means.items()}
    return Results(AXES, values)


def claim(contrast: Contrast, above: float | None = 0.0, below: float | None = None) -> Claim:
    return Claim("", "", "knn", contrast, above, below)


MIXED_BEATS_PLAIN = difference({"method": "mixed"}, {"method": "plain"})


def spread(mixed: float, noise: float) -> Results:
    return results(
        w16_plain=(0.5, 0.5 + noise),
        w16_mixed=(mixed + noise, mixed),
        w64_plain=(0.5 + noise, 0.5),
        w64_mixed=(mixed, mixed + noise),
    )


@pytest.mark.parametrize(
    ("mixed", "noise", "verdict"),
    [
        (0.6, 0.01, "confirmed"),
        (0.4, 0.01, "not confirmed"),
        (0.6, 0.2, "not resolvable at this budget"),
        (0.5, 0.01, "not resolvable at this budget"),
    ],
)
def test_the_verdict_follows_the_difference_against_its_spread(mixed: float, noise: float, verdict: str) -> None:
    assert judge(claim(MIXED_BEATS_PLAIN), spread(mixed, noise)).verdict == verdict


@pytest.mark.parametrize(
    ("difference_", "verdict"),
    [(0.0, "confirmed"), (0.1, "not confirmed"), (0.03, "not resolvable at this budget")],
)
def test_two_cells_are_alike_only_when_the_interval_lies_within_the_margin(difference_: float, verdict: str) -> None:
    within = claim(MIXED_BEATS_PLAIN, above=-0.03, below=0.03)
    assert judge(within, spread(0.5 + difference_, 0.005)).verdict == verdict


def test_one_seed_resolves_nothing_and_says_why() -> None:
    finding = judge(claim(MIXED_BEATS_PLAIN), results(w16_plain=(0.1,), w16_mixed=(0.9,)))
    assert finding.verdict == "not resolvable at this budget"
    assert finding.estimate == pytest.approx(0.8)
    assert "--seeds 2" in finding.reason


def test_a_level_compared_with_itself_resolves_nothing() -> None:
    itself = difference({"width": LAST, "method": "plain"}, {"width": "64", "method": "plain"})
    finding = judge(claim(itself, above=-0.01), spread(0.6, 0.01))
    assert finding.verdict == "not resolvable at this budget"
    assert "nothing to compare" in finding.reason


def test_missing_cells_are_named() -> None:
    finding = judge(claim(difference({"width": "64"}, {"width": "16"})), results(w16_plain=(0.1, 0.2)))
    assert finding.verdict == "not resolvable at this budget"
    assert "width 64" in finding.reason


def test_the_interval_is_that_of_a_paired_t_test_when_there_are_only_the_two_cells() -> None:
    a, b = (0.51, 0.58, 0.55, 0.61), (0.50, 0.52, 0.54, 0.53)
    finding = judge(claim(MIXED_BEATS_PLAIN), results(w16_plain=b, w16_mixed=a))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert finding.interval == pytest.approx((expected.low, expected.high))


def test_the_pooled_error_is_the_residual_spread_of_a_two_way_layout() -> None:
    generator = np.random.default_rng(0)
    table = generator.normal(size=(6, 3))
    values: dict[Group, dict[int, float]] = {
        (str(i), "plain"): dict(enumerate(row)) for i, row in enumerate(table.tolist())
    }
    weights: dict[Group, float] = {("0", "plain"): 1.0, ("1", "plain"): -1.0}
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    pooled = math.sqrt((residual**2).sum() / 10 * 2 / 3)
    own = np.std(table[0] - table[1], ddof=1) / math.sqrt(3)
    error, freedom = standard_error(values, weights, [0, 1, 2])
    assert (error, freedom) == pytest.approx((max(pooled, own), 10))


def test_a_shift_of_all_cells_of_one_seed_changes_no_interval() -> None:
    before = spread(0.6, 0.01)
    shifted = Results(AXES, {group: {0: of[0] + 5.0, 1: of[1]} for group, of in before.values.items()})
    first, second = (judge(claim(MIXED_BEATS_PLAIN), found) for found in (before, shifted))
    assert second.interval == pytest.approx(first.interval)


def test_a_trend_is_the_slope_per_doubling() -> None:
    found = results(w16_plain=(0.1, 0.1), w32_plain=(0.2, 0.2), w64_plain=(0.3, 0.3), w64_mixed=(9.0, 9.0))
    assert judge(claim(trend("width", method="plain")), found).estimate == pytest.approx(0.1)


def test_first_and_last_are_the_levels_that_have_results() -> None:
    found = results(w16_plain=(0.1, 0.1), w32_plain=(0.2, 0.2), w64_plain=(0.4, 0.4))
    ends = difference({"width": LAST}, {"width": FIRST})
    assert judge(claim(ends), found).estimate == pytest.approx(0.3)


def test_a_gain_is_the_difference_of_differences_and_averages_are_over_pairs() -> None:
    found = results(w16_plain=(0.1, 0.1), w16_mixed=(0.2, 0.2), w64_plain=(0.1, 0.1), w64_mixed=(0.5, 0.5))
    wide, narrow = (difference({"width": w, "method": "mixed"}, {"width": w, "method": "plain"}) for w in ("64", "16"))
    assert judge(claim(gain_of(wide, narrow)), found).estimate == pytest.approx(0.3)
    unpaired = Results(AXES, {**found.values, ("99", "plain"): {0: 77.0, 1: 77.0}})
    assert judge(claim(MIXED_BEATS_PLAIN), unpaired).estimate == pytest.approx(0.25)
    assert judge(claim(mean_of(method="mixed")), found).estimate == pytest.approx(0.35)
