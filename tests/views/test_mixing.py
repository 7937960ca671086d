import pytest
import torch
from scipy import stats

from barlow.errors import InputError
from barlow.views import draw_mix, mix_views


def test_mixed_view_is_the_papers_formula_and_its_ends_are_the_views() -> None:
    y_a, y_b = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    permutation = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(mix_views(y_a, y_b, torch.tensor(1.0), permutation), y_a)
    assert torch.equal(mix_views(y_a, y_b, torch.tensor(0.0), permutation), y_b[permutation])
    weights = torch.linspace(0, 1, 5)
    mixed = mix_views(y_a, y_b, weights, permutation)
    for n in range(5):
        assert torch.allclose(mixed[n], weights[n] * y_a[n] + (1 - weights[n]) * y_b[permutation[n]], atol=1e-6)


def test_mixing_keeps_the_dtype_of_the_views() -> None:
    views = torch.rand(2, 3, 4, 4).bfloat16()
    assert mix_views(views, views, torch.tensor(0.3), torch.tensor([1, 0])).dtype == torch.bfloat16


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_weights_are_beta_distributed(alpha: float) -> None:
    per_step = torch.stack([draw_mix(2, seed=0, step=step, alpha=alpha)[0] for step in range(800)])
    per_sample = draw_mix(3000, seed=0, step=0, alpha=alpha, per_sample=True)[0]
    assert per_sample.shape == (3000,)
    for draws in (per_step, per_sample):
        assert stats.kstest(draws.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_draws_are_a_function_of_seed_and_step() -> None:
    mix, permutation = draw_mix(64, seed=1, step=7)
    again, same = draw_mix(64, seed=1, step=7)
    assert torch.equal(mix, again)
    assert torch.equal(permutation, same)
    assert sorted(permutation.tolist()) == list(range(64))
    for other in (draw_mix(64, seed=1, step=8), draw_mix(64, seed=2, step=7)):
        assert other[0] != mix
        assert not torch.equal(other[1], permutation)


def test_alpha_must_be_positive() -> None:
    with pytest.raises(InputError, match=r"must be positive, got 0"):
        draw_mix(4, seed=0, step=0, alpha=0)
