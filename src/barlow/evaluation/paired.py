"""Two encoders on the same images: a paired test, and the per-image values that it needs, kept beside a score.

Two intervals that overlap do not say that two encoders are equally good: most images are easy or hard for both, and
only those on which the encoders differ tell them apart.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from barlow.errors import InputError
from barlow.evaluation.intervals import LEVEL


@dataclass(frozen=True)
class Comparison:
    """How far the first encoder is ahead of the second on the same images, and how likely that is by chance."""

    difference: float
    p: float
    """two-sided, of the hypothesis that both score the same"""
    n: int
    """images"""
    test: str

    @property
    def resolved(self) -> bool:
        """Whether the data can tell the two apart at the level of the intervals."""
        return self.p < 1 - LEVEL


def compare(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Paired test of per-image values of two encoders: [N], or [R, N] of R draws (or seeds) that both shared.

    Right-or-wrong values [N]: McNemar's exact test. Others: Student's t of the differences, whose standard error
    adds what the choice of images and what the choice of draws contribute (rows and columns as crossed random
    effects). It says nothing of training seeds: each encoder was trained once.

    Raises:
        InputError: Values of different shapes, or fewer than two images.
    """
    a, b = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] < 2:
        raise InputError(
            f"a paired test needs two or more values per encoder, of the same images, got {a.shape} and {b.shape}"
        )
    apart = a - b
    n = apart.shape[1]
    if len(apart) == 1 and np.isin([a, b], (0.0, 1.0)).all():
        won, lost = int((apart > 0).sum()), int((apart < 0).sum())
        p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
        return Comparison((won - lost) / n, p, n, "McNemar, exact")
    means = [part for part in (apart.mean(axis=0), apart.mean(axis=1)) if len(part) > 1]  # per image, per draw
    shares = np.array([part.var(ddof=1) / len(part) for part in means])
    difference, variance = float(apart.mean()), float(shares.sum())
    if variance < 1e-24:  # the same difference everywhere
        p = float(abs(difference) < 1e-12)
    else:  # degrees of freedom by Welch and Satterthwaite
        freedom = variance**2 / float(sum(shares**2 / [len(part) - 1 for part in means]))
        p = float(2 * stats.t.sf(abs(difference) / variance**0.5, freedom))
    return Comparison(difference, p, n, "paired t over images" + (" and draws" if len(apart) > 1 else ""))


def pack(values: NDArray[Any], keys: Sequence[str]) -> dict[str, Any]:
    """Per-image values [N] or [R, N] as plain values for JSON; `keys` [N] name the images and their labels."""
    exact = values.dtype == np.bool_
    array = np.ascontiguousarray(values, dtype=np.uint8 if exact else np.float32)
    return {
        "images": hashlib.sha256(json.dumps(list(keys)).encode()).hexdigest(),
        "shape": list(array.shape),
        "type": array.dtype.name,
        "zlib": base64.b64encode(zlib.compress(array.tobytes())).decode(),
    }


def unpack(packed: Mapping[str, Any]) -> NDArray[Any]:
    """What `pack` was given. Raises InputError for anything else."""
    try:
        shape = tuple(int(side) for side in packed["shape"])
        kind = {"uint8": np.uint8, "float32": np.float32}[packed["type"]]
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        content = zlib.decompressobj().decompress(base64.b64decode(packed["zlib"]), size + 1)  # no more than it claims
        return np.frombuffer(content, dtype=kind).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
        raise InputError(f"the per-image values of an evaluation are damaged ({error!r}): evaluate again") from None


def compare_scores(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison | None:
    """`compare` of two scores of one protocol and its settings, as results and their baselines hold them.

    None where either keeps no values of its images, or they are not of the same images and draws.
    """
    a, b = (score.get("per_image") or {} for score in (first, second))
    if not a or not b or any(a.get(name) != b.get(name) for name in ("images", "shape")):
        return None
    return compare(unpack(a), unpack(b))


def ahead(first: Mapping[str, Any], second: Mapping[str, Any]) -> int:
    """1 where the first score is ahead of the second by more than the images leave to chance, -1 behind, else 0.

    By the paired test; of scores that it cannot compare (of earlier runs, or detection's), by intervals that do not
    touch, which misses differences that the test would resolve.
    """
    paired = compare_scores(first, second)
    if paired is not None:
        return int(np.sign(paired.difference)) if paired.resolved else 0
    (low, high), (other_low, other_high) = (score.get("interval") or [score["value"]] * 2 for score in (first, second))
    return int(low > other_high) - int(high < other_low)


def best_of(scores: Sequence[Mapping[str, Any] | None]) -> int | None:
    """Which of the scores is ahead of every other one; None where the images do not tell, or there is only one."""
    given = [(i, score) for i, score in enumerate(scores) if score is not None]
    for i, score in given if len(given) > 1 else ():
        if all(ahead(score, other) == 1 for j, other in given if j != i):
            return i
    return None
