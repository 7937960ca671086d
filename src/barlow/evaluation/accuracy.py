"""What a classifier answered: right or wrong, among the best five, and by class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TOP = 5
"""Answers among which the right one counts for the papers' second figure."""


@dataclass(frozen=True)
class Answers:
    """Of M test samples: the labels [M], whether each got its class [M], and whether it was among the best five [M].

    `among` is None where there are five classes or fewer, or where one class alone was answered.
    """

    labels: Ints
    right: Bools
    among: Bools | None = None

    @property
    def details(self) -> dict[str, float]:
        """`mean_per_class`: accuracy of every class, averaged (reported for Flowers and Aircraft); `top-5`."""
        _, number = np.unique(self.labels, return_inverse=True)
        by_class = np.bincount(number, weights=self.right) / np.bincount(number)
        found = {"mean_per_class": float(by_class.mean())}
        return found if self.among is None else {**found, f"top-{TOP}": float(self.among.mean())}


def answers(scores: NDArray[np.floating], classes: Ints, labels: Ints) -> Answers:
    """From scores [M, K] of the classes [K] that they stand for, and the true labels [M]."""
    right = np.asarray(classes[scores.argmax(axis=1)] == labels)
    if len(classes) <= TOP:
        return Answers(labels, right)
    best = classes[np.argpartition(-scores, TOP - 1, axis=1)[:, :TOP]]
    return Answers(labels, right, np.asarray(right | (best == labels[:, None]).any(axis=1)))
