"""DINO: self-distillation with no labels (Caron et al., 2021, arXiv 2104.14294)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from barlow.objectives.barlow_twins import check_positive
from barlow.objectives.correlation import to_compute_dtype
from barlow.objectives.ranks import share_batch


class DINOLoss(nn.Module):
    """Cross-entropy of the student's distribution with the teacher's of the other view, both ways, averaged (eq. 3).

    The teacher's scores are centred, so that no output wins for all samples, and sharpened by a lower temperature.
    Samples are independent, so ranks share the mean alone; the centre must be the same on all of them.

    Args:
        temperature: of the student.
        teacher_temperature: of the teacher.
        group: the process group that shares the batch; None is the default group.

    Raises:
        InputError: for a temperature that is not positive.
    """

    def __init__(
        self, temperature: float = 0.1, teacher_temperature: float = 0.04, group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.temperature = check_positive("temperature", temperature)
        self.teacher_temperature = check_positive("teacher_temperature", teacher_temperature)
        self.group = group

    def forward(self, s_a: Tensor, s_b: Tensor, t_a: Tensor, t_b: Tensor, centre: Tensor) -> Tensor:
        """The loss of the student's and the teacher's scores [n, K] of two views, with the teacher's centre [K]."""
        return self.terms(s_a, s_b, t_a, t_b, centre)["loss"]

    def terms(self, s_a: Tensor, s_b: Tensor, t_a: Tensor, t_b: Tensor, centre: Tensor) -> dict[str, Tensor]:
        """`loss`. No gradient reaches teacher and centre. Raises InputError as `BarlowTwinsLoss.terms` does."""
        ranks = share_batch((s_a, s_b, t_a, t_b), self.group)
        s_a, s_b, t_a, t_b = to_compute_dtype((s_a, s_b, t_a, t_b))
        return {"loss": ranks.mean(self._miss(s_a, t_b, centre) + self._miss(s_b, t_a, centre)) / 2}

    def _miss(self, student: Tensor, teacher: Tensor, centre: Tensor) -> Tensor:
        wanted = ((teacher.detach() - centre.detach()) / self.teacher_temperature).softmax(dim=1)
        return -(wanted * (student / self.temperature).log_softmax(dim=1)).sum(dim=1)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"temperature={self.temperature}, teacher_temperature={self.teacher_temperature}"


def moved_centre(centre: Tensor, t_a: Tensor, t_b: Tensor, momentum: float = 0.9) -> Tensor:
    """The centre [K] after a step (eq. 4): its average with the teacher's mean scores over the global batch."""
    ranks = share_batch((t_a, t_b))
    scores = (t_a.to(centre.dtype) + t_b.to(centre.dtype)) / 2
    return torch.lerp(ranks.sum(scores.sum(dim=0)) / ranks.total, centre, momentum)
