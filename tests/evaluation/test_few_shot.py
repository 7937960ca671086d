"""Few-shot: what is drawn, and what is predicted from it."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from barlow.errors import InputError
from barlow.evaluation import few_shot, ridge_predict
from barlow.evaluation.few_shot import draw_shots


def test_every_class_gives_its_shots_and_the_draw_depends_on_the_seed_alone() -> None:
    y = np.repeat([3, 5, 9], [4, 10, 6])
    rows = draw_shots(y, 3, 7)
    assert np.bincount(y[rows])[[3, 5, 9]].tolist() == [3, 3, 3]
    assert len(set(rows)) == 9
    assert (rows == draw_shots(y, 3, 7)).all()
    assert not (rows == draw_shots(y, 3, 8)).all()


def test_a_class_with_too_few_samples_is_named() -> None:
    with pytest.raises(InputError, match="class 5 has 2"):
        draw_shots(np.array([1, 1, 1, 5, 5]), 3, 0)


def test_ridge_equals_scikit_learns_on_unit_rows() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([2, 4, 7], 5)
    train, test = rng.standard_normal((15, 40)), rng.standard_normal((30, 40))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    reference = Ridge(alpha=1.0).fit(unit[0], np.eye(3)[[0] * 5 + [1] * 5 + [2] * 5])
    expected = np.array([2, 4, 7])[reference.predict(unit[1]).argmax(axis=1)]
    assert (ridge_predict(train, y, test) == expected).all()


@pytest.mark.parametrize("method", ["knn", "ridge"])
def test_perfect_features_need_one_shot_and_random_features_stay_at_chance(method: str) -> None:
    y = np.tile(np.arange(5), 60)
    perfect = np.eye(5, dtype=np.float32)[y]
    found = few_shot(perfect, y, perfect, y, shots=1, draws=3, method=method)  # type: ignore[arg-type]
    assert found.mean == 1.0
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((300, 8)).astype(np.float32)
    other = rng.standard_normal((300, 8)).astype(np.float32)
    found = few_shot(noise, y, other, y, shots=5, draws=20, method=method)  # type: ignore[arg-type]
    assert abs(found.mean - 0.2) < 0.05
    assert found.interval[0] < found.mean < found.interval[1]


def test_the_interval_stays_within_what_an_accuracy_can_be() -> None:
    y = np.tile(np.arange(2), 20)
    x = np.eye(2, dtype=np.float32)[y]
    x[:8:2] *= -1  # four samples are far from their class: a draw that takes one errs
    found = few_shot(x, y, x[8:], y[8:], shots=1, draws=20)
    assert min(found.accuracies) < 1.0 == max(found.accuracies)
    assert 0.0 <= found.interval[0] < found.interval[1] == 1.0


def test_draws_continue_from_the_seed() -> None:
    rng = np.random.default_rng(2)
    y = np.tile(np.arange(3), 30)
    x = rng.standard_normal((90, 4)).astype(np.float32)
    first = few_shot(x, y, x, y, shots=2, draws=4, seed=10).accuracies
    assert few_shot(x, y, x, y, shots=2, draws=2, seed=12).accuracies == first[2:]
