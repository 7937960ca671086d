"""Mixed Barlow Twins: the views and a mix of the first two, held to be linear."""

from torch import Tensor

from barlow.config import ObjectiveConfig, PretrainConfig
from barlow.methods.barlow_twins import LEAST_BATCH
from barlow.methods.method import Method, Terms, on_device, rank_seed
from barlow.models.network import TwinNetwork
from barlow.objectives import MixedBarlowTwinsLoss
from barlow.objectives.expected import expected_initial_loss
from barlow.plan import Plan
from barlow.views import draw_mix, mix_views


class MixedBarlowTwins(Method):
    """Weight and partners of the mix are a function of (seed, step); the mixed view goes third through the network.

    With `mix_global` the partners come from the global batch, which then is mixed in the same way on any number of
    ranks; otherwise each rank mixes its own samples.
    """

    title = "Mixed Barlow Twins"
    paper = "Bandara et al., Guarding Barlow Twins Against Overfitting with Mixed Samples, arXiv 2312.02151"
    options = frozenset({"mix_global"})
    takes_all_views = True

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        objective = config.objective
        self.loss = MixedBarlowTwinsLoss(
            plan.lambd, objective.lambd_reg, objective.form, mix_global=objective.mix_global
        )

    @classmethod
    def is_lean(cls, objective: ObjectiveConfig) -> bool:
        return True

    @classmethod
    def expected_loss(cls, config: PretrainConfig, plan: Plan) -> float | None:
        batch = plan.local_batch * plan.world_size
        if batch < LEAST_BATCH:
            return None
        return expected_initial_loss(config.model.projector[-1], batch, plan.lambd, config.objective.lambd_reg)["loss"]

    @property
    def settings(self) -> str:
        return f"lambda {self.plan.lambd:.5g}"

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        a, b, *more = views
        mix, partner = on_device(*self._draw(len(a), step), like=a)
        partners = self.ranks.gather(b.flatten(1)).view(-1, *b.shape[1:]) if self.config.objective.mix_global else b
        mixed = mix_views(a, partners, mix, partner)
        return [a, b, mixed, *more], lambda z: self.loss.terms(z[0], z[1], z[2], mix, partner, *z[3:])

    def _draw(self, batch: int, step: int) -> tuple[Tensor, Tensor]:
        """Weights and partners of this rank's samples; a partner is a row of this rank's, or of the gathered, views."""
        objective, seed = self.config.objective, self.config.training.seed
        if not objective.mix_global:
            seed = rank_seed(seed, self.ranks.rank)
            return draw_mix(batch, seed=seed, step=step, alpha=objective.mix_alpha, per_sample=objective.mix_per_sample)
        mix, partner = draw_mix(
            self.ranks.total, seed=seed, step=step, alpha=objective.mix_alpha, per_sample=objective.mix_per_sample
        )
        # The loader deals the global batch out sample by sample: position i is row i // W of rank i % W.
        mine, world = slice(self.ranks.rank, None, self.ranks.world), self.ranks.world
        rows = partner[mine] % world * batch + partner[mine] // world
        return (mix[mine] if objective.mix_per_sample else mix), rows
