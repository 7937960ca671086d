"""Barlow Twins: any number of views, and the asymmetric ablations of its paper."""

import itertools
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from barlow.config import ObjectiveConfig, PretrainConfig
from barlow.errors import InputError
from barlow.methods.memory import Target, projecting_target
from barlow.methods.method import Method, Terms, mean_of_terms
from barlow.models import build_predictor
from barlow.models.network import TwinNetwork
from barlow.objectives import BarlowTwinsLoss, VariantLoss
from barlow.objectives.expected import expected_initial_loss
from barlow.objectives.variants import Variant
from barlow.plan import Plan

LEAST_BATCH = 3  # the correlations of two samples are 1 or -1, whatever the network


class BarlowTwins(Method):
    """The loss of all views; or, where the two branches differ, of each ordered pair of views.

    One branch may have a predictor, the other no gradient, or a slow network of its own. Then the loss of (view i
    through the first branch, view j through the second) is averaged over all ordered pairs of views, so that each view
    goes through both branches.
    """

    title = "Barlow Twins"
    paper = "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, arXiv 2103.03230"
    options = frozenset({"variant", "temperature", "predictor", "stop_gradient", "target_ema"})
    takes_all_views = True

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        objective = config.objective
        self.loss: BarlowTwinsLoss | VariantLoss
        if objective.variant is None:
            self.loss = BarlowTwinsLoss(plan.lambd, objective.form)
        else:
            temperature = 1.0 if objective.temperature is None else objective.temperature
            variant = cast(Variant, objective.variant)  # the loss checks it
            self.loss = VariantLoss(variant, plan.lambd, temperature=temperature, form=objective.form)
        self.target: Target | None = None
        if objective.target_ema is not None:
            self.memory["target"] = self.target = projecting_target(network, plan)
        self.is_asymmetric = objective.predictor or objective.stop_gradient or self.target is not None

    @classmethod
    def check(cls, objective: ObjectiveConfig) -> None:
        if objective.temperature is not None and objective.variant != "cross-entropy":
            raise InputError("--method barlow-twins takes --temperature with --variant cross-entropy alone")

    @classmethod
    def is_lean(cls, objective: ObjectiveConfig) -> bool:
        return not objective.predictor and objective.target_ema is None

    @classmethod
    def head(cls, config: PretrainConfig, plan: Plan) -> nn.Module | None:
        width = config.model.projector[-1]
        return build_predictor(width, width) if config.objective.predictor else None

    @classmethod
    def expected_loss(cls, config: PretrainConfig, plan: Plan) -> float | None:
        batch = plan.local_batch * plan.world_size
        if config.objective.variant is not None or batch < LEAST_BATCH:
            return None
        return expected_initial_loss(config.model.projector[-1], batch, plan.lambd, None)["loss"]

    @property
    def settings(self) -> str:
        objective = self.config.objective
        options = [objective.variant, objective.predictor and "predictor", objective.stop_gradient and "stop-gradient"]
        decay = objective.target_ema is not None and f"target decay {objective.target_ema:.5g}"
        return ", ".join([f"lambda {self.plan.lambd:.5g}", *(str(option) for option in [*options, decay] if option)])

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        if not self.is_asymmetric:
            return views, lambda embeddings: self.loss.terms(*embeddings)
        targets = self.target(views) if self.target else None
        return views, lambda outputs: self._asymmetric(outputs[: len(views)], outputs[-len(views) :], targets)

    def _asymmetric(
        self, embeddings: Sequence[Tensor], first: Sequence[Tensor], targets: Sequence[Tensor] | None
    ) -> dict[str, Tensor]:
        second = embeddings if targets is None else targets
        second = [z.detach() for z in second] if self.config.objective.stop_gradient else second
        pairs = itertools.permutations(range(len(first)), 2)
        return mean_of_terms([self.loss.terms(first[i], second[j]) for i, j in pairs])

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        if self.target is not None and self.config.objective.target_ema is not None:
            self.target.follow(network, self.config.objective.target_ema, skip)
