from collections.abc import Callable
from itertools import groupby, permutations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from barlow.views import colour

OPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "brightness": (colour.brightness_, tv.adjust_brightness),
    "contrast": (colour.contrast_, tv.adjust_contrast),
    "saturation": (colour.saturation_, tv.adjust_saturation),
    "hue": (colour.hue_, tv.adjust_hue),
}
FACTORS = [0.0, 0.2, 0.6, 1.0, 1.4, 2.0]
SHIFTS = [-0.5, -0.34, -0.1, 0.0, 0.01, 0.1, 0.25, 0.5]
CASES = [(op, value) for op in OPS for value in (SHIFTS if op == "hue" else FACTORS)]


@pytest.mark.parametrize(("op", "value"), CASES)
@pytest.mark.parametrize("top", [1.0, 255.0])
def test_op_equals_torchvision(patches: Tensor, op: str, value: float, top: float) -> None:
    ours, theirs = OPS[op]
    x = patches.float() / 255
    result = ours(x * top, torch.full((len(x),), value), top) / top
    assert torch.allclose(result, theirs(x, value), atol=3e-6)


def test_ops_take_one_parameter_per_sample(patches: Tensor) -> None:
    for op, (ours, theirs) in OPS.items():
        values = torch.linspace(-0.5, 0.5, len(patches)) if op == "hue" else torch.linspace(0.0, 2.0, len(patches))
        x = patches.float() / 255
        result = ours(x.clone(), values, 1.0)
        for one, before, value in zip(result, x, values.tolist(), strict=True):
            assert torch.allclose(one, theirs(before, value), atol=3e-6)


def test_hue_of_every_corner_edge_and_gray_of_the_colour_cube() -> None:
    levels = torch.linspace(0.0, 1.0, 9)
    cube = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 27, 27)
    for shift in SHIFTS:
        result = colour.hue_(cube.clone(), torch.tensor([shift]), 1.0)
        assert torch.allclose(result, tv.adjust_hue(cube, shift), atol=3e-6)


def test_uint8_torchvision_differs_from_the_float_chain_by_its_rounding_alone(patches: Tensor) -> None:
    for op in ("brightness", "contrast", "saturation"):
        result = OPS[op][0](patches.float(), torch.full((12,), 1.3), 255.0)
        assert (result - OPS[op][1](patches, 1.3).float()).abs().max() <= 2.0


def test_jitter_applies_each_samples_ops_in_its_own_order(patches: Tensor) -> None:
    every = list(permutations(colour.JITTER_OPS))
    orders = [every[i] for i in (0, 0, 1, 2, 5, 6, 9, 13, 13, 17, 22, 23)]
    factors = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.8, "hue": -0.2}
    x = patches.float() / 255
    runs = [(order, len(list(run))) for order, run in groupby(orders)]
    result = colour.jitter_(x.clone(), runs, {op: torch.full((12,), f) for op, f in factors.items()}, 1.0)
    for one, before, order in zip(result, x, orders, strict=True):
        expected = before
        for op in order:
            expected = OPS[op][1](expected, factors[op])
        assert torch.allclose(one, expected, atol=1e-5)


def test_grayscale_equals_torchvision(patches: Tensor) -> None:
    x = patches.float() / 255
    assert torch.allclose(colour.grayscale_(x.clone()), tv.rgb_to_grayscale(x, 3), atol=1e-6)


def test_solarize_equals_torchvision_at_half_of_the_range(patches: Tensor) -> None:
    assert torch.equal(colour.solarize_(patches.float(), 255.0), tv.solarize(patches, 128).float())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("top", [1.0, 255.0])
def test_posterize_equals_torchvision(patches: Tensor, bits: int, top: float) -> None:
    result = colour.posterize_(patches.float() / 255 * top, bits, top) * (255 / top)
    assert torch.allclose(result, tv.posterize(patches, bits).float(), atol=1e-3)


def test_one_channel_has_no_saturation_and_no_hue(patches: Tensor) -> None:
    x = patches[:, :1].float()
    assert torch.equal(colour.saturation_(x.clone(), torch.full((12,), 0.3), 255.0), x)
    assert torch.equal(colour.hue_(x.clone(), torch.full((12,), 0.3), 255.0), x)
    expected = tv.adjust_contrast(x / 255, 0.3) * 255
    assert torch.allclose(colour.contrast_(x.clone(), torch.full((12,), 0.3), 255.0), expected, atol=1e-3)


def test_channel_gains_scale_and_drop_channels(patches: Tensor) -> None:
    gains = torch.tensor([[0.0, 0.5, 3.0]]).expand(12, 3)
    x = patches.float()
    expected = torch.stack([x[:, 0] * 0, x[:, 1] * 0.5, (x[:, 2] * 3).clamp(max=255)], dim=1)
    assert torch.equal(colour.scale_channels_(x.clone(), gains, 255.0), expected)
