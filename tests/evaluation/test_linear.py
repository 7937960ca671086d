"""The fast linear probe against scikit-learn."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from barlow.errors import InputError
from barlow.evaluation import choose_c, fit_linear, linear, linear_probe
from barlow.evaluation.linear import C_GRID


def blobs(n: int, classes: int, width: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes around fixed centres, with features of very different scales."""
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    centres = np.random.default_rng(99).standard_normal((classes, width))
    x = centres[y] + spread * rng.standard_normal((n, width))
    return (x * np.logspace(-2, 2, width)).astype(np.float32), y


@pytest.mark.parametrize("c", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_coefficients_equal_scikit_learns_logistic_regression(c: float, classes: int) -> None:
    x, y = blobs(200, classes, 6, 1.0, 0)
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    probe = fit_linear(x, y, c=c, tolerance=1e-9)
    reference = LogisticRegression(C=c, tol=1e-9, max_iter=5000).fit(scaled, y)
    weight = probe.weight[1:] - probe.weight[:1] if classes == 2 else probe.weight  # two classes: one logit there
    np.testing.assert_allclose(weight, reference.coef_, atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(_probabilities(probe.scores(x)), reference.predict_proba(scaled), atol=1e-4)


def _probabilities(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def test_without_standardising_it_is_scikit_learns_fit_of_the_features_as_they_are() -> None:
    x, y = blobs(150, 3, 4, 1.0, 1)
    x = x / x.std(axis=0) + 3
    probe = fit_linear(x, y, c=0.5, standardise=False, tolerance=1e-9)
    reference = LogisticRegression(C=0.5, tol=1e-9, max_iter=5000).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(probe.weight, reference.coef_, atol=2e-4, rtol=1e-3)


def test_blocks_and_single_precision_of_large_data_find_the_same_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(300, 4, 6, 1.0, 9)
    exact = fit_linear(x, y, c=1.0, tolerance=1e-7)
    monkeypatch.setattr(linear, "BLOCK", 64)
    np.testing.assert_allclose(fit_linear(x, y, c=1.0, tolerance=1e-7).weight, exact.weight, atol=1e-5)
    monkeypatch.setattr(linear, "EXACT_VALUES", 100)
    np.testing.assert_allclose(fit_linear(x, y, c=1.0).weight, exact.weight, atol=2e-3)


def test_labels_need_not_be_consecutive() -> None:
    x, y = blobs(120, 3, 5, 0.3, 2)
    named = np.array([4, 17, 90])[y]
    assert set(fit_linear(x, named, c=1.0).predict(x)) == {4, 17, 90}


def test_a_constant_feature_changes_nothing() -> None:
    x, y = blobs(120, 3, 5, 1.0, 3)
    padded = np.concatenate([x, np.full((120, 1), 7.0, np.float32)], axis=1)
    np.testing.assert_allclose(
        fit_linear(x, y, c=1.0).scores(x), fit_linear(padded, y, c=1.0).scores(padded), atol=1e-3
    )


def test_the_regulariser_chosen_is_the_best_on_a_slice_of_train() -> None:
    x, y = blobs(300, 4, 30, 4.0, 4)
    chosen = choose_c(x, y, seed=5)
    assert chosen in C_GRID
    assert chosen < 1.0  # noisy features in many dimensions want strong regularisation
    clean, labels = blobs(300, 4, 30, 0.01, 4)
    assert linear_probe(clean, labels, *blobs(100, 4, 30, 0.01, 6)) == 1.0


def test_the_choice_of_the_regulariser_never_sees_the_test_set() -> None:
    x, y = blobs(200, 3, 5, 2.0, 7)
    test_x, test_y = blobs(100, 3, 5, 2.0, 8)
    shuffled = np.random.default_rng(0).permutation(test_y)
    c = choose_c(x, y, seed=0)
    assert linear_probe(x, y, test_x, test_y) == linear_probe(x, y, test_x, test_y, c=c)
    assert linear_probe(x, y, test_x, shuffled) == linear_probe(x, y, test_x, shuffled, c=c)


def test_one_sample_per_class_leaves_nothing_to_choose_on() -> None:
    x = np.eye(3, dtype=np.float32)
    assert choose_c(x, np.arange(3)) == 1.0


def test_one_class_and_features_that_are_not_finite_are_refused() -> None:
    x = np.ones((4, 2), np.float32)
    with pytest.raises(InputError, match="two classes"):
        fit_linear(x, np.zeros(4, np.int64), c=1.0)
    x[0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        fit_linear(x, np.array([0, 0, 1, 1]), c=1.0)


def digits_features() -> tuple[np.ndarray, np.ndarray]:
    """Random rectified features [800, 128] of digits, in which classes can be separated."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    return np.maximum(x[:800] @ rng.standard_normal((64, 128)), 0) + 0.1 * rng.standard_normal((800, 128)), y[:800]


@pytest.mark.parametrize("data", ["separable", "overlapping"])
def test_predictions_equal_scikit_learns_at_a_large_c(data: str) -> None:
    x, y = digits_features() if data == "separable" else blobs(1000, 6, 30, 4.0, 0)
    half = len(x) // 2
    scaler = StandardScaler().fit(x[:half])
    reference = LogisticRegression(C=100, tol=1e-9, max_iter=20_000).fit(scaler.transform(x[:half]), y[:half])
    probe = fit_linear(x[:half], y[:half], c=100.0)
    assert probe.converged
    assert (probe.predict(x[half:]) == reference.predict(scaler.transform(x[half:]))).all()


def test_a_fit_that_runs_out_of_iterations_says_so() -> None:
    x, y = blobs(100, 3, 5, 1.0, 0)
    assert not fit_linear(x, y, c=1.0, max_iterations=2).converged
