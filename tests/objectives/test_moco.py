"""MoCo's InfoNCE against the paper's equation, written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.objectives import MoCoLoss


def literal(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Eq. 1: -log exp(q k+ / t) / sum of exp(q k / t) over the positive key and those of the queue."""
    losses = []
    for query, key in zip(q, k, strict=True):
        query, key = query / query.norm(), key / key.norm()
        positive = (torch.dot(query, key) / temperature).exp()
        negatives = torch.stack([(torch.dot(query, old) / temperature).exp() for old in queue])
        losses.append(-torch.log(positive / (positive + negatives.sum())))
    return torch.stack(losses).mean()


def test_value_and_gradient_equal_the_papers_equation_for_both_views(
    agree: Callable[..., None], draw: Callable[..., list[Tensor]]
) -> None:
    q_a, q_b, k_a, k_b = draw(4, 6, 5)
    queue = torch.nn.functional.normalize(draw(1, 9, 5, seed=1)[0].detach(), dim=1)
    theirs = (literal(q_a, k_b.detach(), queue, 0.2) + literal(q_b, k_a.detach(), queue, 0.2)) / 2
    agree(MoCoLoss()(q_a, q_b, k_a, k_b, queue), theirs, [q_a, q_b])


def test_no_gradient_reaches_the_keys(draw: Callable[..., list[Tensor]]) -> None:
    q_a, q_b, k_a, k_b = draw(4, 6, 5)
    loss = MoCoLoss()(q_a, q_b, k_a, k_b, torch.eye(5, dtype=torch.float64))
    grads = torch.autograd.grad(loss, [k_a, k_b], allow_unused=True)
    assert all(grad is None for grad in grads)


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(InputError, match="temperature must be positive; received -1"):
        MoCoLoss(-1.0)
