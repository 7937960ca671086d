"""BYOL: the projections of a slow network are predicted."""

from torch import Tensor, nn

from barlow.config import PretrainConfig
from barlow.methods.memory import projecting_target
from barlow.methods.method import Method, Terms
from barlow.models import build_predictor
from barlow.models.network import TwinNetwork
from barlow.objectives import BYOLLoss
from barlow.plan import Plan
from barlow.schedules import cosine_decay


class BYOL(Method):
    """The head is the predictor; the decay of the slow network rises to 1 by a half cosine."""

    title = "BYOL"
    paper = "Grill et al., Bootstrap Your Own Latent, arXiv 2006.07733"
    options = frozenset({"target_ema"})

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        self.loss = BYOLLoss()
        self.memory["target"] = self.target = projecting_target(network, plan)

    @classmethod
    def head(cls, config: PretrainConfig, plan: Plan) -> nn.Module | None:
        return build_predictor(config.model.projector[-1], config.model.projector[0])

    @property
    def settings(self) -> str:
        return f"target decay {self.target_decay():.5g} to 1"

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        t_a, t_b = self.target(views[:2])
        return views[:2], lambda outputs: self.loss.terms(outputs[2], outputs[3], t_a, t_b)

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        self.target.follow(network, cosine_decay(step, total=self.plan.total_steps, base=self.target_decay()), skip)
