"""The mixing assumption on maps whose deviation is known."""

import pytest
import torch
from torch import nn

from barlow.diagnostics import deviation, mixing_deviation
from barlow.errors import InputError

WEIGHTS = (0.0, 0.25, 0.5, 1.0)


def pairs(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(n, 3, 4, 4, generator=generator) for _ in range(2))
    return x, other


def test_a_linear_map_and_a_shifted_one_mix_exactly() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).double()
    x, other = pairs()
    found = deviation(linear, x.double(), other.double(), WEIGHTS)
    assert found == pytest.approx(dict.fromkeys(WEIGHTS, 0.0), abs=1e-20)


def test_the_deviation_of_the_square_is_known() -> None:
    x, other = pairs()
    found = deviation(lambda images: images.double().flatten(1) ** 2, x, other, WEIGHTS)
    u, v = x.double().flatten(1), other.double().flatten(1)
    # (a u + b v)^2 - a u^2 - b v^2 = -a b (u - v)^2 with b = 1 - a
    scale = ((u**2 - v**2) ** 2).sum(dim=1).mean()
    for a in WEIGHTS:
        expected = (a * (1 - a)) ** 2 * ((u - v) ** 4).sum(dim=1).mean() / scale
        assert found[a] == pytest.approx(float(expected), rel=1e-5, abs=1e-12)


def test_scale_and_repetition_of_features_do_not_change_it() -> None:
    x, other = pairs()
    once = deviation(lambda images: images.flatten(1).relu(), x, other, (0.5,))
    again = deviation(lambda images: 30 * images.flatten(1).relu().repeat(1, 4), x, other, (0.5,))
    assert once[0.5] > 0.01
    assert again[0.5] == pytest.approx(once[0.5], rel=1e-5)


def test_encoder_and_projector_are_measured_apart_in_eval_mode() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8))
    projector = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    encoder.train()
    found = mixing_deviation(encoder, projector, pairs(20)[0], weights=(0.5,))
    assert found["encoder"][0.5] == pytest.approx(0.0, abs=1e-10)
    assert found["projector"][0.5] > 0.01
    assert encoder.training


def test_a_constant_encoder_has_no_deviation_to_measure_and_unequal_pairs_are_refused() -> None:
    x, other = pairs()
    found = deviation(lambda images: torch.ones(len(images), 4), x, other, WEIGHTS)
    assert found == pytest.approx(dict.fromkeys(WEIGHTS, float("nan")), nan_ok=True)
    with pytest.raises(InputError, match="one shape"):
        deviation(torch.flatten, x, other[:3])
