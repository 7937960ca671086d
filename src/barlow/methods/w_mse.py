"""W-MSE: distance of two views whose embeddings are whitened."""

from torch import Tensor, nn

from barlow.config import PretrainConfig
from barlow.methods.method import Method, Terms, settings_of
from barlow.models.network import TwinNetwork
from barlow.objectives import WMSELoss
from barlow.objectives.w_mse import SAMPLES_PER_FEATURE
from barlow.plan import Plan

MOST_FEATURES = 64  # the paper's for small images


class WMSE(Method):
    """A linear head reduces the embeddings to as many features as the batch can whiten."""

    title = "W-MSE"
    paper = "Ermolov et al., Whitening for Self-Supervised Representation Learning, arXiv 2007.06346"

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        self.loss = WMSELoss()

    @classmethod
    def head(cls, config: PretrainConfig, plan: Plan) -> nn.Module | None:
        width = config.model.projector[-1]
        return nn.Linear(width, min(MOST_FEATURES, width, config.training.batch_size // SAMPLES_PER_FEATURE))

    @property
    def settings(self) -> str:
        return settings_of(self.loss)

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        return views[:2], lambda outputs: self.loss.terms(*outputs[-2:])
