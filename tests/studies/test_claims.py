"""Verdicts on results made by hand, and the arithmetic behind them."""

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
    Values,
    difference,
    gain_of,
    judge,
    mean_of,
    steeper,
    trend,
)

AXES = ("width", "method")


def results(**means: tuple[float, ...]) -> Results:
    """`w16_plain=(a, b)`: the values of seeds 0 and 1 of a cell."""
    return results_of({tuple(name[1:].split("_")): dict(enumerate(of)) for name, of in means.items()})


def results_of(values: Values) -> Results:
    levels = {axis: tuple(dict.fromkeys(group[i] for group in values)) for i, axis in enumerate(AXES)}
    return Results(levels, values)


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


def test_the_interval_of_two_cells_is_that_of_welchs_test_whatever_the_other_cells_are() -> None:
    a, b = (0.51, 0.58, 0.55, 0.71), (0.50, 0.52, 0.54, 0.53)
    found = results(w16_plain=b, w16_mixed=a, w64_plain=(0.0, 9.0, 1.0, 5.0))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert judge(claim(MIXED_BEATS_PLAIN), found).interval == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_mean_is_the_t_interval_of_the_seeds_means() -> None:
    found = results(w16_plain=(0.1, 0.4, 0.2), w64_plain=(0.3, 0.8, 0.2), w16_mixed=(5.0, -5.0, 0.0))
    expected = stats.ttest_1samp([0.2, 0.6, 0.2], 0).confidence_interval(0.95)
    assert judge(claim(mean_of(method="plain")), found).interval == pytest.approx((expected.low, expected.high))


def test_without_any_spread_the_interval_is_a_point() -> None:
    found = results(w16_plain=(0.5, 0.5), w16_mixed=(0.75, 0.75))
    assert judge(claim(MIXED_BEATS_PLAIN), found).interval == (0.25, 0.25)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("noisy", ["plain", "mixed"])
def test_intervals_cover_the_truth_when_cells_differ_in_spread(seeds: int, noisy: str) -> None:
    generator = np.random.default_rng(seeds)
    spreads = {("16", "plain"): 1.0, ("16", "mixed"): 1.0, ("64", "plain"): 0.1, ("128", "plain"): 0.1}
    spreads["16", noisy] = 5.0
    covered = 0
    for _ in range(500):
        common = generator.normal(size=seeds)
        drawn = {group: common + generator.normal(size=seeds) * spread for group, spread in spreads.items()}
        values: dict[Group, dict[int, float]] = {group: dict(enumerate(row.tolist())) for group, row in drawn.items()}
        interval = judge(claim(MIXED_BEATS_PLAIN), results_of(values)).interval
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    assert covered / 500 > 0.9


def test_a_trend_is_the_slope_per_doubling() -> None:
    found = results(w16_plain=(0.1, 0.1), w32_plain=(0.2, 0.2), w64_plain=(0.3, 0.3), w64_mixed=(9.0, 9.0))
    assert judge(claim(trend("width", method="plain")), found).estimate == pytest.approx(0.1)


def test_first_and_last_are_the_levels_that_have_results() -> None:
    found = results(w16_plain=(0.1, 0.1), w32_plain=(0.2, 0.2), w64_plain=(0.4, 0.4))
    ends = difference({"width": LAST}, {"width": FIRST})
    assert judge(claim(ends), found).estimate == pytest.approx(0.3)


def test_the_last_level_is_the_last_of_the_plan_wherever_its_cells_are_missing() -> None:
    values: dict[Group, dict[int, float]] = {
        ("64", "plain"): {0: 0.4, 1: 0.4},  # 16 has results with mixing alone
        ("16", "mixed"): {0: 0.1, 1: 0.1},
        ("64", "mixed"): {0: 0.3, 1: 0.3},
    }
    found = Results({"width": ("16", "64", "256"), "method": ("plain", "mixed")}, values)
    assert (found.levels("width"), found.levels("method")) == (["16", "64"], ["plain", "mixed"])
    finding = judge(claim(difference({"width": LAST, "method": "mixed"}, {"width": FIRST, "method": "mixed"})), found)
    assert finding.estimate == pytest.approx(0.2)
    assert finding.compared == "width 64, method mixed, less width 16, method mixed"


def test_two_slopes_are_compared_over_the_levels_that_both_have() -> None:
    found = results(
        w16_plain=(0.1, 0.1), w32_plain=(0.2, 0.2), w64_plain=(9.0, 9.0), w16_mixed=(0.3, 0.3), w32_mixed=(0.7, 0.7)
    )
    finding = judge(claim(steeper("width", {"method": "mixed"}, {"method": "plain"})), found)
    assert finding.estimate == pytest.approx(0.3)
    assert finding.compared == "method mixed, less method plain, over width 16, 32"


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        (MIXED_BEATS_PLAIN, "method mixed, less method plain, over width 16, 64"),
        (mean_of(method="plain"), "the mean of method plain, over width 16, 64"),
        (trend("width", method="mixed"), "method mixed, over width 16, 64"),
        (trend("width"), "all cells, over width 16, 64 and method plain, mixed"),
        (
            gain_of(difference({"width": LAST}, {"width": FIRST}), mean_of(width="16", method="plain")),
            "(width 64, less width 16, over method plain, mixed) less (the mean of width 16, method plain)",
        ),
    ],
)
def test_a_finding_says_which_cells_were_compared(contrast: Contrast, words: str) -> None:
    assert judge(claim(contrast), spread(0.6, 0.01)).compared == words


def test_a_gain_is_the_difference_of_differences_and_averages_are_over_pairs() -> None:
    found = results(w16_plain=(0.1, 0.1), w16_mixed=(0.2, 0.2), w64_plain=(0.1, 0.1), w64_mixed=(0.5, 0.5))
    wide, narrow = (difference({"width": w, "method": "mixed"}, {"width": w, "method": "plain"}) for w in ("64", "16"))
    assert judge(claim(gain_of(wide, narrow)), found).estimate == pytest.approx(0.3)
    unpaired = results_of({**found.values, ("99", "plain"): {0: 77.0, 1: 77.0}})
    assert judge(claim(MIXED_BEATS_PLAIN), unpaired).estimate == pytest.approx(0.25)
    assert judge(claim(mean_of(method="mixed")), found).estimate == pytest.approx(0.35)
