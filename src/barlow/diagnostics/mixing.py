"""Is the mixing assumption true? The embedding of a mixed image against the mix of the embeddings."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from barlow.errors import InputError
from barlow.evaluation.frozen import eval_mode

WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Mixing weights measured by default."""


@torch.no_grad()
def deviation(
    embed: Callable[[Tensor], Tensor], images: Tensor, others: Tensor, weights: Sequence[float] = WEIGHTS
) -> dict[float, float]:
    """Per weight a: mean |f(a x + (1-a) x') - (a f(x) + (1-a) f(x'))|^2 / mean |f(x) - f(x')|^2.

    `images` x and `others` x' are model inputs [N, C, h, w] (normalised pixels, as training mixes them). 0: the
    mixing assumption of Mixed Barlow Twins (arXiv 2312.02151, equation 5) holds exactly, as for a linear f.
    A share of the squared distance between samples, so widths and encoders can be compared. NaN where the embeddings of
    all pairs coincide (a constant encoder mixes anything), or hold NaN or infinity.

    Raises:
        InputError: Shapes differ.
    """
    if images.shape != others.shape:
        raise InputError(f"mixing needs pairs of one shape, got {tuple(images.shape)} and {tuple(others.shape)}")
    z, z_other = embed(images).double(), embed(others).double()
    distance = float((z - z_other).square().sum(dim=1).mean())
    if not 0 < distance < float("inf"):
        return {float(a): float("nan") for a in weights}
    found = {}
    for a in weights:
        mixed = embed(a * images + (1 - a) * others).double()
        error = (mixed - (a * z + (1 - a) * z_other)).square().sum(dim=1).mean()
        found[float(a)] = float(error) / distance
    return found


def mixing_deviation(
    encoder: nn.Module,
    projector: nn.Module,
    images: Tensor,
    *,
    weights: Sequence[float] = WEIGHTS,
    seed: int = 0,
) -> dict[str, dict[float, float]]:
    """`deviation` of the encoder's features and of the projector's embedding, over one seeded pairing of `images`.

    Images [N, C, h, w] are paired by a permutation without fixed points. Both networks run in eval mode.
    """
    others = images[_derangement(len(images), seed)]
    with eval_mode(encoder, projector):
        return {
            "encoder": deviation(encoder, images, others, weights),
            "projector": deviation(lambda x: projector(encoder(x)), images, others, weights),
        }


def _derangement(n: int, seed: int) -> Tensor:
    """A permutation of n >= 2 without fixed points: a random cycle through all."""
    if n < 2:
        raise InputError(f"mixing needs two images or more, got {n}")
    order = np.random.default_rng(seed).permutation(n)
    partner = np.empty(n, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return torch.from_numpy(partner)
