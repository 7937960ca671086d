"""Classification from n labelled samples per class: k-NN and ridge, over seeded draws."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from barlow.errors import InputError
from barlow.evaluation.intervals import mean_interval
from barlow.evaluation.knn import TEMPERATURE, knn_predict, unit_rows

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Method = Literal["knn", "ridge"]

DRAWS = 20
"""Draws of labelled samples that are averaged."""

RIDGE = 1.0
"""Penalty of the ridge classifier, for feature rows of length one."""


@dataclass(frozen=True)
class FewShotScore:
    """Accuracy of each draw, their mean, and the Student-t interval of that mean over draws."""

    accuracies: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    right: NDArray[np.bool_]
    """per draw and test row [R, M], whether the row got its class"""


def draw_shots(y: Ints, shots: int, seed: int) -> Ints:
    """Sorted row numbers of `shots` random samples of every class.

    Raises:
        InputError: A class has fewer samples than `shots`.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        if len(members) < shots:
            raise InputError(
                f"{shots}-shot needs {shots} samples of every class, but class {label} has {len(members)}: "
                "ask for fewer shots"
            )
        chosen.append(rng.choice(members, size=shots, replace=False))
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def ridge_predict(train_x: Floats, train_y: Ints, test_x: Floats, *, penalty: float = RIDGE) -> Ints:
    """One-against-all ridge regression on rows of length one, in the dual (few samples, many features) [M]."""
    classes, target = np.unique(train_y, return_inverse=True)
    train, test = (unit_rows(x, "cpu", np.float64).numpy() for x in (train_x, test_x))
    mean, rate = train.mean(axis=0), np.eye(len(classes))[target]
    train, test = train - mean, test - mean
    gram = train @ train.T + penalty * np.eye(len(train))
    weight = train.T @ np.linalg.solve(gram, rate - rate.mean(axis=0))
    return np.asarray(classes[(test @ weight + rate.mean(axis=0)).argmax(axis=1)], dtype=np.int64)


def few_shot(
    train_x: Floats,
    train_y: Ints,
    test_x: Floats,
    test_y: Ints,
    *,
    shots: int,
    draws: int = DRAWS,
    method: Method = "knn",
    seed: int = 0,
) -> FewShotScore:
    """Accuracy with `shots` training samples of every class, over `draws` draws seeded seed, seed + 1, ...

    The interval, cut to what an accuracy can be, speaks of the draws alone: the test set is the same for all of them.
    """
    answers = []
    for draw in range(draws):
        rows = draw_shots(train_y, shots, seed + draw)
        if method == "ridge":
            predicted = ridge_predict(train_x[rows], train_y[rows], test_x)
        else:
            predicted = knn_predict(train_x[rows], train_y[rows], test_x, k=shots, temperature=TEMPERATURE)
        answers.append(predicted == test_y)
    right = np.stack(answers)
    accuracies = right.mean(axis=1).tolist()
    low, high = mean_interval(accuracies)
    return FewShotScore(tuple(accuracies), float(np.mean(accuracies)), (max(low, 0.0), min(high, 1.0)), right)
