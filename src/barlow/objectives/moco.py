"""MoCo: momentum contrast (He et al., 2019, arXiv 1911.05722), with version 2's settings (arXiv 2003.04297)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from barlow.objectives.barlow_twins import check_positive
from barlow.objectives.correlation import exact_matmul, to_compute_dtype
from barlow.objectives.ranks import share_batch


class MoCoLoss(nn.Module):
    """InfoNCE: each query is to tell the key of its other view from the keys of a queue (eq. 1), both views in turn.

    Queries are the trained network's embeddings, keys the momentum encoder's; similarities are cosines over the
    temperature. The paper takes queries of one view; here the loss is the mean over both. A sample's loss asks for no
    other sample of its batch, so ranks share the mean alone; the queue must be the same on all of them.

    Args:
        temperature: .2 is version 2's, .07 version 1's.
        group: the process group that shares the batch; None is the default group.

    Raises:
        InputError: for a temperature that is not positive.
    """

    def __init__(self, temperature: float = 0.2, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.temperature = check_positive("temperature", temperature)
        self.group = group

    def forward(self, q_a: Tensor, q_b: Tensor, k_a: Tensor, k_b: Tensor, queue: Tensor) -> Tensor:
        """The loss of queries and keys [n, D] against a queue of earlier keys [K, D] of unit length."""
        return self.terms(q_a, q_b, k_a, k_b, queue)["loss"]

    def terms(self, q_a: Tensor, q_b: Tensor, k_a: Tensor, k_b: Tensor, queue: Tensor) -> dict[str, Tensor]:
        """`loss`. No gradient reaches keys and queue. Raises InputError as `BarlowTwinsLoss.terms` does."""
        ranks = share_batch((q_a, q_b, k_a, k_b), self.group)
        with exact_matmul(q_a.device):
            q_a, q_b, k_a, k_b = (normalize(x, dim=1) for x in to_compute_dtype((q_a, q_b, k_a, k_b)))
            negatives = queue.detach().to(q_a.dtype)
            return {"loss": ranks.mean(self._nce(q_a, k_b, negatives) + self._nce(q_b, k_a, negatives)) / 2}

    def _nce(self, queries: Tensor, keys: Tensor, negatives: Tensor) -> Tensor:
        positive = (queries * keys.detach()).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, queries @ negatives.mT], dim=1) / self.temperature  # [n, 1 + K]
        first = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
        return cross_entropy(logits, first, reduction="none")

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"temperature={self.temperature}"
