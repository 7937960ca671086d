"""SimCLR: contrast of two views over the global batch."""

from torch import Tensor

from barlow.config import ObjectiveConfig, PretrainConfig
from barlow.methods.method import Method, Terms, settings_of
from barlow.models.network import TwinNetwork
from barlow.objectives import NTXentLoss
from barlow.plan import Plan


class SimCLR(Method):
    """NT-Xent on the embeddings of two views."""

    title = "SimCLR"
    paper = "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, arXiv 2002.05709"
    options = frozenset({"temperature"})

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        temperature = config.objective.temperature
        self.loss = NTXentLoss() if temperature is None else NTXentLoss(temperature)

    @classmethod
    def is_lean(cls, objective: ObjectiveConfig) -> bool:
        return True

    @property
    def settings(self) -> str:
        return settings_of(self.loss)

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        return views[:2], lambda z: self.loss.terms(*z)

    def compared_samples(self) -> int:
        return 2 * self.ranks.total
