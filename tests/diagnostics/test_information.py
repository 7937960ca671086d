"""Entropies and the bottleneck's terms against what is known of Gaussians and of uniform samples."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from barlow.diagnostics.information import bottleneck_terms, gaussian_entropy, neighbour_entropy
from barlow.errors import InputError


def correlated(n: int, d: int, seed: int = 0) -> tuple[NDArray[np.float64], float]:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(d, d)) + 2 * np.eye(d)
    entropy = float(stats.multivariate_normal(cov=mixing @ mixing.T).entropy())
    return generator.normal(size=(n, d)) @ mixing.T, entropy


@pytest.mark.parametrize(("d", "n"), [(1, 3), (4, 6), (8, 32)])
def test_the_gaussian_entropy_has_no_bias_in_small_samples(d: int, n: int) -> None:
    x, entropy = correlated(n * 400, d)
    found = [gaussian_entropy(part) for part in np.split(x, 400)]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - entropy) < 4 * error


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_neighbour_entropy_of_a_gaussian_is_near_the_known_one(d: int) -> None:
    x, entropy = correlated(8000, d)
    assert neighbour_entropy(x) == pytest.approx(entropy, abs=0.05 * d)


def test_the_neighbour_entropy_needs_no_gaussian() -> None:
    x = np.random.default_rng(0).uniform(0, 3, size=(8000, 2))
    assert neighbour_entropy(x) == pytest.approx(2 * math.log(3), abs=0.05)
    assert gaussian_entropy(x) > 2 * math.log(3) + 0.2  # the largest for this covariance


@pytest.mark.parametrize("entropy", [gaussian_entropy, neighbour_entropy])
def test_scaling_adds_the_logarithm_of_the_volume(entropy: Callable[[NDArray[np.float64]], float]) -> None:
    x, _ = correlated(300, 3)
    assert entropy(2 * x + 1) - entropy(x) == pytest.approx(3 * math.log(2))


def test_the_terms_of_images_with_gaussian_views_are_the_known_ones() -> None:
    """z = signal of the image + noise of the view: I(Z;X) = d/2 log(1 + signal variance / noise variance)."""
    generator, d, noise = np.random.default_rng(0), 4, 0.3
    views = generator.normal(size=(600, 1, d)) + noise * generator.normal(size=(600, 24, d))
    found = bottleneck_terms(views, directions=d)
    known = 0.5 * d * math.log(1 + 1 / noise**2)
    assert found["information_gauss"] == pytest.approx(known, abs=0.15)
    assert found["information_knn"] == pytest.approx(known, rel=0.15)
    assert found["entropy_gauss"] - found["conditional_gauss"] == pytest.approx(found["information_gauss"])
    whole = 0.5 * d * math.log(2 * math.pi * math.e)  # features are standardised
    assert found["entropy_gauss"] == pytest.approx(whole, abs=0.1)


def test_the_scale_and_order_of_features_do_not_matter_to_the_information() -> None:
    generator = np.random.default_rng(1)
    views = generator.normal(size=(50, 1, 3)) + generator.normal(size=(50, 12, 3))
    first, scaled = (bottleneck_terms(v, directions=3) for v in (views, views * [1.0, 100.0, 0.01] + 5))
    assert scaled == pytest.approx(first)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="more than 4 samples"):
        gaussian_entropy(np.zeros((4, 4)))
    with pytest.raises(InputError, match="more than 3 samples"):
        neighbour_entropy(np.zeros((3, 1)))
    with pytest.raises(InputError, match=r"\[N, V, D\]"):
        bottleneck_terms(np.zeros((4, 4)))
