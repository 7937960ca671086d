"""VICReg against the paper's algorithm, written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.objectives import VICRegLoss
from barlow.objectives.correlation import Form


def literal(x: Tensor, y: Tensor, lambd: float, mu: float, nu: float) -> Tensor:
    """Algorithm 1."""
    n, d = x.shape
    sim = torch.nn.functional.mse_loss(x, y)
    std_x, std_y = torch.sqrt(x.var(dim=0) + 1e-4), torch.sqrt(y.var(dim=0) + 1e-4)
    std = torch.relu(1 - std_x).mean() + torch.relu(1 - std_y).mean()
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    off = ~torch.eye(d, dtype=torch.bool)
    cov = ((x.T @ x / (n - 1))[off] ** 2).sum() / d + ((y.T @ y / (n - 1))[off] ** 2).sum() / d
    return lambd * sim + mu * std + nu * cov


@pytest.mark.parametrize("form", ["gram", "correlation", "auto"])
@pytest.mark.parametrize("shape", [(7, 12), (20, 5)])
def test_value_and_gradient_equal_the_papers_algorithm(
    form: Form, shape: tuple[int, int], agree: Callable[..., None], draw: Callable[..., list[Tensor]]
) -> None:
    z = [(x * torch.linspace(0.1, 1.5, shape[1])).detach().requires_grad_() for x in draw(2, *shape)]
    agree(VICRegLoss(form=form)(*z), literal(z[0], z[1], 25, 25, 1), z)
    agree(VICRegLoss(3, 2, 5, form=form)(*z), literal(z[0], z[1], 3, 2, 5), z)


def test_terms_are_contributions(draw: Callable[..., list[Tensor]]) -> None:
    terms = VICRegLoss().terms(*draw(2, 8, 4))
    assert list(terms) == ["loss", "invariance", "variance", "covariance"]
    torch.testing.assert_close(terms["loss"], terms["invariance"] + terms["variance"] + terms["covariance"])


def test_a_collapsed_embedding_pays_for_its_missing_variance_alone() -> None:
    terms = VICRegLoss().terms(torch.ones(8, 4, dtype=torch.float64), torch.ones(8, 4, dtype=torch.float64))
    assert terms["invariance"] == terms["covariance"] == 0
    assert terms["variance"].item() == pytest.approx(2 * 25 * (1 - 1e-2))


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="covariance must be a finite number, 0 or more; received -1"):
        VICRegLoss(covariance=-1.0)
