"""Splits of a data set: seeded, stratified by label where there are labels."""

import numpy as np

from barlow.errors import InputError

from .order import SPLIT, hashed
from .source import IntArray


def holdout_split(labels_or_n: IntArray | int, *, share: float, seed: int) -> tuple[IntArray, IntArray]:
    """(train, held) indices, each ascending; `share` of every class is held out, of the whole when given a count.

    A class of two or more keeps at least one sample on each side; a class of one stays in train.
    Raises InputError for a share outside (0, 1) or fewer than two samples.
    """
    labels = _as_labels(labels_or_n)
    if not 0.0 < share < 1.0:
        raise InputError(f"The held-out share must lie between 0 and 1, not {share}.")
    if len(labels) < 2:
        raise InputError(f"Holding out a split needs at least two samples, not {len(labels)}.")
    draws = hashed(SPLIT, seed, np.arange(len(labels)))
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        first = np.argsort(draws[members], kind="stable")[: _held_count(len(members), share)]
        held[members[first]] = True
    if not held.any():  # every class has one sample: hold out from the whole
        return holdout_split(len(labels), share=share, seed=seed)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _as_labels(labels_or_n: IntArray | int) -> IntArray:
    if isinstance(labels_or_n, int | np.integer):
        return np.zeros(max(int(labels_or_n), 0), np.int64)
    return np.asarray(labels_or_n, np.int64)


def _held_count(n: int, share: float) -> int:
    return 0 if n < 2 else min(max(round(share * n), 1), n - 1)
