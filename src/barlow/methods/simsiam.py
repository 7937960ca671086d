"""SimSiam: each view's projection is predicted from the other's."""

from torch import Tensor, nn

from barlow.config import PretrainConfig
from barlow.methods.method import Method, Terms
from barlow.models import build_predictor
from barlow.models.network import TwinNetwork
from barlow.objectives import SimSiamLoss
from barlow.plan import Plan


class SimSiam(Method):
    """The head is the predictor; no gradient goes through the projections that it predicts."""

    title = "SimSiam"
    paper = "Chen and He, Exploring Simple Siamese Representation Learning, arXiv 2011.10566"
    adaptive_lr = 0.002  # no slow network holds its targets: at the others' rate it comes close to constant embeddings
    standardises_output = True
    settings = "no settings of its own"

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        self.loss = SimSiamLoss()

    @classmethod
    def head(cls, config: PretrainConfig, plan: Plan) -> nn.Module | None:
        width = config.model.projector[-1]
        return build_predictor(width, max(2, width // 4))

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        return views[:2], lambda outputs: self.loss.terms(outputs[2], outputs[3], outputs[0], outputs[1])
