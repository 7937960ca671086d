"""The mixed view of Mixed Barlow Twins (arXiv 2312.02151, section 3): y_m = a y_A + (1 - a) y_B[p]."""

import torch
from scipy.special import betaincinv
from torch import Tensor

from barlow.errors import InputError
from barlow.views.random import sample_keys, to_uniform


def draw_mix(
    batch: int, *, seed: int, step: int, alpha: float = 1.0, per_sample: bool = False
) -> tuple[Tensor, Tensor]:
    """Draw a ~ Beta(alpha, alpha) and a permutation p of the batch, both a pure function of (seed, step).

    Returns a, float32: a scalar tensor, or [batch] with `per_sample`; and p, int64 [batch]; both on the CPU.
    """
    if not alpha > 0:
        raise InputError(f"alpha of the Beta distribution must be positive, got {alpha}.")
    rows = torch.arange(batch)
    level = to_uniform(sample_keys(rows if per_sample else torch.zeros(1, dtype=torch.long), seed, step, "mix"))
    mix = torch.from_numpy(betaincinv(alpha, alpha, level.numpy())).float()
    permutation = sample_keys(rows, seed, step, "permutation").argsort()
    return (mix if per_sample else mix[0]), permutation


def mix_views(y_a: Tensor, y_b: Tensor, mix: Tensor, permutation: Tensor) -> Tensor:
    """y_m = mix * y_a + (1 - mix) * y_b[permutation], for y_a [B, ...], permutation [B] and mix a scalar or [B].

    `y_b` may hold more samples than `y_a`, of which `permutation` names some: the batches of all ranks, say.
    """
    weight = mix.to(y_a.device, y_a.dtype, non_blocking=True)
    if weight.ndim:
        weight = weight.view(-1, *[1] * (y_a.ndim - 1))
    return torch.lerp(y_b[permutation.to(y_b.device, non_blocking=True)], y_a, weight)
