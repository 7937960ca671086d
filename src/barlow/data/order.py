"""The order of samples: a pure function of (seed, epoch), the same for any number of ranks and workers.

Every random choice is the splitmix64 hash of a purpose, the seed and counters (Steele et al., OOPSLA 2014), so it does
not depend on a generator's state or on a library's version.
"""

import numpy as np
import numpy.typing as npt

from .source import IntArray

UintArray = npt.NDArray[np.uint64]

_ORDER, _GROUP, _REPLACE, SPLIT, SAMPLE = range(1, 6)  # purposes: their streams are independent

WINDOW = 16
"""Storage groups (shards, row groups) that are shuffled together."""


def hashed(*words: object) -> UintArray:
    """splitmix64 of the words, which broadcast against each other: uint64, at least one element."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _finalise((state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15))
    return state


def _finalise(x: UintArray) -> UintArray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def epoch_order(
    indices: IntArray, *, seed: int, epoch: int, groups: IntArray | None = None, window: int = WINDOW
) -> IntArray:
    """The epoch's order: a permutation of `indices`.

    With `groups` [len(indices)] (the shard of each sample) the groups are shuffled, and samples are shuffled inside
    each run of `window` groups: a streaming reader has that many open at a time. Up to `window` groups, or with none
    given, it is one uniform shuffle.
    """
    keys = hashed(_ORDER, seed, epoch, indices)
    if groups is None:
        return indices[np.argsort(keys, kind="stable")]
    names, member = np.unique(groups, return_inverse=True)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(hashed(_GROUP, seed, epoch, names), kind="stable")] = np.arange(len(names))
    return indices[np.lexsort((keys, rank[member] // window))]


def rank_positions(step: int, batch_size: int, rank: int, world_size: int) -> IntArray:
    """Positions in the epoch's order of one rank's batch: every world_size-th one of the global batch."""
    first = step * batch_size * world_size
    return first + rank + world_size * np.arange(batch_size, dtype=np.int64)


def replacement(indices: IntArray, *, seed: int, epoch: int, position: int, attempt: int) -> int:
    """The sample that stands in for an unreadable one at this position of the epoch."""
    draw = hashed(_REPLACE, seed, epoch, position, attempt)[0]
    return int(indices[int(draw % np.uint64(len(indices)))])
