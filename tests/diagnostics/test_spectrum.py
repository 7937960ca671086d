"""Rank measures against literal transcriptions of their papers, on spectra that are known."""

import numpy as np
import pytest

from barlow.diagnostics import alpha_req, covariance_eigenvalues, effective_rank, lidar, rankme, singular_values
from barlow.errors import InputError


def with_spectrum(values: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Centred features [n, F] whose covariance (biased) has exactly these eigenvalues."""
    rng = np.random.default_rng(seed)
    width = len(values)
    raw = rng.standard_normal((n, width))
    left, _ = np.linalg.qr(raw - raw.mean(axis=0))
    right, _ = np.linalg.qr(rng.standard_normal((width, width)))
    return np.asarray(left * np.sqrt(n * values) @ right.T)


def test_rankme_is_the_papers_equation() -> None:
    z = np.random.default_rng(0).standard_normal((90, 20)) + 0.5
    sigma = np.linalg.svd(z, compute_uv=False)
    p = sigma / np.abs(sigma).sum() + 1e-7
    assert rankme(z) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_equal_directions_count_one_each(rank: int) -> None:
    x = with_spectrum(np.r_[np.full(rank, 4.0), np.zeros(12 - rank)], 50)
    assert rankme(x) == pytest.approx(rank, rel=1e-3)
    assert effective_rank(x) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_is_exp_of_the_entropy_of_the_eigenvalues() -> None:
    values = np.array([8.0, 4.0, 2.0, 1.0])
    p = values / 15
    x = with_spectrum(values, 40) + 100.0  # a mean is no direction of variance
    assert effective_rank(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert rankme(x) < 1.5  # but it is a direction of the features as they are


def test_fewer_samples_than_features_give_the_same_spectrum_as_the_full_covariance() -> None:
    x = np.random.default_rng(1).standard_normal((12, 40))
    full = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1][:12]
    np.testing.assert_allclose(covariance_eigenvalues(x), np.maximum(full, 0), atol=1e-10)
    np.testing.assert_allclose(singular_values(x), np.linalg.svd(x, compute_uv=False))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.3])
def test_alpha_req_recovers_the_exponent_of_a_power_law(alpha: float) -> None:
    x = with_spectrum(np.arange(1, 41, dtype=float) ** -alpha, 200)
    assert alpha_req(x) == pytest.approx(alpha, abs=1e-6)
    assert alpha_req(x, first=5, last=20) == pytest.approx(alpha, abs=1e-6)


@pytest.mark.parametrize("width", [128, 512])
def test_alpha_req_is_not_bent_by_the_tail_of_a_finite_sample(width: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, width)) * np.arange(1, width + 1) ** -0.5  # a law of 1, as many samples as a run has
    assert alpha_req(x) == pytest.approx(1.0, abs=0.15)
    assert width < 512 or alpha_req(x, first=1, last=width) > 1.8


def test_alpha_req_of_one_direction_is_undefined() -> None:
    assert np.isnan(alpha_req(with_spectrum(np.r_[1.0, np.zeros(5)], 30)))


def test_lidar_is_the_papers_definition() -> None:
    rng = np.random.default_rng(2)
    views = rng.standard_normal((30, 1, 6)) * np.arange(1, 7) + 0.3 * rng.standard_normal((30, 5, 6))
    mean, means = views.mean(axis=(0, 1)), views.mean(axis=1)
    between = sum(np.outer(m - mean, m - mean) for m in means) / 30
    within = sum(np.outer(v - means[i], v - means[i]) for i in range(30) for v in views[i]) / 150
    within += 1e-4 * views.var(axis=(0, 1)).mean() * np.eye(6)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ between @ root)
    p = eigenvalues / np.abs(eigenvalues).sum() + 1e-7
    assert lidar(views) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-8)


def test_lidar_counts_directions_that_tell_samples_apart_and_not_those_of_noise() -> None:
    rng = np.random.default_rng(3)
    signal = np.zeros((400, 1, 10))
    signal[:, 0, :3] = 10 * rng.standard_normal((400, 3))
    views = signal + 0.1 * rng.standard_normal((400, 4, 10))
    views[:, :, 3:] *= 50  # loud, but different in every view
    assert lidar(views) == pytest.approx(3, abs=0.1)
    assert rankme(views[:, 0]) > 5


def test_bad_features_are_refused() -> None:
    with pytest.raises(InputError, match="two samples"):
        rankme(np.ones((1, 4)))
    with pytest.raises(InputError, match="2 views"):
        lidar(np.ones((5, 1, 3)))
