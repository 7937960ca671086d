"""W-MSE: whitening for self-supervised representation learning (Ermolov et al., 2020, arXiv 2007.06346)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from barlow.errors import InputError
from barlow.objectives.barlow_twins import check_weight
from barlow.objectives.correlation import exact_matmul, to_compute_dtype
from barlow.objectives.ranks import share_batch

SAMPLES_PER_FEATURE = 2
"""Size of a sub-batch, in widths of the embedding."""


class WMSELoss(nn.Module):
    """Squared distance of two views whose embeddings are whitened in sub-batches, then scaled to unit length.

    Each sub-batch of each view is centred and multiplied by the inverse of the Cholesky factor of its covariance. The
    global batch, the rows of all ranks in order, is cut into as many sub-batches of at least 2 D samples as it
    holds; since the rows come shuffled, that is the paper's random partition. Every rank returns the global loss, and
    the gradient that DistributedDataParallel averages is that of one process on the whole batch.

    Args:
        eps: added to the diagonal of each covariance, in units of its mean; 0 is the paper's.
        group: the process group that shares the batch; None is the default group.

    Raises:
        InputError: for a negative or infinite `eps`.
    """

    def __init__(self, eps: float = 1e-4, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.eps = check_weight("eps", eps)
        self.group = group

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of embeddings [n, D] of two views, a float32 scalar (float64 for float64 embeddings)."""
        return self.terms(z_a, z_b)["loss"]

    def terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        """`loss`. Raises InputError as `BarlowTwinsLoss.terms` does, and for a global batch under 2 D."""
        ranks = share_batch((z_a, z_b), self.group)
        size = SAMPLES_PER_FEATURE * z_a.shape[1]
        if ranks.total < size:
            raise InputError(f"Whitening {z_a.shape[1]} features needs {size} samples or more; received {ranks.total}.")
        with exact_matmul(z_a.device):
            wholes = [ranks.gather(z) for z in to_compute_dtype((z_a, z_b))]
            parts = [whole.tensor_split(ranks.total // size) for whole in wholes]
            u_a, u_b = (torch.cat([normalize(whiten(part, self.eps), dim=1) for part in view]) for view in parts)
            return {"loss": (u_a - u_b).square().sum(dim=1).mean()}

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"eps={self.eps}"


def whiten(z: Tensor, eps: float) -> Tensor:
    """`z` [n, D], n > D, centred and made white: W (z - mean) with W the inverse Cholesky factor of the covariance."""
    centred = z - z.mean(dim=0)
    covariance = centred.mT @ centred / (len(z) - 1)
    ridge = eps * covariance.diagonal().mean() * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    # Without checks: an error would wait for the device, and a factor that is not finite is found in the loss.
    factor, _ = torch.linalg.cholesky_ex(covariance + ridge)
    white: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
    return white
