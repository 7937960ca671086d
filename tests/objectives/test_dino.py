"""DINO's self-distillation against the paper's listing, written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.objectives import DINOLoss
from barlow.objectives.dino import moved_centre


def literal(t: Tensor, s: Tensor, centre: Tensor, student: float, teacher: float) -> Tensor:
    """H(t, s) of algorithm 1."""
    t = t.detach()
    s = torch.softmax(s / student, dim=1)
    t = torch.softmax((t - centre) / teacher, dim=1)
    return -(t * torch.log(s)).sum(dim=1).mean()


def test_value_and_gradient_equal_the_papers_listing(
    agree: Callable[..., None], draw: Callable[..., list[Tensor]]
) -> None:
    s_a, s_b, t_a, t_b = (x.detach().tanh().requires_grad_() for x in draw(4, 8, 5))
    centre = torch.linspace(-0.2, 0.3, 5, dtype=torch.float64)
    theirs = literal(t_a, s_b, centre, 0.1, 0.04) / 2 + literal(t_b, s_a, centre, 0.1, 0.04) / 2
    agree(DINOLoss()(s_a, s_b, t_a, t_b, centre), theirs, [s_a, s_b])


def test_the_centre_moves_towards_the_mean_of_both_views(draw: Callable[..., list[Tensor]]) -> None:
    t_a, t_b = (x.detach() for x in draw(2, 8, 5))
    centre = torch.linspace(-0.2, 0.3, 5, dtype=torch.float64)
    theirs = 0.9 * centre + 0.1 * torch.cat([t_a, t_b]).mean(dim=0)
    torch.testing.assert_close(moved_centre(centre, t_a, t_b), theirs)
    large = torch.full((8, 5), 4e4, dtype=torch.float16)  # whose sum is beyond float16
    torch.testing.assert_close(moved_centre(centre, large, large), 0.9 * centre + 0.1 * large[0].double())


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(InputError, match="teacher_temperature must be positive; received 0"):
        DINOLoss(teacher_temperature=0.0)
