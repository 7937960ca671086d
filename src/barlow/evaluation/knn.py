"""Weighted k-nearest-neighbour classification (Wu et al. 2018, arXiv 1805.01978), exact, in bounded memory."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from barlow.errors import InputError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

K, TEMPERATURE = 20, 0.07
"""Neighbours and temperature wherever none are given, DINO's (arXiv 2104.14294): they suit small classes too."""

MIXED_K, MIXED_TEMPERATURE = 200, 0.5
"""Those of Mixed Barlow Twins' evaluation (arXiv 2312.02151), for CIFAR's 5,000 images per class."""

BANK_BLOCK = 16384
"""Bank rows that are converted to float32 and normalised at a time."""

QUERY_BLOCK = 1024
"""Queries compared with a bank block at a time: 1024 x 16384 similarities are 64 MB."""


def check_sizes(bank: Floats, queries: Floats, k: int) -> None:
    """Raise InputError where bank and queries differ in width, or the bank has fewer than k rows."""
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise InputError(
            f"bank and queries must be [N, F] and [M, F] with one F, got {bank.shape} and {queries.shape}: "
            "extract both with the same encoder"
        )
    if not 1 <= k <= len(bank):
        raise InputError(f"k is {k}, but the bank has {len(bank)} samples: choose k from 1 to {len(bank)}")


def unit_rows(rows: Floats, device: torch.device | str, dtype: type[np.floating] = np.float32) -> Tensor:
    """A copy with rows of length one [n, F]; a row of zeros stays zeros (similarity 0 to all).

    Raises InputError for features that are not finite: they would all count as equally near.
    """
    units = F.normalize(torch.as_tensor(np.array(rows, dtype=dtype)).to(device), dim=1, eps=1e-12)
    if not torch.isfinite(units.sum()):
        raise InputError("the features hold NaN or infinity: check the encoder that made them")
    return units


def nearest(
    bank: Floats,
    queries: Floats,
    k: int,
    *,
    device: torch.device | str = "cpu",
    bank_block: int = BANK_BLOCK,
    query_block: int = QUERY_BLOCK,
) -> tuple[NDArray[np.float32], Ints]:
    """The k most similar bank rows of every query by cosine: similarities [M, k] falling, row numbers [M, k].

    The bank is read once, a block at a time, so it may be a float16 array or a memory-mapped file larger
    than memory; held are the queries, one block of the bank, one block of similarities and the k best so far.

    Raises:
        InputError: Widths differ, or k is not between 1 and the size of the bank.
    """
    check_sizes(bank, queries, k)
    with torch.autocast(torch.device(device).type, enabled=False):  # similarities in half precision would be ties
        return _nearest(bank, queries, k, device, bank_block, query_block)


def _nearest(
    bank: Floats, queries: Floats, k: int, device: torch.device | str, bank_block: int, query_block: int
) -> tuple[NDArray[np.float32], Ints]:
    units = unit_rows(queries, device)
    best = torch.full((len(queries), k), -torch.inf, device=device)
    rows = torch.zeros((len(queries), k), dtype=torch.int64, device=device)
    for start in range(0, len(bank), bank_block):
        block = unit_rows(bank[start : start + bank_block], device)
        for first in range(0, len(queries), query_block):
            part = slice(first, first + query_block)
            best[part], rows[part] = _merge(best[part], rows[part], units[part] @ block.T, start)
    return best.cpu().numpy(), rows.cpu().numpy()


def _merge(best: Tensor, rows: Tensor, similarity: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """The k best of those so far [m, k] and a block [m, b] whose first column is bank row `start`."""
    k = best.shape[1]
    values, columns = similarity.topk(min(k, similarity.shape[1]), dim=1)
    pool = torch.cat([best, values], dim=1)
    kept, order = pool.topk(k, dim=1)
    return kept, torch.cat([rows, columns + start], dim=1).gather(1, order)


def knn_votes(similarity: Floats, labels: Ints, classes: int, temperature: float) -> NDArray[np.float64]:
    """Votes [M, classes]: each neighbour [M, k] votes for its label with weight exp(similarity / temperature).

    Weights are relative to the nearest neighbour's, so that a small temperature cannot overflow.
    """
    if temperature <= 0:
        raise InputError(f"temperature is {temperature}: choose a number above 0, such as 0.07 or 0.5")
    nearness = similarity.astype(np.float64)
    weights = np.exp((nearness - nearness.max(axis=1, keepdims=True)) / temperature)
    votes = np.zeros((len(labels), classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
    return votes


def knn_predict(
    train_x: Floats,
    train_y: Ints,
    test_x: Floats,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
) -> Ints:
    """The class of each test row [M] by weighted vote; of classes with equal votes, the lowest number."""
    similarity, rows = nearest(train_x, test_x, k, device=device)
    classes, number = np.unique(train_y, return_inverse=True)
    chosen = [
        knn_votes(similarity[part], number[rows[part]], len(classes), temperature).argmax(axis=1)
        for part in (slice(start, start + QUERY_BLOCK) for start in range(0, len(rows), QUERY_BLOCK))
    ]
    return np.asarray(classes[np.concatenate(chosen)], dtype=np.int64)


def knn_accuracy(
    train_x: Floats,
    train_y: Ints,
    test_x: Floats,
    test_y: Ints,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
) -> float:
    """Share of test rows [M, F] whose k nearest training rows [N, F] vote for the right class."""
    predicted = knn_predict(train_x, train_y, test_x, k=k, temperature=temperature, device=device)
    return float((predicted == test_y).mean())
