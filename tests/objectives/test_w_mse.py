"""W-MSE against the paper's definition, written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.objectives import WMSELoss
from barlow.objectives.w_mse import whiten


def literal(z_a: Tensor, z_b: Tensor, parts: list[int]) -> Tensor:
    """Whiten each sub-batch of each view by the inverse Cholesky factor of its covariance; distance of units."""
    pieces = []
    for a, b in zip(torch.split(z_a, parts), torch.split(z_b, parts), strict=True):
        whites = []
        for z in (a, b):
            covariance = torch.cov(z.T)
            v = torch.linalg.inv(torch.linalg.cholesky(covariance)) @ (z - z.mean(0)).T
            whites.append(v / v.norm(dim=0))
        pieces.append((whites[0] - whites[1]).square().sum(0))
    return torch.cat(pieces).mean()


@pytest.mark.parametrize(("n", "parts"), [(6, [6]), (11, [11]), (12, [6, 6]), (20, [7, 7, 6])])
def test_value_and_gradient_equal_the_papers_definition_in_sub_batches_of_two_widths(
    n: int, parts: list[int], agree: Callable[..., None], draw: Callable[..., list[Tensor]]
) -> None:
    z = draw(2, n, 3)
    agree(WMSELoss(eps=0.0)(*z), literal(z[0], z[1], parts), z)


def test_whitened_features_are_uncorrelated_with_unit_variance(draw: Callable[..., list[Tensor]]) -> None:
    z = draw(1, 30, 4)[0].detach() @ torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(torch.cov(whiten(z, 0.0).T), torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(torch.cov(whiten(z, 1e-4).T), torch.eye(4, dtype=torch.float64), rtol=0, atol=0.05)


def test_a_constant_feature_stays_finite_in_float32(draw: Callable[..., list[Tensor]]) -> None:
    z_a, z_b = (x.detach().float().index_fill(1, torch.tensor([2]), 1.0).requires_grad_() for x in draw(2, 12, 4))
    loss = WMSELoss()(z_a, z_b)
    loss.backward()
    assert z_a.grad is not None
    assert loss.isfinite()
    assert z_a.grad.isfinite().all()


def test_too_small_a_batch_is_refused(draw: Callable[..., list[Tensor]]) -> None:
    with pytest.raises(InputError, match="Whitening 4 features needs 8 samples or more; received 7"):
        WMSELoss()(*draw(2, 7, 4))
