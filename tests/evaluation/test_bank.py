"""A bank that is asked again and again finds what the search in blocks finds, with FAISS or without."""

import numpy as np
import pytest
from numpy.typing import NDArray

from barlow.errors import InputError
from barlow.evaluation import nearest
from barlow.evaluation.bank import LARGE, Bank


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_faiss_finds_the_same_neighbours_as_the_search_in_blocks(dtype: type[np.floating]) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    x: NDArray[np.floating] = (rng.standard_normal((20_000, 24)) * rng.uniform(0.1, 10, (20_000, 1))).astype(
        dtype
    )  # rows of any length
    queries = rng.standard_normal((50, 24)).astype(np.float32)
    bank = Bank(x, large=1000)
    assert bank.index is not None
    similarity, rows = bank.nearest(queries, 10)
    expected, expected_rows = nearest(x, queries, 10)
    assert (rows == expected_rows).all()
    np.testing.assert_allclose(similarity, expected, rtol=1e-5)
    with pytest.raises(InputError, match="k is 20001"):
        bank.nearest(queries, 20_001)
    with pytest.raises(InputError, match="with one F"):
        bank.nearest(queries[:, :5], 1)


def test_a_small_bank_or_none_of_faiss_is_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    assert len(x) < LARGE
    assert Bank(x).index is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bank = Bank(x, large=100)
    assert bank.index is None
    similarity, rows = bank.nearest(x[:5], 3)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(similarity[:, 0], 1, rtol=1e-6)
