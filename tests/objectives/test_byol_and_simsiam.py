"""The two losses of a prediction and a target without gradient, against their papers' equations, written out."""

from collections.abc import Callable

import torch
from torch import Tensor

from barlow.objectives import BYOLLoss, SimSiamLoss


def unit(x: Tensor) -> Tensor:
    scaled: Tensor = x / x.norm(dim=1, keepdim=True)
    return scaled


def test_byol_is_the_squared_distance_of_unit_vectors_both_ways(
    agree: Callable[..., None], draw: Callable[..., list[Tensor]]
) -> None:
    p_a, p_b, t_a, t_b = draw(4, 6, 5)
    one_way = (unit(p_a) - unit(t_b.detach())).square().sum(1).mean()
    other_way = (unit(p_b) - unit(t_a.detach())).square().sum(1).mean()
    agree(BYOLLoss()(p_a, p_b, t_a, t_b), one_way + other_way, [p_a, p_b])


def test_simsiam_is_the_mean_negative_cosine_of_both_ways(
    agree: Callable[..., None], draw: Callable[..., list[Tensor]]
) -> None:
    p_a, p_b, z_a, z_b = draw(4, 6, 5)
    one_way = -(unit(p_a) * unit(z_b.detach())).sum(1).mean()
    other_way = -(unit(p_b) * unit(z_a.detach())).sum(1).mean()
    agree(SimSiamLoss()(p_a, p_b, z_a, z_b), (one_way + other_way) / 2, [p_a, p_b])


def test_no_gradient_reaches_the_targets(draw: Callable[..., list[Tensor]]) -> None:
    for loss in (BYOLLoss(), SimSiamLoss()):
        p_a, p_b, t_a, t_b = draw(4, 6, 5)
        grads = torch.autograd.grad(loss(p_a, p_b, t_a, t_b), [t_a, t_b], allow_unused=True)
        assert all(grad is None for grad in grads)


def test_their_lowest_values_are_reached_by_right_predictions(draw: Callable[..., list[Tensor]]) -> None:
    t_a, t_b = draw(2, 6, 5)
    assert BYOLLoss()(3 * t_b, 2 * t_a, t_a, t_b).abs().item() < 1e-12
    assert abs(SimSiamLoss()(3 * t_b, 2 * t_a, t_a, t_b).item() + 1) < 1e-12
