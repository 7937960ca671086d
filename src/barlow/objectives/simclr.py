"""SimCLR: a simple framework for contrastive learning (Chen et al., 2020, arXiv 2002.05709)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from barlow.objectives.barlow_twins import check_positive
from barlow.objectives.correlation import exact_matmul, to_compute_dtype
from barlow.objectives.ranks import share_batch


class NTXentLoss(nn.Module):
    """Normalised-temperature cross-entropy: each of 2N embeddings is to find its partner among the others (eq. 1).

    Similarities are cosines over the temperature; the loss is the mean over both views of all samples. With
    torch.distributed initialised the negatives come from all ranks, every rank returns the global loss, and the
    gradient that DistributedDataParallel averages is that of one process on the whole batch.

    Args:
        temperature: .5 is the paper's for small images, .1 for ImageNet.
        group: the process group that shares the batch; None is the default group.

    Raises:
        InputError: for a temperature that is not positive.
    """

    def __init__(self, temperature: float = 0.5, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.temperature = check_positive("temperature", temperature)
        self.group = group

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of embeddings [n, D] of two views, a float32 scalar (float64 for float64 embeddings)."""
        return self.terms(z_a, z_b)["loss"]

    def terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        """`loss`. Raises InputError as `BarlowTwinsLoss.terms` does."""
        ranks = share_batch((z_a, z_b), self.group)
        with exact_matmul(z_a.device):
            u_a, u_b = (normalize(z, dim=1) for z in to_compute_dtype((z_a, z_b)))
            everyone = torch.cat([ranks.gather(u_a), ranks.gather(u_b)])
            logits = torch.cat([u_a, u_b]) @ everyone.mT / self.temperature  # [2n, 2N]
            first = ranks.first + torch.arange(len(u_a), device=u_a.device)
            second = first + ranks.total
            itself, partner = torch.cat([first, second]), torch.cat([second, first])
            logits = logits.scatter(1, itself.unsqueeze(1), -torch.inf)
            return {"loss": ranks.mean(cross_entropy(logits, partner, reduction="none")) / 2}

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"temperature={self.temperature}"
