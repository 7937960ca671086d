"""Collapse and geometry on hand-made features."""

import numpy as np
import pytest

from barlow.diagnostics import (
    alignment,
    class_distances,
    correlation_sample,
    correlation_summary,
    cross_correlation,
    dead_share,
    relative_spread,
    uniformity,
)
from barlow.errors import InputError


def noise(n: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width))


def test_dead_features_are_counted_whatever_their_scale() -> None:
    z = noise(50, 8)
    z[:, 2], z[:, 5] = 0.0, 3.0
    assert dead_share(z) == 2 / 8
    assert dead_share(1e-6 * z) == 2 / 8
    assert dead_share(np.ones((50, 8))) == 1.0
    assert dead_share(np.zeros((50, 8))) == 1.0


def test_spread_is_zero_for_a_constant_and_one_without_a_mean() -> None:
    z = noise(5000, 4)
    assert relative_spread(z - z.mean(axis=0)) == pytest.approx(1.0)
    assert relative_spread(z + 10) == pytest.approx(0.1, rel=0.03)
    assert relative_spread(np.full((9, 3), 7.0)) == pytest.approx(0.0, abs=1e-7)


def test_cross_correlation_is_the_papers_equation() -> None:
    a, b = noise(40, 5, 1), noise(40, 5, 2) + noise(40, 5, 1)
    expected = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            za, zb = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            expected[i, j] = (za * zb).sum() / np.sqrt((za**2).sum() * (zb**2).sum())
    np.testing.assert_allclose(cross_correlation(a, b), expected, atol=2e-5)


def test_summary_of_agreeing_repeating_and_unrelated_features() -> None:
    one = noise(2000, 1)
    repeated = np.repeat(one, 6, axis=1)
    assert correlation_summary(repeated, repeated) == pytest.approx({"diagonal": 1.0, "off_diagonal": 1.0}, abs=1e-4)
    independent = noise(20_000, 6)
    found = correlation_summary(independent, independent)
    assert found["diagonal"] == pytest.approx(1.0, abs=1e-4)
    assert found["off_diagonal"] < 0.01
    assert correlation_summary(independent, noise(20_000, 6, 5))["diagonal"] == pytest.approx(0.0, abs=0.01)


def test_a_sample_of_features_is_a_part_of_the_whole_matrix() -> None:
    a, b = noise(60, 9, 6), noise(60, 9, 7)
    whole = cross_correlation(a, b)
    found = correlation_sample(a, b, side=5)
    np.testing.assert_allclose(found["matrix"], whole[::2, ::2], atol=1e-3)
    assert found["width"] == 9
    part = correlation_summary(a, b, features=5)
    assert part["diagonal"] == pytest.approx(np.diagonal(whole)[::2].mean())
    off = whole[::2, ::2][~np.eye(5, dtype=bool)]
    assert part["off_diagonal"] == pytest.approx(np.abs(off).mean())


def test_uniformity_and_alignment_are_the_papers_sums() -> None:
    x, y = noise(12, 3, 3), noise(12, 3, 4)
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    pairs = [np.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i in range(12) for j in range(i)]
    assert uniformity(x) == pytest.approx(np.log(np.mean(pairs)))
    assert alignment(x, y) == pytest.approx(np.mean([((a - b) ** 2).sum() for a, b in zip(u, v, strict=True)]))
    assert uniformity(np.ones((5, 3))) == pytest.approx(0.0)
    assert alignment(x, 5 * x) == pytest.approx(0.0)


def test_class_distances_of_four_points_by_hand() -> None:
    x = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = class_distances(x, np.array([0, 0, 0, 1]))
    assert found["intra"] == pytest.approx((0 + 2 * np.sqrt(2)) / 3)
    assert found["inter"] == pytest.approx((2 + 2 + np.sqrt(2)) / 3)
    assert found["ratio"] == pytest.approx(found["intra"] / found["inter"])


def test_views_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        cross_correlation(noise(4, 3), noise(5, 3))
    with pytest.raises(InputError, match="one shape"):
        alignment(noise(4, 3), noise(5, 3))
