"""Retrieval metrics against hand-computed rankings and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from barlow.errors import InputError
from barlow.evaluation import average_precision, recall_at, retrieval


def test_recall_counts_queries_with_their_class_among_the_first_k() -> None:
    bank_y = np.array([0, 1, 2, 1])
    neighbours = np.array([[0, 1, 3], [2, 0, 1], [2, 3, 0]])
    query_y = np.array([1, 1, 0])
    assert recall_at(bank_y, query_y, neighbours, 1).tolist() == [0, 0, 0]
    assert recall_at(bank_y, query_y, neighbours, 2).tolist() == [1, 0, 0]
    assert recall_at(bank_y, query_y, neighbours, 3).tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="from 1 to the 3"):
        recall_at(bank_y, query_y, neighbours, 4)


def test_average_precision_of_a_ranking_done_by_hand() -> None:
    degrees = np.deg2rad([10, 20, 30, 40])
    bank = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    found = average_precision(bank, np.array([1, 0, 1, 0]), np.array([[1.0, 0.0]]), np.array([1]))
    np.testing.assert_allclose(found, [(1 / 1 + 2 / 3) / 2])


def test_average_precision_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    bank, queries = rng.standard_normal((80, 6)), rng.standard_normal((300, 6))
    bank_y, query_y = rng.integers(4, size=80), rng.integers(4, size=300)
    found = average_precision(bank, bank_y, queries, query_y)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)]
    expected = [average_precision_score(bank_y == y, unit[0] @ q) for q, y in zip(unit[1], query_y, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_large_bank_is_ranked_for_fewer_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((30, 4)), rng.integers(3, size=30)
    whole = average_precision(x, y, x[:7], y[:7])
    monkeypatch.setattr(retrieval, "RANKED", 60)
    np.testing.assert_allclose(average_precision(x, y, x[:7], y[:7]), whole)


def test_a_query_whose_class_the_bank_lacks_has_no_precision() -> None:
    assert np.isnan(average_precision(np.eye(2), np.array([0, 0]), np.eye(2)[:1], np.array([5]))).all()
