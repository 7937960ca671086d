"""What a method adds to the common loop: which inputs go through the network, and what is made of the outputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from barlow.config import ObjectiveConfig, PretrainConfig
from barlow.models.network import TwinNetwork
from barlow.plan import Plan
from barlow.ranks import Ranks

Terms = Callable[[Sequence[Tensor]], dict[str, Tensor]]

MEMORY_SPAN = 10  # a run lasts at least this many times as long as its target remembers: short runs have faster targets


class Method(ABC):
    """One self-supervised method, around a network that is on its device."""

    title: ClassVar[str]
    paper: ClassVar[str]
    """authors, title and number on arXiv"""
    options: ClassVar[frozenset[str]] = frozenset()
    """the settings of the objective that only some methods take and that this one does"""
    adaptive_lr: ClassVar[float] = 0.01
    """peak rate of AdamW and Adam for a batch of 256, as the released Mixed Barlow Twins"""
    longest_decay: ClassVar[float] = 0.996
    """decay of the slow network in a long run, the paper's"""
    takes_all_views: ClassVar[bool] = False
    """whether it takes any number of views, or the first two"""
    standardises_output: ClassVar[bool] = False
    """whether the projector ends in batch normalisation"""

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        self.config, self.plan, self.network = config, plan, network
        self.ranks = Ranks((plan.local_batch,) * plan.world_size, rank)
        self.memory = nn.ModuleDict()
        """What the next step depends on beside network and optimizer; checkpointed, and equal on all ranks."""

    @classmethod
    def check(cls, objective: ObjectiveConfig) -> None:
        """Raise InputError for options of its own that do not fit each other."""
        return

    @classmethod
    def is_lean(cls, objective: ObjectiveConfig) -> bool:
        """Whether it trains and keeps encoder and projector alone, so that micro-batches are exact."""
        return False

    @classmethod
    def head(cls, config: PretrainConfig, plan: Plan) -> nn.Module | None:
        """What it trains after the projector: a predictor, prototypes, or nothing."""
        return None

    @classmethod
    def expected_loss(cls, config: PretrainConfig, plan: Plan) -> float | None:
        """The loss of a network whose features are all unrelated, where that is known."""
        return None

    @property
    @abstractmethod
    def settings(self) -> str:
        """Its own settings in words, for the person who starts a run."""

    @abstractmethod
    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        """The inputs of the network at this step, and the function from its outputs to named terms."""

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:  # noqa: B027  most remember nothing
        """Called when the optimizer has moved the network at `step`; a `skip` that is not zero asks to move nothing."""

    def target_decay(self) -> float:
        """The paper's in runs of ten times its memory of 1 / (1 - decay) steps and more; less in shorter runs."""
        given = self.config.objective.target_ema
        if given is not None:
            return given
        return min(self.longest_decay, max(0.0, 1 - MEMORY_SPAN / self.plan.total_steps))

    def compared_samples(self) -> int:
        """Rows that each embedding of this rank is compared with, beside those of the objective's own matrices."""
        return 0


def count_for(n_train: int, *, least: int, most: int, samples_each: int) -> int:
    """How many prototypes: one for so many training samples, within limits."""
    return min(most, max(least, n_train // samples_each))


def settings_of(loss: nn.Module) -> str:
    """A loss's settings as it prints them, in words."""
    return loss.extra_repr().replace("=", " ")


def rank_seed(seed: int, rank: int) -> int:
    """A seed of each rank's own."""
    return seed + 1_000_003 * rank


def detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms without their graph, for logging."""
    return {name: value.detach() for name, value in terms.items()}


def on_device(*tensors: Tensor, like: Tensor) -> list[Tensor]:
    """The tensors on the device of another one, without a wait of the host."""
    return [tensor.to(like.device, non_blocking=True) for tensor in tensors]


def mean_of_terms(terms: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each named term's mean."""
    return {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}
