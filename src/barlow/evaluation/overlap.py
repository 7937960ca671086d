"""Images that are in two places at once, found by the hash of their content."""

from collections.abc import Sequence, Set

from barlow.data.content import UNREADABLE


def overlap(hashes: Sequence[str], others: Set[str]) -> int:
    """How many of the hashes are among the others."""
    return sum(content in others for content in hashes if content != UNREADABLE)
