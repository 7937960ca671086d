"""What the tests of the losses share."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

Agree = Callable[[Tensor, Tensor, Sequence[Tensor]], None]


def _agree(ours: Tensor, theirs: Tensor, leaves: Sequence[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    got, want = (torch.autograd.grad(loss, leaves) for loss in (ours, theirs))
    for mine, literal in zip(got, want, strict=True):
        torch.testing.assert_close(mine, literal, rtol=1e-9, atol=1e-10)


@pytest.fixture
def agree() -> Agree:
    """Assert that two scalars have one value and one gradient with respect to the leaves."""
    return _agree


@pytest.fixture
def draw() -> Callable[..., list[Tensor]]:
    """Make so many float64 leaves of a shape, with something in common, from a seed."""

    def leaves(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
        g = torch.Generator().manual_seed(seed)
        shared = torch.randn(*shape, generator=g, dtype=torch.float64)
        return [(shared + torch.randn(*shape, generator=g, dtype=torch.float64)).requires_grad_() for _ in range(count)]

    return leaves
