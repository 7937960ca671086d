"""SwAV: contrasting cluster assignments (Caron et al., 2020, arXiv 2006.09882)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from barlow.objectives.barlow_twins import check_positive
from barlow.objectives.correlation import to_compute_dtype
from barlow.objectives.ranks import share_batch
from barlow.ranks import Ranks

EPSILON = 0.05
"""Entropy of the assignments: smaller is harder."""
ITERATIONS = 3
"""Of Sinkhorn's algorithm."""


class SwAVLoss(nn.Module):
    """The prototypes that one view is assigned to are predicted from the other view, both ways, averaged (eq. 1 and 2).

    The assignments (codes) share the samples of the global batch equally among the prototypes (eq. 3); the sums of
    Sinkhorn's algorithm go over all ranks. Every rank returns the global loss, and the gradient that
    DistributedDataParallel averages is that of one process on the whole batch.

    Args:
        temperature: of the predictions.
        epsilon: weight of the codes' entropy.
        iterations: of Sinkhorn's algorithm.
        group: the process group that shares the batch; None is the default group.

    Raises:
        InputError: for a temperature or epsilon that is not positive.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        epsilon: float = EPSILON,
        iterations: int = ITERATIONS,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.temperature = check_positive("temperature", temperature)
        self.epsilon = check_positive("epsilon", epsilon)
        self.iterations = iterations
        self.group = group

    def forward(self, s_a: Tensor, s_b: Tensor, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The loss of two views' scores; see `terms`."""
        return self.terms(s_a, s_b, past)["loss"]

    def terms(self, s_a: Tensor, s_b: Tensor, past: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
        """`loss`.

        Args:
            s_a, s_b: cosines of embeddings and prototypes [n, K].
            past: the same [M, K] of earlier embeddings of each view, the same on all ranks: they take part in the
                assignment, so that a batch smaller than the number of prototypes can be spread over them.

        Raises InputError as `BarlowTwinsLoss.terms` does.
        """
        ranks = share_batch((s_a, s_b), self.group)
        s_a, s_b = to_compute_dtype((s_a, s_b))
        past_a, past_b = past or (s_a[:0], s_b[:0])
        codes_a, codes_b = self._codes(s_a, past_a, ranks), self._codes(s_b, past_b, ranks)
        return {"loss": ranks.mean(self._miss(s_a, codes_b) + self._miss(s_b, codes_a)) / 2}

    @torch.no_grad()
    def _codes(self, scores: Tensor, past: Tensor, ranks: Ranks) -> Tensor:
        """Codes of the batch; of what is past every rank brings an equal share into the sums."""
        share = past.to(scores.dtype).tensor_split(ranks.world)[ranks.rank]
        rows = torch.cat([scores, share])
        return sinkhorn(rows, ranks.total + len(past), ranks, self.epsilon, self.iterations)[: len(scores)]

    def _miss(self, scores: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy of each sample's code with its prediction, [n]."""
        return -(codes * (scores / self.temperature).log_softmax(dim=1)).sum(dim=1)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"temperature={self.temperature}, epsilon={self.epsilon}, iterations={self.iterations}"


def sinkhorn(scores: Tensor, total: int, ranks: Ranks, epsilon: float, iterations: int) -> Tensor:
    """Codes [n, K] of scores [n, K] in [-1, 1]: rows sum to 1, columns to total / K over the rows of all ranks.

    `total` is the number of rows on all ranks. The rows' sums are exact, the columns' nearly so after a few iterations
    (Cuturi, 2013, arXiv 1306.0895).
    """
    codes = (scores / epsilon).exp()
    codes = codes / ranks.sum(codes.sum())
    for _ in range(iterations):
        codes = codes / ranks.sum(codes.sum(dim=0)) / codes.shape[1]
        codes = codes / codes.sum(dim=1, keepdim=True) / total
    return codes * total
