"""Right, among the best five, and by class."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from barlow.evaluation.accuracy import answers


def test_accuracies_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    classes, number = np.arange(9) * 10, rng.integers(9, size=300)
    scores = rng.standard_normal((300, 9)) + 1.5 * np.eye(9)[number]
    found = answers(scores, classes, classes[number])
    assert found.right.mean() == pytest.approx(top_k_accuracy_score(number, scores, k=1))
    assert found.details["top-5"] == pytest.approx(top_k_accuracy_score(number, scores, k=5))
    assert found.details["mean_per_class"] == pytest.approx(balanced_accuracy_score(number, scores.argmax(axis=1)))


def test_a_class_that_was_not_trained_on_is_never_right() -> None:
    found = answers(np.eye(6), np.arange(6), np.array([0, 1, 2, 3, 4, 77]))
    assert found.right.tolist() == [True] * 5 + [False]
    assert found.details == pytest.approx({"mean_per_class": 5 / 6, "top-5": 5 / 6})
    assert set(answers(np.eye(5), np.arange(5), np.arange(5)).details) == {"mean_per_class"}
