"""Weighted k-NN: hand-placed points, an oracle in float64, memory bounds."""

import numpy as np
import pytest
import torch

from barlow.errors import InputError
from barlow.evaluation import knn_accuracy, knn_predict, nearest
from barlow.evaluation.knn import knn_votes


def angles(*degrees: float) -> np.ndarray:
    """Points on the unit circle [N, 2]."""
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def gaussian(n: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def test_nearest_returns_neighbours_by_falling_cosine_of_hand_placed_points() -> None:
    similarity, rows = nearest(angles(0, 30, 60, 180), angles(20), 3)
    assert rows.tolist() == [[1, 0, 2]]
    np.testing.assert_allclose(similarity[0], np.cos(np.deg2rad([10, 20, 40])), atol=1e-6)


def test_length_of_a_feature_vector_does_not_matter() -> None:
    bank, queries = gaussian(50, 6, 0), gaussian(9, 6, 1)
    stretched = bank * np.random.default_rng(2).uniform(0.1, 9, (50, 1)).astype(np.float32)
    assert (nearest(bank, queries, 7)[1] == nearest(stretched, 3 * queries, 7)[1]).all()


@pytest.mark.parametrize(("bank_block", "query_block"), [(1, 1), (7, 3), (64, 1000), (1000, 2)])
def test_blocks_of_any_size_give_what_all_products_in_float64_give(bank_block: int, query_block: int) -> None:
    bank, queries = gaussian(230, 16, 3), gaussian(31, 16, 4)
    units = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, bank)]
    cosines = units[0] @ units[1].T
    rows = np.argsort(-cosines, axis=1)[:, :20]
    expected = np.take_along_axis(cosines, rows, axis=1)
    similarity, found = nearest(bank, queries, 20, bank_block=bank_block, query_block=query_block)
    assert (found == rows).all()
    np.testing.assert_allclose(similarity, expected, atol=1e-5)


def test_a_memory_mapped_half_precision_bank_gives_the_same_neighbours(tmp_path: object) -> None:
    bank, queries = gaussian(300, 8, 5).astype(np.float16), gaussian(10, 8, 6)
    path = f"{tmp_path}/bank.npy"
    np.save(path, bank)
    mapped = np.load(path, mmap_mode="r")
    assert (nearest(mapped, queries, 5, bank_block=64)[1] == nearest(bank.astype(np.float32), queries, 5)[1]).all()


def test_votes_are_exponential_in_similarity_over_temperature() -> None:
    similarity, labels = np.array([[0.9, 0.5, 0.4]]), np.array([[0, 1, 1]])
    votes = knn_votes(similarity, labels, 2, 0.5)
    weight = np.exp((np.array([0.9, 0.5, 0.4]) - 0.9) / 0.5)
    np.testing.assert_allclose(votes, [[weight[0], weight[1] + weight[2]]])


def test_temperature_decides_between_one_near_and_two_far_neighbours() -> None:
    bank, labels = angles(0, 60, -60), np.array([0, 1, 1])
    assert knn_predict(bank, labels, angles(1), k=3, temperature=0.1).tolist() == [0]  # the near one wins
    assert knn_predict(bank, labels, angles(1), k=3, temperature=10.0).tolist() == [1]  # the majority wins


def test_a_tiny_temperature_is_the_nearest_neighbour_and_does_not_overflow() -> None:
    bank, labels, queries = gaussian(80, 4, 7), np.arange(80) % 5, gaussian(40, 4, 8)
    one = knn_predict(bank, labels, queries, k=1)
    assert (knn_predict(bank, labels, queries, k=80, temperature=1e-6) == one).all()


def test_similarities_keep_their_precision_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity, rows = nearest(angles(*np.linspace(0, 50, 51)), angles(0.0), 51)
    assert rows.tolist() == [list(range(51))]
    np.testing.assert_allclose(similarity[0], np.cos(np.deg2rad(np.linspace(0, 50, 51))), atol=1e-6)


def test_classes_may_have_any_numbers() -> None:
    bank, queries = gaussian(60, 4, 9), gaussian(2000, 4, 10)  # more queries than are voted on at a time
    numbers = np.array([-1, 7, 10**12])
    small = np.arange(60) % 3
    assert (knn_predict(bank, numbers[small], queries, k=9) == numbers[knn_predict(bank, small, queries, k=9)]).all()


def test_perfect_features_score_one_and_constant_features_score_the_first_class() -> None:
    y = np.repeat(np.arange(4), 10)
    perfect = np.eye(4, dtype=np.float32)[y]
    assert knn_accuracy(perfect, y, perfect, y, k=10) == 1.0
    constant = np.ones((40, 4), dtype=np.float32)
    assert knn_accuracy(constant, y, constant, y, k=40) == 0.25


@pytest.mark.parametrize("k", [0, 11])
def test_k_outside_the_bank_is_refused(k: int) -> None:
    with pytest.raises(InputError, match="choose k from 1 to 10"):
        nearest(gaussian(10, 3, 0), gaussian(2, 3, 1), k)


def test_features_of_other_widths_and_a_temperature_of_zero_are_refused() -> None:
    with pytest.raises(InputError, match="same encoder"):
        nearest(gaussian(10, 3, 0), gaussian(2, 4, 1), 1)
    with pytest.raises(InputError, match="above 0"):
        knn_accuracy(gaussian(4, 2, 0), np.arange(4), gaussian(4, 2, 0), np.arange(4), k=1, temperature=0.0)
