"""The head between encoder and objective. It is dropped after pretraining."""

import itertools
from collections.abc import Sequence

from torch import nn

from barlow.errors import InputError


def build_projector(in_dim: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given widths, `[B, in_dim]` -> `[B, widths[-1]]`.

    Batch normalisation and ReLU follow every layer but the last, and no layer before one has a bias, as in
    the official code of Barlow Twins (arXiv 2103.03230, section 2.2: three layers of 8192). The last layer has
    none either: the objective standardises its output, which removes any constant.

    Raises InputError for an empty list or a width under 2 (one feature has no off-diagonal to decorrelate).
    """
    if not widths or min(widths) < 2:
        raise InputError(f"projector widths must be 2 or more, got {list(widths)}; try 1024 1024")
    layers: list[nn.Module] = []
    dims = [in_dim, *widths]
    for inputs, outputs in itertools.pairwise(dims[:-1]):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(dims[-2], dims[-1], bias=False))
    return nn.Sequential(*layers)
