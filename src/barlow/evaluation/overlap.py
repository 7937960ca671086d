"""Images that are in two places at once, found by the hash of their content."""

from collections.abc import Set

from barlow.evaluation.task import Subset


def content_hashes(part: Subset) -> list[str]:
    """Content hash of every sample, in order."""
    return [part.source.content_hash(int(index)) for index in part.indices]


def overlap(part: Subset, others: Set[str]) -> int:
    """How many samples of `part` have a hash among `others`."""
    return sum(content in others for content in content_hashes(part))
