"""MoCo v2: contrast with the keys of a slow network and of earlier batches."""

import torch
from torch import Tensor

from barlow.config import PretrainConfig
from barlow.methods.memory import Queue, projecting_target, queue_length
from barlow.methods.method import Method, Terms, settings_of
from barlow.models.network import TwinNetwork
from barlow.objectives import MoCoLoss
from barlow.plan import Plan

MOST_KEYS = 4096  # the paper's 65,536 are for ImageNet


class MoCo(Method):
    """Both views are queries in turn; a queue remembers keys; the decay of the slow network is constant."""

    title = "MoCo v2"
    paper = "Chen et al., Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297"
    options = frozenset({"temperature", "target_ema"})
    longest_decay = 0.999

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        temperature = config.objective.temperature
        self.loss = MoCoLoss() if temperature is None else MoCoLoss(temperature)
        self.memory["target"] = self.target = projecting_target(network, plan)
        length = queue_length(MOST_KEYS, plan.n_train, 2 * config.training.batch_size)
        queue = Queue(length, config.model.projector[-1], seed=config.training.seed)
        self.memory["queue"] = self.queue = queue.to(next(network.parameters()))  # its device and type
        self._keys: list[Tensor] = []  # of the step under way

    @property
    def settings(self) -> str:
        return f"{settings_of(self.loss)}, queue of {len(self.queue.rows)}, target decay {self.target_decay():.5g}"

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        self._keys = keys = self.target(views[:2])
        return views[:2], lambda z: self.loss.terms(z[0], z[1], keys[0], keys[1], self.queue.rows)

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        self.queue.push(torch.cat([self.ranks.gather(keys) for keys in self._keys]), step, skip)
        self.target.follow(network, self.target_decay(), skip)

    def compared_samples(self) -> int:
        return len(self.queue.rows)
