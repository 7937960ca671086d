"""Barlow Twins: self-supervised learning via redundancy reduction (Zbontar et al., 2021, arXiv 2103.03230)."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from barlow.errors import InputError
from barlow.objectives.correlation import (
    Correlations,
    Form,
    check_form,
    correlate,
    exact_matmul,
    standardize,
    to_compute_dtype,
)
from barlow.objectives.ranks import share_batch

LAMBD = 0.0051
"""The official weight of the redundancy term, chosen for D = 8192."""


class BarlowTwinsLoss(nn.Module):
    """L = sum_i (1 - C_ii)^2 + lambd * sum_{i != j} C_ij^2, with C the cross-correlation of two views (eq. 1 and 2).

    Of V > 2 views, L is the mean over all V (V - 1) / 2 pairs; in the Gram form it costs V Gram matrices.
    All views are standardised per feature over the global batch. With torch.distributed initialised every rank returns
    the global loss, and the gradient that DistributedDataParallel averages is that of one process on the whole batch.

    Args:
        lambd: weight of the redundancy term.
        form: "correlation" builds the D x D matrix, "gram" N x N ones; "auto" takes the cheaper. The value is the same.
        group: the process group that shares the batch; None is the default group.

    Raises:
        InputError: for a negative or infinite `lambd`, or an unknown `form`.
    """

    def __init__(self, lambd: float = LAMBD, form: Form = "auto", group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.lambd = check_weight("lambd", lambd)
        self.form = check_form(form)
        self.group = group

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of embeddings [n, D] of V >= 2 views, a float32 scalar (float64 for float64 embeddings)."""
        return self.terms(*views)["loss"]

    def terms(self, *views: Tensor) -> dict[str, Tensor]:
        """`loss` and what it is the sum of: `invariance` and `redundancy`, the latter already times lambd.

        Raises:
            InputError: for embeddings that are not two or more floating-point matrices of one shape on one device,
                fewer than two samples in all, or ranks that disagree; on every rank alike.
        """
        if len(views) < 2:
            raise InputError(f"Received {len(views)} view(s): the loss compares views and needs at least 2.")
        ranks = share_batch(views, self.group)
        with exact_matmul(views[0].device):
            standard = [standardize(z, ranks) for z in to_compute_dtype(views)]
            return named_terms(barlow_twins_terms(correlate(standard, ranks, self.form), self.lambd), standard[0].dtype)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"lambd={self.lambd}, form='{self.form}'"


def barlow_twins_terms(c: Correlations, lambd: float) -> dict[str, Tensor]:
    """The two contributions to the loss (eq. 1), means over the pairs of views, in the types they were computed in."""
    invariance = (1 - c.diagonals).square().sum(dim=1).mean()
    return {"invariance": invariance, "redundancy": lambd * c.off_diagonals.mean()}


def named_terms(contributions: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The contributions and, in front of them, their sum, all in `dtype`; only the results are rounded to it."""
    loss = torch.stack([term.to(_sum_dtype(contributions)) for term in contributions.values()]).sum()
    return {name: term.to(dtype) for name, term in {"loss": loss, **contributions}.items()}


def _sum_dtype(contributions: dict[str, Tensor]) -> torch.dtype:
    dtypes = {term.dtype for term in contributions.values()}
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_weight(name: str, value: float) -> float:
    """`value` itself, or an InputError when it is no finite number >= 0."""
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be a finite number, 0 or more; received {value}.")
    return value


def check_positive(name: str, value: float) -> float:
    """`value` itself, or an InputError when it is no finite number > 0."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be positive; received {value}.")
    return value
