"""Exact search in a bank of features that is asked more than once."""

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from barlow.evaluation.knn import BANK_BLOCK, Floats, Ints, check_sizes, nearest, unit_rows

LARGE = 100_000
"""Rows from which on FAISS, where it is installed, is worth the copy of the bank that it makes."""


class Bank:
    """Features [N, F] to search in: by FAISS' exact index where it is installed and N is large, else in blocks.

    Both find the same rows; only rows that are equally near may come in another order.
    """

    def __init__(self, x: Floats, *, large: int = LARGE) -> None:
        self.x = x
        self.index = _exact_index(x) if len(x) >= large and importlib.util.find_spec("faiss") else None

    def nearest(self, queries: Floats, k: int) -> tuple[NDArray[np.float32], Ints]:
        """Of every query the k most similar rows by cosine: similarities [M, k] falling, row numbers [M, k].

        Raises InputError where widths differ, or k is not between 1 and N.
        """
        if self.index is None:
            return nearest(self.x, queries, k)
        check_sizes(self.x, queries, k)
        similarity, rows = self.index.search(unit_rows(queries, "cpu").numpy(), k)
        return similarity, rows.astype(np.int64, copy=False)


def _exact_index(x: Floats) -> Any:
    """FAISS' inner products with rows of length one; the rows are copied a block at a time."""
    import faiss

    index = faiss.IndexFlatIP(x.shape[1])
    for start in range(0, len(x), BANK_BLOCK):
        index.add(unit_rows(x[start : start + BANK_BLOCK], "cpu").numpy())
    return index
