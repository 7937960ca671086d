"""Each variant against its own literal definition, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss, VariantLoss, unit_rows
from barlow.objectives.correlation import Form
from barlow.objectives.variants import Variant

LAMBD = 0.03


def standardized(z: Tensor) -> Tensor:
    return (z - z.mean(0)) / torch.sqrt(z.var(0, correction=0) + 1e-5)


def correlation_of(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ni,nj->ij", a, b) / len(a)


def on(c: Tensor) -> Tensor:
    return (1 - torch.diagonal(c)).square().sum()


def off(c: Tensor) -> Tensor:
    return c[~torch.eye(len(c), dtype=torch.bool)]


def auto_correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = standardized(a), standardized(b)
    return on(correlation_of(a, b)) + LAMBD * off(correlation_of(a, a)).square().sum()


def feature_norm(a: Tensor, b: Tensor) -> Tensor:
    a, b = (x / x.norm(dim=1, keepdim=True) * x.shape[1] ** 0.5 for x in (standardized(a), standardized(b)))
    return on(correlation_of(a, b)) + LAMBD * off(correlation_of(a, b)).square().sum()


def no_norm(a: Tensor, b: Tensor) -> Tensor:
    c = correlation_of(a - a.mean(0), b - b.mean(0))
    return on(c) + LAMBD * off(c).square().sum()


def invariance_only(a: Tensor, b: Tensor) -> Tensor:
    return on(correlation_of(standardized(a), standardized(b)))


def redundancy_only(a: Tensor, b: Tensor) -> Tensor:
    return LAMBD * off(correlation_of(standardized(a), standardized(b))).square().sum()


def cross_entropy(a: Tensor, b: Tensor) -> Tensor:
    c = correlation_of(standardized(a), standardized(b))
    return -torch.diagonal(c).div(0.5).exp().sum().log() + LAMBD * off(c).clamp(min=0).div(0.5).exp().sum().log()


def target_minus_one(a: Tensor, b: Tensor) -> Tensor:
    c = correlation_of(standardized(a), standardized(b))
    return on(c) + LAMBD * (1 + off(c)).square().sum()


def unit_then_batch_norm(a: Tensor, b: Tensor) -> Tensor:
    # As released: unit length, then a plain standard deviation; here biased, and without a constant in it.
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    a, b = ((x - x.mean(0)) / x.std(0, correction=0) for x in (a, b))
    c = correlation_of(a, b)
    return on(c) + LAMBD * off(c).square().sum()


LITERAL: dict[Variant, Callable[[Tensor, Tensor], Tensor]] = {
    "auto-correlation": auto_correlation,
    "feature-norm": feature_norm,
    "no-norm": no_norm,
    "invariance-only": invariance_only,
    "redundancy-only": redundancy_only,
    "cross-entropy": cross_entropy,
    "target-minus-one": target_minus_one,
    "unit-then-batch-norm": unit_then_batch_norm,
}


@pytest.fixture
def views() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(14, 11, generator=g, dtype=torch.float64)
    return [(shared + torch.randn(shared.shape, generator=g, dtype=torch.float64)).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("form", ["gram", "correlation"])
@pytest.mark.parametrize("variant", LITERAL)
def test_value_and_gradient_equal_the_literal_definition(variant: Variant, form: Form, views: list[Tensor]) -> None:
    # The constant in the variance is 1e-5 of it: all the difference that the released convention may show.
    tolerance = 1e-4 if variant == "unit-then-batch-norm" else 1e-10
    ours = VariantLoss(variant, LAMBD, temperature=0.5, form=form)(*views)
    theirs = LITERAL[variant](*views)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    grads = [torch.autograd.grad(loss, views) for loss in (ours, theirs)]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_the_two_single_terms_add_up_to_the_loss(views: list[Tensor]) -> None:
    both = VariantLoss("invariance-only", LAMBD)(*views) + VariantLoss("redundancy-only", LAMBD)(*views)
    torch.testing.assert_close(both, BarlowTwinsLoss(LAMBD)(*views))


def test_unit_rows_have_unit_scale_features_and_keep_a_zero_sample(views: list[Tensor]) -> None:
    z = torch.cat([views[0], torch.zeros(1, 11, dtype=torch.float64)])
    torch.testing.assert_close(unit_rows(z).square().mean(1), torch.tensor([1.0] * 14 + [0.0], dtype=torch.float64))


def test_released_mixed_weights_convert_as_documented(views: list[Tensor]) -> None:
    """The small-data script: unit length, unbiased deviation over N, C^MB_gt = a Za'Zb + (1 - a) Zb[p]'Zb, no 1/2."""
    n, a, p = 14, 0.3, torch.arange(14).roll(2)
    z = [*views, (0.5 * views[0] + 0.4 * views[1].exp())]
    unit = [x / x.norm(dim=1, keepdim=True) for x in z]
    x_a, x_b, x_m = ((x - x.mean(0)) / x.std(0) for x in unit)
    gt_a, gt_b = (a * x_a.T @ x + (1 - a) * x_b[p].T @ x for x in (x_a, x_b))
    released = LAMBD * 4 * (((x_m.T @ x_a - gt_a) / n).square().sum() + ((x_m.T @ x_b - gt_b) / n).square().sum())
    ours = MixedBarlowTwinsLoss(LAMBD, 4.0).terms(unit_rows(z[0]), unit_rows(z[1]), unit_rows(z[2]), a, p)["mix"]
    torch.testing.assert_close(ours * ((n - 1) / n) ** 2, released, rtol=1e-4, atol=0)


def test_unknown_variants_and_temperatures_are_refused() -> None:
    with pytest.raises(InputError, match=r"Unknown variant 'no-nrm'\. Did you mean 'no-norm'\?"):
        VariantLoss("no-nrm")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="temperature must be positive; received 0"):
        VariantLoss("cross-entropy", temperature=0)


@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_the_mean_view_is_held_to_every_view_and_alone_to_be_uncorrelated(form: Form) -> None:
    g = torch.Generator().manual_seed(3)
    shared = torch.randn(12, 15, dtype=torch.float64, generator=g)
    views = [(shared + torch.randn(12, 15, dtype=torch.float64, generator=g)).requires_grad_() for _ in range(4)]
    mean = torch.stack([standardized(z) for z in views]).mean(0)
    agreement = torch.stack([on(correlation_of(standardized(z), mean)) for z in views]).mean()
    literal = agreement + LAMBD * off(correlation_of(mean, mean)).square().sum()
    loss = VariantLoss("mean-view", LAMBD, form=form)(*views)
    torch.testing.assert_close(loss, literal, rtol=1e-10, atol=0)
    gradients = zip(torch.autograd.grad(loss, views), torch.autograd.grad(literal, views), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_of_many_views_a_variant_is_the_mean_over_pairs() -> None:
    g = torch.Generator().manual_seed(4)
    a, b, c = (torch.randn(10, 6, dtype=torch.float64, generator=g) for _ in range(3))
    loss = VariantLoss("no-norm", LAMBD)
    torch.testing.assert_close(loss(a, b, c), (loss(a, b) + loss(a, c) + loss(b, c)) / 3)
