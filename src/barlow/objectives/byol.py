"""BYOL: bootstrap your own latent (Grill et al., 2020, arXiv 2006.07733)."""

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from barlow.objectives.correlation import to_compute_dtype
from barlow.objectives.ranks import share_batch


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """-cos of each row of `prediction` [n, D] with that of `target` [n, D], which gets no gradient: [n]."""
    return -cosine_similarity(prediction, target.detach(), dim=1)


class BYOLLoss(nn.Module):
    """Squared distance of unit vectors, 2 - 2 cos(p_A, t_B), plus the same with the views exchanged (eq. 2).

    p are the online network's predictions, t the target network's projections. Samples are independent, so ranks share
    the mean alone. Every rank returns the global loss, and the gradient that DistributedDataParallel averages is that
    of one process on the whole batch.

    Args:
        group: the process group that shares the batch; None is the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.group = group

    def forward(self, p_a: Tensor, p_b: Tensor, t_a: Tensor, t_b: Tensor) -> Tensor:
        """The loss of predictions and targets [n, D], a float32 scalar (float64 for float64 embeddings)."""
        return self.terms(p_a, p_b, t_a, t_b)["loss"]

    def terms(self, p_a: Tensor, p_b: Tensor, t_a: Tensor, t_b: Tensor) -> dict[str, Tensor]:
        """`loss`. Raises InputError as `BarlowTwinsLoss.terms` does."""
        ranks = share_batch((p_a, p_b, t_a, t_b), self.group)
        p_a, p_b, t_a, t_b = to_compute_dtype((p_a, p_b, t_a, t_b))
        return {"loss": 4 + 2 * ranks.mean(negative_cosine(p_a, t_b) + negative_cosine(p_b, t_a))}
