"""The paired test of two encoders on the same images, and the values that are kept for it."""

import numpy as np
import pytest
from scipy import stats

from barlow.errors import InputError
from barlow.evaluation import compare
from barlow.evaluation.paired import compare_scores, pack, unpack


def test_right_or_wrong_answers_get_mcnemars_exact_test() -> None:
    first = np.array([1] * 80 + [1] * 12 + [0] * 3 + [0] * 5)
    second = np.array([1] * 80 + [0] * 12 + [1] * 3 + [0] * 5)
    found = compare(first == 1, second == 1)
    expected = sum(stats.binom.pmf(k, 15, 0.5) for k in (0, 1, 2, 3, 12, 13, 14, 15))
    np.testing.assert_allclose((found.p, found.difference, found.n), (expected, 0.09, 100))
    assert found.resolved
    assert compare(second, first).difference == -found.difference
    assert compare(first, first).p == 1.0


def test_it_resolves_what_two_overlapping_intervals_do_not() -> None:
    hard = np.arange(359) < 30  # hard for both
    first, second = ~hard, ~hard & (np.arange(359) < 349)  # the second misses ten more
    assert compare(first, second).resolved
    rng = np.random.default_rng(0)
    assert not compare(first, rng.permutation(second)).resolved  # as many right, but each misses images of its own


def test_other_values_get_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(50), rng.random(50)
    assert compare(first, second).p == pytest.approx(stats.ttest_rel(first, second).pvalue)


@pytest.mark.parametrize(("draws", "images"), [(1, 359), (20, 200), (3, 200)])
def test_equally_good_encoders_are_told_apart_in_one_of_twenty_cases_at_most(draws: int, images: int) -> None:
    rng = np.random.default_rng(1)
    told = []
    for _ in range(400):
        ease = rng.normal(1.5, 1.5, images) + rng.normal(0, 0.5, (draws, 1))  # of an image, and of a draw of labels
        odds = [
            ease + rng.normal(0, 1, images) + (rng.normal(0, 0.3, (draws, 1)) if draws > 1 else 0) for _ in range(2)
        ]
        right = [rng.random((draws, images)) < 1 / (1 + np.exp(-each)) for each in odds]
        told.append(compare(*(right if draws > 1 else [each[0] for each in right])).resolved)
    assert np.mean(told) <= 0.075  # 2.3 standard errors above .05


def test_a_difference_that_is_the_same_everywhere_is_certain() -> None:
    values = np.linspace(0.1, 0.5, 20)
    assert compare(values + 0.25, values).p == 0.0
    assert compare(values, values).p == 1.0


@pytest.mark.parametrize("other", [np.ones(4), np.ones((2, 5)), np.ones(0)])
def test_values_of_other_images_are_refused(other: np.ndarray) -> None:
    with pytest.raises(InputError, match="of the same images"):
        compare(np.ones(5), other)


@pytest.mark.parametrize("values", [np.arange(12) % 3 == 0, np.linspace(0, 1, 7), np.eye(3, 5) > 0])
def test_values_are_kept_exactly(values: np.ndarray) -> None:
    kept = unpack(pack(values, [str(i) for i in range(values.shape[-1])]))
    np.testing.assert_array_equal(kept, values.astype(np.float32))


def test_scores_of_other_images_are_not_compared() -> None:
    right = np.arange(6) < 4
    score = {"per_image": pack(right, list("abcdef"))}
    found = compare_scores(score, score)
    assert found is not None and found.p == 1.0
    assert compare_scores(score, {"per_image": pack(right, list("abcdeg"))}) is None
    assert compare_scores(score, {"value": 0.5}) is None


@pytest.mark.parametrize("change", [{"zlib": "AAAA"}, {"shape": [3]}, {"shape": [10**12]}, {"type": "O"}, {"shape": 3}])
def test_damaged_values_are_one_clear_line(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="damaged"):
        unpack({**pack(np.arange(6) < 4, list("abcdef")), **change})
