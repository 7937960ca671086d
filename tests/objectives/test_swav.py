"""SwAV's swapped prediction and its Sinkhorn codes against the paper's listing, written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.objectives import SwAVLoss
from barlow.objectives.swav import sinkhorn
from barlow.ranks import Ranks


def literal_codes(scores: Tensor, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """The paper's listing: Q is prototypes x samples."""
    q = torch.exp(scores / eps).T
    q = q / q.sum()
    k, b = q.shape
    r, c = torch.ones(k, dtype=q.dtype) / k, torch.ones(b, dtype=q.dtype) / b
    for _ in range(iterations):
        u = q.sum(dim=1)
        q = q * (r / u).unsqueeze(1)
        q = q * (c / q.sum(dim=0)).unsqueeze(0)
    return (q / q.sum(dim=0, keepdim=True)).T


def literal(s_a: Tensor, s_b: Tensor, past_a: Tensor, past_b: Tensor) -> Tensor:
    n = len(s_a)
    with torch.no_grad():
        q_a, q_b = (literal_codes(torch.cat([s, past]))[:n] for s, past in ((s_a, past_a), (s_b, past_b)))
    p_a, p_b = (torch.softmax(s / 0.1, dim=1) for s in (s_a, s_b))
    return -0.5 * (q_a * torch.log(p_b) + q_b * torch.log(p_a)).sum(dim=1).mean()


def cosines(draw: Callable[..., list[Tensor]], count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    return [x.detach().tanh().requires_grad_() for x in draw(count, *shape, seed=seed)]


@pytest.mark.parametrize("remembered", [0, 5])
def test_value_and_gradient_equal_the_papers_listing(
    remembered: int, agree: Callable[..., None], draw: Callable[..., list[Tensor]]
) -> None:
    s_a, s_b = cosines(draw, 2, 8, 4)
    past_a, past_b = cosines(draw, 2, remembered, 4, seed=1)
    past = (past_a, past_b) if remembered else None
    agree(SwAVLoss()(s_a, s_b, past), literal(s_a, s_b, past_a, past_b), [s_a, s_b])


def test_codes_share_the_samples_equally_among_the_prototypes(draw: Callable[..., list[Tensor]]) -> None:
    (scores,) = cosines(draw, 1, 12, 4)
    codes = sinkhorn(scores.detach(), 12, Ranks((12,)), epsilon=0.2, iterations=50)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-3, atol=0)


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(InputError, match="temperature must be positive; received 0"):
        SwAVLoss(0.0)
