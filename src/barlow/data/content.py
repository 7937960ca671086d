"""Whether two sources hold the same samples, wherever these lie and however their place is spelled."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .arrays import ArraySource
from .files import EncodedSource, sample_indices
from .source import CorruptSample, IntArray, Source

MOST_SAMPLES = 4096
"""Encoded samples whose content is read: each costs a file to open or a place to seek."""
MOST_BYTES = 256 << 20
"""Bytes of content that are read at most, about."""
UNREADABLE = ""
"""Stands for the content of a sample that cannot be read."""
_READERS = 8  # threads: on a network disk each waits for its answer
_AT_A_TIME = 16 << 20  # bytes of an array


def identity(source: Source) -> dict[str, Any]:
    """Facts that are the same for the same data: the number of `samples`, and a hash of all their `names`, of their
    `sizes` in bytes, and of their `contents`.

    Every name and size counts. Contents count up to MOST_BYTES, of files and shards up to MOST_SAMPLES samples; of
    larger data a part is read that is drawn once for good. So a million files cost a look at each one's size and some
    seconds. A change that keeps all names, all sizes and the content of that part is not seen.
    """
    sizes = source.stored_sizes()
    names = _sha256(key.encode("utf-8", "surrogatepass") + b"\0" for key in source.keys)
    facts = {"samples": len(source), "names": names, "sizes": _sha256([sizes.astype("<i8").tobytes()])}
    return {**facts, "contents": _sha256(_contents(source, sizes))}


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, the first way in which two identities differ; empty for the same data."""
    if then.get("samples") != now["samples"]:
        return f"{now['samples']} samples now and {then.get('samples')} then"
    differing = [what for what in ("names", "sizes", "contents") if then.get(what) != now[what]]
    return f"as many samples, but their {' and '.join(differing)} differ" if differing else ""


def content_hashes(source: Source, indices: Iterable[int]) -> list[str]:
    """Content hash of each sample, in order; UNREADABLE for those that cannot be read."""

    def content_hash(i: int) -> str:
        try:
            return source.content_hash(i)
        except CorruptSample:
            return UNREADABLE

    with ThreadPoolExecutor(_READERS if isinstance(source, EncodedSource) else 1) as threads:
        return list(threads.map(content_hash, map(int, indices)))


def _contents(source: Source, sizes: IntArray) -> Iterable[bytes]:
    total, n = int(sizes.sum()), len(source)
    affordable = n if total <= MOST_BYTES else math.ceil(n * MOST_BYTES / total)
    if not isinstance(source, ArraySource):
        rows = sample_indices(n, min(affordable, MOST_SAMPLES), seed=0)
        return (content.encode() for content in content_hashes(source, rows))
    rows = sample_indices(n, affordable, seed=0)
    parts = np.array_split(rows, max(1, min(len(rows), total // _AT_A_TIME)))
    return (np.ascontiguousarray(source.gather(part).numpy()).tobytes() for part in parts)


def _sha256(parts: Iterable[bytes]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()
