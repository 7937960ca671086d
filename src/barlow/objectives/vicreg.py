"""VICReg: variance-invariance-covariance regularization (Bardes et al., 2021, arXiv 2105.04906)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from barlow.objectives.barlow_twins import check_weight, named_terms
from barlow.objectives.correlation import Form, centre, check_form, correlate, exact_matmul, to_compute_dtype
from barlow.objectives.ranks import share_batch
from barlow.ranks import Ranks

EPS = 1e-4
"""Added to the variance inside the square root (algorithm 1)."""


class VICRegLoss(nn.Module):
    """Weighted sum of the views' distance, a hinge on each feature's deviation, and squared covariances (algorithm 1).

    invariance: mean over samples and features of (z_A - z_B)^2; variance: mean over features of
    max(0, 1 - sqrt(var + 1e-4)), summed over the views; covariance: sum of the squared off-diagonal entries of the
    covariance matrix over D, summed over the views. Variances and covariances are unbiased, over the global batch.
    Every rank returns the global loss, and the gradient that DistributedDataParallel averages is that of one process on
    the whole batch.

    Args:
        invariance, variance, covariance: weights of the three terms.
        form: of the covariance term, as in `BarlowTwinsLoss`.
        group: the process group that shares the batch; None is the default group.

    Raises:
        InputError: for a negative or infinite weight, or an unknown `form`.
    """

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        *,
        form: Form = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.invariance = check_weight("invariance", invariance)
        self.variance = check_weight("variance", variance)
        self.covariance = check_weight("covariance", covariance)
        self.form = check_form(form)
        self.group = group

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of embeddings [n, D] of two views, a float32 scalar (float64 for float64 embeddings)."""
        return self.terms(z_a, z_b)["loss"]

    def terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        """`loss` and what it is the sum of: `invariance`, `variance` and `covariance`, weights included.

        Raises InputError as `BarlowTwinsLoss.terms` does.
        """
        ranks = share_batch((z_a, z_b), self.group)
        with exact_matmul(z_a.device):
            z_a, z_b = to_compute_dtype((z_a, z_b))
            spreads = [_spread(z, ranks, self.form) for z in (z_a, z_b)]
            terms = {
                "invariance": self.invariance * ranks.mean((z_a - z_b).square().mean(dim=1)),
                "variance": self.variance * torch.stack([hinge for hinge, _ in spreads]).sum(),
                "covariance": self.covariance * torch.stack([entries for _, entries in spreads]).sum(),
            }
            return named_terms(terms, z_a.dtype)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        weights = f"invariance={self.invariance}, variance={self.variance}, covariance={self.covariance}"
        return f"{weights}, form='{self.form}'"


def _spread(z: Tensor, ranks: Ranks, form: Form) -> tuple[Tensor, Tensor]:
    """The variance and the covariance term of one view."""
    centred, unbiased = centre(z, ranks), ranks.total / (ranks.total - 1)
    c = correlate((centred, centred), ranks, form)
    deviation = (c.diagonals[0] * unbiased + EPS).sqrt()
    return (1 - deviation).relu().mean(), c.off_diagonals[0] * unbiased**2 / z.shape[1]
