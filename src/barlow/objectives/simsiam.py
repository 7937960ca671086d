"""SimSiam: exploring simple Siamese representation learning (Chen and He, 2020, arXiv 2011.10566)."""

import torch.distributed as dist
from torch import Tensor, nn

from barlow.objectives.byol import negative_cosine
from barlow.objectives.correlation import to_compute_dtype
from barlow.objectives.ranks import share_batch


class SimSiamLoss(nn.Module):
    """Half of -cos(p_A, z_B) plus half of -cos(p_B, z_A), where no gradient reaches z (eq. 2 and 4).

    p are predictions of projections z, both of one network. Ranks share the mean, as in `BYOLLoss`.

    Args:
        group: the process group that shares the batch; None is the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.group = group

    def forward(self, p_a: Tensor, p_b: Tensor, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of predictions and projections [n, D], a float32 scalar (float64 for float64 embeddings)."""
        return self.terms(p_a, p_b, z_a, z_b)["loss"]

    def terms(self, p_a: Tensor, p_b: Tensor, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        """`loss`. Raises InputError as `BarlowTwinsLoss.terms` does."""
        ranks = share_batch((p_a, p_b, z_a, z_b), self.group)
        p_a, p_b, z_a, z_b = to_compute_dtype((p_a, p_b, z_a, z_b))
        return {"loss": ranks.mean(negative_cosine(p_a, z_b) + negative_cosine(p_b, z_a)) / 2}
