"""What a method adds to the common loop: which inputs go through the network, and what is made of the embeddings."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from barlow.config import ObjectiveConfig
from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss, pairwise_terms
from barlow.views import draw_mix, mix_views

Terms = Callable[[Sequence[Tensor]], dict[str, Tensor]]


class Method(Protocol):
    """One self-supervised method."""

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        """The inputs of the network at this step, and the function from their embeddings to named terms."""
        ...


class BarlowTwins:
    """Two views or more; the loss is averaged over their pairs."""

    def __init__(self, loss: BarlowTwinsLoss) -> None:
        self.loss = loss

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        return views, lambda embeddings: pairwise_terms(self.loss, embeddings)


class MixedBarlowTwins:
    """Two views and their mix; weight and partners are a function of (seed, rank, step)."""

    def __init__(self, loss: MixedBarlowTwinsLoss, *, alpha: float, per_sample: bool, seed: int) -> None:
        self.loss, self.alpha, self.per_sample, self.seed = loss, alpha, per_sample, seed

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        a, b = views
        mix, partner = draw_mix(len(a), seed=self.seed, step=step, alpha=self.alpha, per_sample=self.per_sample)
        mix, partner = (drawn.to(a.device, non_blocking=True) for drawn in (mix, partner))
        mixed = mix_views(a, b, mix, partner)
        return [a, b, mixed], lambda z: self.loss.terms(z[0], z[1], z[2], mix, partner)


def build_method(config: ObjectiveConfig, *, lambd: float, seed: int) -> Method:
    """The method that the settings name."""
    if config.method == "mixed-barlow-twins":
        mixed = MixedBarlowTwinsLoss(lambd, config.lambd_reg, config.form)
        return MixedBarlowTwins(mixed, alpha=config.mix_alpha, per_sample=config.mix_per_sample, seed=seed)
    return BarlowTwins(BarlowTwinsLoss(lambd, config.form))


def detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms without their graph, for logging."""
    return {name: value.detach() for name, value in terms.items()}
