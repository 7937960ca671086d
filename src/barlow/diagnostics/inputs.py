"""How many of the inputs are different: of blank images and of copies there is nothing to learn."""

from collections.abc import Iterable

import torch
from torch import Tensor

BLANK = 4
"""Levels of 255 between the darkest and the brightest pixel of a blank image: what JPEG leaves of a flat one."""


def distinct_share(samples: Iterable[Tensor]) -> float:
    """Share of the samples that are different from one another; copies count once, and so do all blank images.

    Samples are [C, ...] as they are stored, rows of a table [F]. NaN without samples.
    """
    seen, count = set(), 0
    for sample in samples:
        seen.add(b"" if is_blank(sample) else sample.contiguous().numpy().tobytes())
        count += 1
    return len(seen) / count if count else float("nan")


def is_blank(sample: Tensor) -> bool:
    """Whether no channel of [C, ...] varies: by more than `BLANK` levels for 8-bit samples, at all for others.

    Of a table's row [F] it cannot be told.
    """
    if sample.ndim < 2:
        return False
    low, high = torch.aminmax(sample.flatten(1).float(), dim=1)
    return bool((high - low <= (BLANK if sample.dtype == torch.uint8 else 0)).all())
