"""Retrieval by cosine similarity: recall at k and mean average precision."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from barlow.errors import InputError
from barlow.evaluation.knn import Floats, Ints, unit_rows

QUERIES = 256
"""Queries ranked at a time, ..."""

RANKED = 2**24
"""... or fewer, so that no more than this many bank rows are ranked at a time: about 1 GB."""


def recall_at(bank_y: Ints, query_y: Ints, neighbours: Ints, k: int) -> NDArray[np.float64]:
    """1 for every query [M] with its class among the labels of its first k neighbours [M, K], else 0."""
    if not 1 <= k <= neighbours.shape[1]:
        raise InputError(f"recall at {k} needs k from 1 to the {neighbours.shape[1]} neighbours that were found")
    found = bank_y[neighbours[:, :k]] == query_y[:, None]
    return np.asarray(found.any(axis=1), dtype=np.float64)


def average_precision(
    bank_x: Floats, bank_y: Ints, query_x: Floats, query_y: Ints, *, device: torch.device | str = "cpu"
) -> NDArray[np.float64]:
    """Average precision of every query [M]: mean, over the bank rows of its class, of the precision at their rank.

    The whole bank is ranked; NaN for a query whose class the bank lacks.
    """
    bank = unit_rows(bank_x, device)
    labels = torch.as_tensor(bank_y, device=device)
    together = max(1, min(QUERIES, RANKED // max(1, len(bank))))
    parts = []
    for start in range(0, len(query_x), together):
        block = slice(start, start + together)
        order = (unit_rows(query_x[block], device) @ bank.T).argsort(dim=1, descending=True, stable=True)
        parts.append(_precision(labels[order] == torch.as_tensor(query_y[block], device=device)[:, None]))
    return np.asarray(torch.cat(parts).cpu().numpy())


def _precision(relevant: Tensor) -> Tensor:
    """Average precision of rankings [m, N] of right and wrong answers."""
    hits = relevant.double()
    rank = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64, device=relevant.device)
    return (hits.cumsum(dim=1) / rank * hits).sum(dim=1) / hits.sum(dim=1)
