"""SwAV: swapped prediction of assignments to prototypes."""

from collections.abc import Sequence

from torch import Tensor, nn

from barlow.config import PretrainConfig
from barlow.methods.memory import Queue, queue_length
from barlow.methods.method import Method, Terms, count_for, settings_of
from barlow.models import Prototypes
from barlow.models.network import TwinNetwork
from barlow.objectives import SwAVLoss
from barlow.plan import Plan

MOST_EMBEDDINGS = 3840  # in a queue, the paper's


class SwAV(Method):
    """The head is the prototypes.

    Where the batch has fewer samples than there are prototypes, one queue per view keeps earlier embeddings, which take
    part in the assignment once the queues are full.
    """

    title = "SwAV"
    paper = (
        "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, arXiv 2006.09882"
    )
    options = frozenset({"temperature"})

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        temperature = config.objective.temperature
        self.loss = SwAVLoss() if temperature is None else SwAVLoss(temperature=temperature)
        assert isinstance(network.head, Prototypes)  # `head` made it
        self.prototypes = network.head
        batch, (count, width) = config.training.batch_size, self.prototypes.weight.shape
        length = queue_length(MOST_EMBEDDINGS, plan.n_train, batch) if batch < count else 0
        seeds = [config.training.seed + view for view in range(2)] if length else []
        self.queues = [Queue(length, width, seed=seed).to(self.prototypes.weight) for seed in seeds]
        self.memory["queues"] = nn.ModuleList(self.queues)
        self._embeddings: list[Tensor] = []  # of the step under way

    @classmethod
    def head(cls, config: PretrainConfig, plan: Plan) -> nn.Module | None:
        # 100 prototypes on small data, the paper's 3,000 on ImageNet's 1.28 million images
        return Prototypes(config.model.projector[-1], count_for(plan.n_train, least=100, most=3000, samples_each=400))

    @property
    def settings(self) -> str:
        length = len(self.queues[0].rows) if self.queues else 0
        return f"{settings_of(self.loss)}, {len(self.prototypes.weight)} prototypes, queue of {length}"

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        past = None
        if self.queues and step * self.ranks.total >= len(self.queues[0].rows):
            first, second = (self.prototypes(queue.rows) for queue in self.queues)
            past = first, second
        return views[:2], lambda outputs: self._terms(outputs, past)

    def _terms(self, outputs: Sequence[Tensor], past: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
        z_a, z_b, s_a, s_b = outputs
        self._embeddings = [z_a.detach(), z_b.detach()]
        return self.loss.terms(s_a, s_b, past)

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        for queue, embeddings in zip(self.queues, self._embeddings, strict=False):
            queue.push(self.ranks.gather(embeddings), step, skip)
