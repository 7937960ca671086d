"""Images that are in two places at once, found by the hash of their content."""

from collections.abc import Sequence, Set

from barlow.data import CorruptSample, Source
from barlow.evaluation.task import Subset

UNREADABLE = ""
"""In place of the hash of a sample that cannot be read: like no other."""


def content_hashes(part: Subset) -> list[str]:
    """Content hash of every sample, in order."""
    return [_hash(part.source, int(index)) for index in part.indices]


def _hash(source: Source, index: int) -> str:
    try:
        return source.content_hash(index)
    except CorruptSample:
        return UNREADABLE


def overlap(hashes: Sequence[str], others: Set[str]) -> int:
    """How many of the hashes are among the others."""
    return sum(content in others for content in hashes if content != UNREADABLE)
