"""The formulas in docs/objective.md hold."""

import doctest
from pathlib import Path


def test_every_formula_in_the_document_on_the_objective_holds() -> None:
    document = Path(__file__).parents[2] / "docs" / "objective.md"
    results = doctest.testfile(str(document), module_relative=False, encoding="utf-8")
    assert results.attempted > 30
    assert results.failed == 0
