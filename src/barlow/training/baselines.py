"""The methods that Barlow Twins is compared with, in the same loop. All take the first two views of a recipe."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from barlow.objectives import BYOLLoss, DINOLoss, MoCoLoss, NTXentLoss, SimSiamLoss, SwAVLoss, VICRegLoss, WMSELoss
from barlow.objectives.dino import moved_centre
from barlow.ranks import Ranks
from barlow.training.methods import Method, Terms
from barlow.training.network import TwinNetwork
from barlow.training.schedules import cosine_ema_decay
from barlow.training.targets import Centre, Queue, Target


class OfPairs(Method):
    """A loss of the two views' outputs: SimCLR, VICReg, W-MSE (which has a head)."""

    def __init__(self, settings: str, loss: NTXentLoss | VICRegLoss | WMSELoss) -> None:
        super().__init__(settings)
        self.loss = loss

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        return views[:2], lambda outputs: self.loss.terms(*outputs[-2:])


class SimSiam(Method):
    """Each view's projection is predicted from the other's; the head is the predictor."""

    def __init__(self, settings: str, loss: SimSiamLoss) -> None:
        super().__init__(settings)
        self.loss = loss

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        return views[:2], self._terms

    def _terms(self, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
        z_a, z_b, p_a, p_b = outputs
        return self.loss.terms(p_a, p_b, z_a, z_b)


class BYOL(Method):
    """The projections of a slow network are predicted; its decay rises to 1 by a half cosine."""

    def __init__(self, settings: str, loss: BYOLLoss, target: Target, *, decay: float, total_steps: int) -> None:
        super().__init__(settings, {"target": target})
        self.loss, self.target, self.decay, self.total_steps = loss, target, decay, total_steps

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        t_a, t_b = self.target(views[:2])
        return views[:2], lambda outputs: self.loss.terms(outputs[2], outputs[3], t_a, t_b)

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        decay = cosine_ema_decay(step, total=self.total_steps, base=self.decay)
        self.target.follow(network, decay, skip)


class MoCo(Method):
    """Keys of a slow network, and a queue of the keys of earlier batches; its decay is constant."""

    def __init__(self, settings: str, loss: MoCoLoss, target: Target, queue: Queue, ranks: Ranks, decay: float) -> None:
        super().__init__(settings, {"target": target, "queue": queue})
        self.loss, self.target, self.queue, self.ranks, self.decay = loss, target, queue, ranks, decay
        self._keys: list[Tensor] = []  # of the step under way

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        self._keys = keys = self.target(views[:2])
        return views[:2], lambda z: self.loss.terms(z[0], z[1], keys[0], keys[1], self.queue.rows)

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        self.queue.push(torch.cat([self.ranks.gather(keys) for keys in self._keys]), step, skip)
        self.target.follow(network, self.decay, skip)


class SwAV(Method):
    """Swapped prediction of assignments to prototypes, which are the head. Small batches remember earlier embeddings,
    one queue per view, and let them take part in the assignment once the queues are full."""

    def __init__(
        self, settings: str, loss: SwAVLoss, prototypes: nn.Module, queues: Sequence[Queue], ranks: Ranks
    ) -> None:
        super().__init__(settings, {"queues": nn.ModuleList(queues)})
        self.loss, self.prototypes, self.queues, self.ranks = loss, prototypes, queues, ranks
        self._embeddings: list[Tensor] = []  # of the step under way

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        past = self._past() if self.queues and step * self.ranks.total >= len(self.queues[0].rows) else None
        return views[:2], lambda outputs: self._terms(outputs, past)

    def _past(self) -> tuple[Tensor, Tensor]:
        """Scores of the queues with the prototypes as they are now; called without gradients."""
        first, second = (self.prototypes(queue.rows) for queue in self.queues)
        return first, second

    def _terms(self, outputs: Sequence[Tensor], past: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
        z_a, z_b, s_a, s_b = outputs
        self._embeddings = [z_a.detach(), z_b.detach()]
        return self.loss.terms(s_a, s_b, past)

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        for queue, embeddings in zip(self.queues, self._embeddings, strict=False):
            queue.push(self.ranks.gather(embeddings), step, skip)


class DINO(Method):
    """The scores of a slow teacher, prototypes and all, are predicted; its decay rises to 1 by a half cosine."""

    def __init__(
        self, settings: str, loss: DINOLoss, teacher: Target, centre: Centre, *, decay: float, total_steps: int
    ) -> None:
        super().__init__(settings, {"teacher": teacher, "centre": centre})
        self.loss, self.teacher, self.centre, self.decay, self.total_steps = loss, teacher, centre, decay, total_steps
        self._scores: list[Tensor] = []  # of the step under way

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        self._scores = t_a, t_b = self.teacher(views[:2])[2:]
        return views[:2], lambda outputs: self.loss.terms(outputs[2], outputs[3], t_a, t_b, self.centre.value)

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        t_a, t_b = self._scores
        self.centre.move(moved_centre(self.centre.value, t_a, t_b), skip)
        self.teacher.follow(network, cosine_ema_decay(step, total=self.total_steps, base=self.decay), skip)
