"""Learning rates and decays as pure functions of the step and of the global batch."""

import math

import numpy as np

from barlow.errors import InputError

REFERENCE_BATCH = 256  # learning rates are quoted for this many images per step

# The best LARS rate per 256 images, by global batch: Barlow Twins (arXiv 2103.03230), ablation of the batch size.
LARS_LR = {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}
LARS_BIAS_LR = 0.0048  # per 256 images, for biases and norms, at every batch


def warmup_cosine(step: int, *, total: int, warmup: int, floor: float = 0.001) -> float:
    """Multiplier of the learning rate: 0 to 1 linearly over `warmup` steps, then a half cosine to `floor` at `total`.

    Barlow Twins' schedule: step 0 has rate 0 when there is a warm-up; the last step comes just above `floor`.
    """
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    q = 0.5 * (1 + math.cos(math.pi * progress))
    return q + floor * (1 - q)


def scaled_lr(base: float, global_batch: int) -> float:
    """The linear scaling rule: `base` per 256 images, times the images per step over all ranks."""
    return base * _positive(global_batch) / REFERENCE_BATCH


def lars_lr(global_batch: int) -> float:
    """The paper's LARS rate per 256 images, before `scaled_lr`: its table, linear in log2(batch), constant outside."""
    batches = [math.log2(batch) for batch in LARS_LR]
    return float(np.interp(math.log2(_positive(global_batch)), batches, list(LARS_LR.values())))


def cosine_decay(step: int, *, total: int, base: float) -> float:
    """Decay of a target network: `base` at step 0, 1 at `total`, by a half cosine (BYOL, arXiv 2006.07733, 3.2)."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))


def _positive(global_batch: int) -> int:
    if global_batch < 1:
        raise InputError(f"the global batch must be at least 1, got {global_batch}.")
    return global_batch
