"""Labels of any type to class numbers: whole numbers stay as they are, text is numbered by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .source import IntArray

LABEL_KEYS = ("y", "labels", "label", "targets", "target")
"""Names under which arrays and columns hold labels."""
_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True)
class Labels:
    """Labels are metadata: those that are no classes leave the data unlabelled, and `left_out` says why."""

    numbers: IntArray | None = None
    """[N] class numbers, below 0 for a sample without a label; None when no sample has one."""
    classes: tuple[str, ...] | None = None
    """Name of each class number, where the labels are text."""
    left_out: tuple[str, ...] = ()


def read_labels(values: "Sequence[Any] | npt.NDArray[Any]") -> Labels:
    """Class numbers of N labels; None, NaN, empty text and numbers below 0 stand for no label."""
    if isinstance(values, np.ndarray) and values.ndim != 1:
        return _no_classes(f"of shape {list(values.shape)}")
    if isinstance(values, np.ndarray) and values.dtype.kind in "bi":
        return _numbered(values.astype(np.int64))
    given = [_plain(value) for value in (values.tolist() if isinstance(values, np.ndarray) else values)]
    known = [value for value in given if value is not None]
    if any(isinstance(value, str) for value in known):
        names = sorted({str(value) for value in known})
        number = {name: i for i, name in enumerate(names)}
        return _numbered([-1 if value is None else number[str(value)] for value in given], tuple(names))
    if not all(isinstance(value, int) and _INT64.min <= value <= _INT64.max for value in known):
        return _no_classes("neither whole numbers nor text")
    return _numbered([-1 if value is None else value for value in given])


def _plain(value: Any) -> Any:
    """Text, a whole number as an int, or None where there is no label; anything else as it is."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    return None if value == "" else value


def _numbered(numbers: Sequence[int] | IntArray, classes: tuple[str, ...] | None = None) -> Labels:
    array = np.asarray(numbers, np.int64)
    missing = int((array < 0).sum())
    if missing == len(array):  # an unlabelled split
        return Labels()
    return Labels(array, classes, (f"labels: {missing:,} of {len(array):,} samples have none",) if missing else ())


def _no_classes(what: str) -> Labels:
    return Labels(left_out=(f"labels: they are {what}, no classes",))
