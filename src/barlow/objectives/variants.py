"""Relatives of the Barlow Twins loss that the papers name, for studies; the papers report none that trains better.

Ablations: Zbontar et al. (2021, arXiv 2103.03230), section 4. Target -1: Tsai et al. (2021, arXiv 2104.13712).
Unit length before standardising: the released code of Bandara et al. (2023, arXiv 2312.02151).
Mean of the views: after Agrawal et al. (2023, arXiv 2312.10725).
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from barlow.errors import InputError, suggest
from barlow.objectives.barlow_twins import (
    LAMBD,
    barlow_twins_terms,
    check_positive,
    check_weight,
    named_terms,
)
from barlow.objectives.correlation import (
    Form,
    centre,
    check_form,
    correlate,
    exact_matmul,
    inner_wide,
    standardize,
    to_compute_dtype,
)
from barlow.objectives.ranks import share_batch
from barlow.ranks import Ranks

Variant = Literal[
    "auto-correlation",
    "feature-norm",
    "no-norm",
    "invariance-only",
    "redundancy-only",
    "cross-entropy",
    "target-minus-one",
    "unit-then-batch-norm",
    "mean-view",
]


class VariantLoss(nn.Module):
    """One named variant of the Barlow Twins loss; same calls, same ranks rule.

    Args:
        variant: what differs from `BarlowTwinsLoss`:
            "auto-correlation": the off-diagonal entries are those of view A with itself;
            "feature-norm": standardised, then each sample scaled to length sqrt(D) (the paper's unit sphere, up to a
            scale that lets C reach the identity), and C the covariance of that;
            "no-norm": C is the cross-covariance, features centred and not scaled;
            "invariance-only", "redundancy-only": one of the two terms;
            "cross-entropy": -log sum_i exp(C_ii / t) + lambd * log sum_{i != j} exp(max(C_ij, 0) / t); builds D x D;
            "target-minus-one": lambd * sum_{i != j} (1 + C_ij)^2, the HSIC form;
            "unit-then-batch-norm": each sample to unit length first, then standardised;
            "mean-view": each view is correlated with the mean M of all views (invariance: the mean over views), and
            the redundancy is that of M with itself. Costs one square matrix for any number of views.
        lambd: weight of the redundancy term.
        temperature: t of "cross-entropy"; the others ignore it.
        form: as in `BarlowTwinsLoss`; "cross-entropy" has only the correlation form.
        group: the process group that shares the batch; None is the default group.

    Raises:
        InputError: for an unknown variant or form, a negative weight, or a temperature that is not positive.
    """

    def __init__(
        self,
        variant: Variant,
        lambd: float = LAMBD,
        *,
        temperature: float = 1.0,
        form: Form = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if variant not in get_args(Variant):
            raise InputError(f"Unknown variant '{variant}'. {suggest(variant, get_args(Variant))}")
        self.variant: Variant = variant
        self.lambd = check_weight("lambd", lambd)
        self.temperature = check_positive("temperature", temperature)
        self.form = check_form(form)
        self.group = group

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of embeddings [n, D] of V >= 2 views."""
        return self.terms(*views)["loss"]

    def terms(self, *views: Tensor) -> dict[str, Tensor]:
        """`loss` and what it is the sum of: `invariance` and `redundancy`, where the variant has them.

        Of more than two views every variant but "mean-view" takes the mean over all pairs.
        """
        if len(views) < 2:
            raise InputError(f"Received {len(views)} view(s): the loss compares views and needs at least 2.")
        ranks = share_batch(views, self.group)
        with exact_matmul(views[0].device):
            normalize = _NORMALIZERS.get(self.variant, standardize)
            standard = [normalize(z, ranks) for z in to_compute_dtype(views)]
            if self.variant == "mean-view":
                return named_terms(_mean_view(standard, ranks, self.lambd, self.form), standard[0].dtype)
            pairs = [self._contributions(x, y, ranks) for x, y in itertools.combinations(standard, 2)]
            means = {name: torch.stack([terms[name] for terms in pairs]).mean() for name in pairs[0]}
            return named_terms(means, standard[0].dtype)

    def _contributions(self, x_a: Tensor, x_b: Tensor, ranks: Ranks) -> dict[str, Tensor]:
        if self.variant == "cross-entropy":
            return _cross_entropy(x_a, x_b, ranks, self.lambd, self.temperature)
        c = correlate((x_a, x_b), ranks, self.form)
        if self.variant == "auto-correlation":
            c = c._replace(off_diagonals=correlate((x_a, x_a), ranks, self.form).off_diagonals)
        if self.variant == "target-minus-one":
            dim, off_sum = x_a.shape[1], _entry_sum(x_a, x_b, ranks) - c.diagonals.sum()
            c = c._replace(off_diagonals=c.off_diagonals + 2 * off_sum + dim * (dim - 1))
        terms = barlow_twins_terms(c, self.lambd)
        dropped = {"invariance-only": "redundancy", "redundancy-only": "invariance"}.get(self.variant)
        return {name: term for name, term in terms.items() if name != dropped}


def unit_rows(z: Tensor) -> Tensor:
    """Each sample of `z` [n, D] scaled to length sqrt(D), which leaves its features at unit scale; zero rows stay zero.

    Before a loss that standardises, this is the released Mixed Barlow Twins code's scaling to unit length: only the
    constant added to the variance could tell the two lengths apart, and at unit scale it is negligible.
    """
    return torch.nn.functional.normalize(z, dim=1) * math.sqrt(z.shape[1])


_NORMALIZERS: dict[str, Callable[[Tensor, Ranks], Tensor]] = {
    "feature-norm": lambda z, ranks: unit_rows(standardize(z, ranks)),
    "no-norm": centre,
    "unit-then-batch-norm": lambda z, ranks: standardize(unit_rows(z), ranks),
}


def _mean_view(views: list[Tensor], ranks: Ranks, lambd: float, form: Form) -> dict[str, Tensor]:
    mean = torch.stack(views).mean(dim=0)
    diagonals = torch.stack([ranks.sum((x * mean).sum(dim=0)) / ranks.total for x in views])
    redundancy = correlate((mean, mean), ranks, form).off_diagonals.sum()
    return {"invariance": (1 - diagonals).square().sum(dim=1).mean(), "redundancy": lambd * redundancy}


def _entry_sum(x_a: Tensor, x_b: Tensor, ranks: Ranks) -> Tensor:
    """sum_ij C_ij, from the sums of each sample's features."""
    return ranks.sum(inner_wide(x_a.sum(dim=1, keepdim=True), x_b.sum(dim=1, keepdim=True))) / ranks.total


def _cross_entropy(x_a: Tensor, x_b: Tensor, ranks: Ranks, lambd: float, temperature: float) -> dict[str, Tensor]:
    c = ranks.sum(x_a.mT @ x_b) / ranks.total / temperature
    diagonal = c.diagonal()
    off = c.clamp(min=0).diagonal_scatter(torch.full_like(diagonal, -torch.inf))
    return {"invariance": -diagonal.logsumexp(dim=0), "redundancy": lambd * off.flatten().logsumexp(dim=0)}
