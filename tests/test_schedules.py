"""The schedules against a literal transcription of Barlow Twins' released one."""

import math

import pytest

from barlow.errors import InputError
from barlow.schedules import (
    LARS_LR,
    cosine_decay,
    lars_lr,
    scaled_lr,
    warmup_cosine,
)


def official(step: int, max_steps: int, warmup_steps: int) -> float:
    if step < warmup_steps:
        return step / warmup_steps
    step -= warmup_steps
    max_steps -= warmup_steps
    q = 0.5 * (1 + math.cos(math.pi * step / max_steps))
    return 1 * q + 0.001 * (1 - q)


def test_warmup_cosine_equals_the_official_schedule_at_every_step() -> None:
    ours = [warmup_cosine(s, total=500, warmup=50) for s in range(500)]
    assert ours == pytest.approx([official(s, 500, 50) for s in range(500)], rel=1e-14)


def test_warmup_cosine_passes_through_its_landmarks() -> None:
    at = {s: warmup_cosine(s, total=110, warmup=10, floor=0.25) for s in (0, 5, 10, 60, 110, 1000)}
    assert at == pytest.approx({0: 0.0, 5: 0.5, 10: 1.0, 60: 0.625, 110: 0.25, 1000: 0.25})


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert warmup_cosine(0, total=10, warmup=0) == 1.0


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    assert [warmup_cosine(s, total=4, warmup=8) for s in range(4)] == [0, 0.125, 0.25, 0.375]
    assert warmup_cosine(8, total=8, warmup=8) == 1.0


def test_official_imagenet_rate_is_recovered() -> None:
    assert scaled_lr(lars_lr(2048), 2048) == pytest.approx(1.6)


@pytest.mark.parametrize("batch", LARS_LR)
def test_lars_lr_is_the_papers_table_at_its_batches(batch: int) -> None:
    assert lars_lr(batch) == LARS_LR[batch]


def test_lars_lr_is_linear_in_the_logarithm_between_and_constant_outside() -> None:
    assert lars_lr(round(256 * math.sqrt(2))) == pytest.approx(0.35, abs=1e-4)
    assert (lars_lr(1), lars_lr(100_000)) == (0.7, 0.2)


def test_an_empty_global_batch_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1, got 0"):
        lars_lr(0)
    with pytest.raises(InputError, match="at least 1, got -8"):
        scaled_lr(0.2, -8)


def test_ema_decay_rises_from_base_to_one() -> None:
    decays = [cosine_decay(s, total=100, base=0.99) for s in (0, 50, 100, 200)]
    assert decays == pytest.approx([0.99, 0.995, 1.0, 1.0])
