"""What a method adds to the common loop: which inputs go through the network, and what is made of the outputs."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss, VariantLoss
from barlow.ranks import Ranks
from barlow.training.network import TwinNetwork
from barlow.training.targets import Target
from barlow.views import draw_mix, mix_views

Terms = Callable[[Sequence[Tensor]], dict[str, Tensor]]


class Method(ABC):
    """One self-supervised method.

    settings: its own settings in words, for the person who starts a run.
    memory: what the next step depends on beside network and optimizer: target networks, queues, centres. It is
        checkpointed, and alike on all ranks.
    """

    def __init__(self, settings: str, memory: Mapping[str, nn.Module] | None = None) -> None:
        self.settings = settings
        self.memory = nn.ModuleDict(memory)

    @abstractmethod
    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        """The inputs of the network at this step, and the function from its outputs to named terms."""

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:  # noqa: B027  most remember nothing
        """Called when the optimizer has moved the network at `step`; a `skip` that is not zero asks to move nothing."""


class BarlowTwins(Method):
    """Two views or more; the loss is averaged over their pairs."""

    def __init__(self, settings: str, loss: BarlowTwinsLoss | VariantLoss) -> None:
        super().__init__(settings)
        self.loss = loss

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        return views, lambda embeddings: self.loss.terms(*embeddings)


class AsymmetricBarlowTwins(Method):
    """The two branches differ: one may have a predictor, the other no gradient, or a slow network of its own.

    The loss of (view i through the first branch, view j through the second) is averaged over all ordered pairs of
    views, so that each view goes through both branches. The second branch is the slow network where there is one.
    """

    def __init__(
        self,
        settings: str,
        loss: BarlowTwinsLoss | VariantLoss,
        *,
        stop_gradient: bool,
        target: Target | None,
        decay: float | None,
    ) -> None:
        super().__init__(settings, {"target": target} if target else None)
        self.loss, self.stop_gradient, self.target, self.decay = loss, stop_gradient, target, decay

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        targets = self.target(views) if self.target else None
        return views, lambda outputs: self._terms(outputs[: len(views)], outputs[-len(views) :], targets)

    def _terms(
        self, embeddings: Sequence[Tensor], first: Sequence[Tensor], targets: Sequence[Tensor] | None
    ) -> dict[str, Tensor]:
        second = embeddings if targets is None else targets
        second = [z.detach() for z in second] if self.stop_gradient else second
        pairs = [self.loss.terms(first[i], second[j]) for i, j in itertools.permutations(range(len(first)), 2)]
        return {name: torch.stack([terms[name] for terms in pairs]).mean() for name in pairs[0]}

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        if self.target and self.decay is not None:
            self.target.follow(network, self.decay, skip)


class MixedBarlowTwins(Method):
    """Two views and their mix; weight and partners are a function of (seed, step).

    ranks: this rank's place in the global batch when partners come from all of it (and the loss was told so); None:
        partners come from this rank's own batch.
    """

    def __init__(
        self,
        settings: str,
        loss: MixedBarlowTwinsLoss,
        *,
        alpha: float,
        per_sample: bool,
        seed: int,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(settings)
        self.loss, self.alpha, self.per_sample, self.seed, self.ranks = loss, alpha, per_sample, seed, ranks

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        a, b, *more = views
        mix, partner = (drawn.to(a.device, non_blocking=True) for drawn in self._draw(len(a), step))
        mixed = mix_views(a, self._partners(b), mix, partner)
        return [a, b, mixed, *more], lambda z: self.loss.terms(z[0], z[1], z[2], mix, partner, *z[3:])

    def _draw(self, batch: int, step: int) -> tuple[Tensor, Tensor]:
        """Weights and partners of this rank's samples; a partner is a row of what `_partners` returns."""
        total = self.ranks.total if self.ranks else batch
        mix, partner = draw_mix(total, seed=self.seed, step=step, alpha=self.alpha, per_sample=self.per_sample)
        if self.ranks is None:
            return mix, partner
        world = self.ranks.world
        mine = slice(self.ranks.rank, None, world)  # as the loader deals the global batch out
        of_rank, row = partner[mine] % world, partner[mine] // world
        return (mix[mine] if self.per_sample else mix), of_rank * batch + row

    def _partners(self, view: Tensor) -> Tensor:
        if self.ranks is None:
            return view
        return self.ranks.gather(view.flatten(1)).view(-1, *view.shape[1:])


def detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms without their graph, for logging."""
    return {name: value.detach() for name, value in terms.items()}
