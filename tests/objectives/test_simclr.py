"""NT-Xent against the paper's equation, written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.objectives import NTXentLoss


def literal(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """Eq. 1: l(i, j) = -log exp(sim(i, j) / t) / sum over k != i of exp(sim(i, k) / t), over all 2N ordered pairs."""
    n, z = len(z_a), torch.cat([z_a, z_b])
    total = torch.zeros((), dtype=z.dtype)
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        similar = [torch.dot(z[i], z[k]) / (z[i].norm() * z[k].norm()) / temperature for k in range(2 * n)]
        others = torch.stack([s.exp() for k, s in enumerate(similar) if k != i]).sum()
        total = total - torch.log(similar[j].exp() / others)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_value_and_gradient_equal_the_papers_equation(
    temperature: float, agree: Callable[..., None], draw: Callable[..., list[Tensor]]
) -> None:
    z = draw(2, 7, 5)
    agree(NTXentLoss(temperature)(*z), literal(z[0], z[1], temperature), z)


def test_unrelated_orthogonal_embeddings_give_the_logarithm_of_their_number() -> None:
    z = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(NTXentLoss()(z[:6], z[6:]), torch.log(torch.tensor(11.0, dtype=torch.float64)))


def test_half_precision_is_lifted_to_float32(draw: Callable[..., list[Tensor]]) -> None:
    z = [x.detach().bfloat16() for x in draw(2, 16, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = NTXentLoss()(*z)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), literal(z[0].double(), z[1].double(), 0.5), rtol=1e-5, atol=0)


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(InputError, match="temperature must be positive; received 0"):
        NTXentLoss(0.0)
