"""VICReg: invariance, variance and covariance of two views."""

from torch import Tensor

from barlow.config import ObjectiveConfig, PretrainConfig
from barlow.methods.method import Method, Terms, settings_of
from barlow.models.network import TwinNetwork
from barlow.objectives import VICRegLoss
from barlow.plan import Plan


class VICReg(Method):
    """The VICReg loss of the embeddings of two views."""

    title = "VICReg"
    paper = "Bardes et al., VICReg: Variance-Invariance-Covariance Regularization, arXiv 2105.04906"

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        self.loss = VICRegLoss(form=config.objective.form)

    @classmethod
    def is_lean(cls, objective: ObjectiveConfig) -> bool:
        return True

    @property
    def settings(self) -> str:
        return settings_of(self.loss)

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        return views[:2], lambda z: self.loss.terms(*z)
