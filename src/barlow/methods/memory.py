"""What some methods remember from step to step: a slow copy of the network, a queue of embeddings, a centre.

All of it is updated after the optimizer's step and only where `skip` is zero: after a step that was not finite
everything stays as that step found it, so that it can be run again (see `NonFiniteWatch`).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from barlow.models.network import TwinNetwork, autocast
from barlow.plan import Plan


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, skip: Tensor) -> None:
    """average = decay * average + (1 - decay) * network, for every parameter that the average has."""
    theirs = dict(network.named_parameters())
    named = dict(average.named_parameters())
    change = torch._foreach_sub([theirs[name] for name in named], list(named.values()))
    torch._foreach_mul_(change, (1 - decay) * (skip == 0))
    torch._foreach_add_(list(named.values()), change)


class Target(nn.Module):
    """A copy of a network that follows it slowly and makes what it is to predict; no gradient trains it.

    Batch normalisation takes the batch's statistics, as in the trained network.
    """

    def __init__(self, network: TwinNetwork, device: str, precision: str) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).train().requires_grad_(False)
        self.device, self.precision = device, precision

    @torch.no_grad()
    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """What the copy makes of each view."""
        with autocast(self.device, self.precision):
            embeddings: list[Tensor] = self.network(views)
        return embeddings

    def follow(self, network: TwinNetwork, decay: float, skip: Tensor) -> None:
        """Move the copy's weights towards the network's; its batch statistics are its own."""
        follow(self.network, network, decay, skip)


def projecting_target(network: TwinNetwork, plan: Plan) -> Target:
    """A slow copy of encoder and projector, without the head."""
    return Target(TwinNetwork(network.encoder, network.projector), plan.device, plan.precision)


class Queue(nn.Module):
    """The newest `length` embeddings of unit length, [length, width]; every step replaces the oldest."""

    rows: Tensor

    def __init__(self, length: int, width: int, *, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(length, width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("rows", nn.functional.normalize(drawn, dim=1))

    @torch.no_grad()
    def push(self, embeddings: Tensor, step: int, skip: Tensor) -> None:
        """Take in `embeddings` [n, width] at a step; every step must bring as many, n dividing the length."""
        start = step * len(embeddings) % len(self.rows)
        place = self.rows[start : start + len(embeddings)]
        newest = nn.functional.normalize(embeddings.to(place.dtype), dim=1)[: len(place)]
        place.copy_(torch.where(skip == 0, newest, place))


def queue_length(most: int, n_train: int, pushed: int) -> int:
    """How many embeddings to keep when each step brings `pushed`: whole steps, one at least, at most one epoch's."""
    return max(1, min(most, n_train) // pushed) * pushed


class Centre(nn.Module):
    """A running mean of scores, [width]; starts at zero."""

    value: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(width))

    @torch.no_grad()
    def move(self, value: Tensor, skip: Tensor) -> None:
        """Become `value`."""
        self.value.copy_(torch.where(skip == 0, value, self.value))
