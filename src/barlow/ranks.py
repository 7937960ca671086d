"""The ranks of a run: what its processes do together, and the batch they share, with exact gradients.

Every rank computes the same global loss L. `Ranks.sum` and `Ranks.gather` carry the adjoint of their own map, so the
backward pass of all ranks together is that of the sum over ranks of L, that is W times dL/dz on every rank.
DistributedDataParallel divides by W: the averaged gradient is that of one process holding the whole batch.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from barlow.errors import InputError


@dataclass(frozen=True)
class Team:
    """This process among those of the run; all ranks must make the same calls in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """number among the processes of this machine; also the number of its GPU"""

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and talks."""
        return self.rank == 0

    def largest(self, value: int) -> int:
        """The largest of the ranks' values, on all ranks."""
        if self.size == 1:
            return value
        votes = torch.tensor([value])  # on the CPU: no wait for the GPU
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return int(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (plain values and CPU tensors) in the order of the ranks, on all ranks."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        self.largest(0)

    def check_agree(self, what: str, value: Any) -> None:
        """Raise InputError on every rank when `value` (settings, a fingerprint of the data) differs between ranks."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise InputError(f"{what} differs between ranks: {values[0]!r} on rank 0, {other!r} on rank {rank}.")


@dataclass(frozen=True)
class Ranks:
    """How many rows of the global batch each rank holds, in the order of the ranks."""

    rows: tuple[int, ...]
    rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def total(self) -> int:
        """Rows of the global batch, N."""
        return sum(self.rows)

    @property
    def world(self) -> int:
        """How many ranks share the batch, W."""
        return len(self.rows)

    @property
    def first(self) -> int:
        """Place of this rank's first row in the global batch."""
        return sum(self.rows[: self.rank])

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over the ranks, on every rank; its gradient is summed over the ranks likewise."""
        return x if self.world == 1 else cast(Tensor, _AllReduce.apply(x, self.group))

    def mean(self, x: Tensor) -> Tensor:
        """The mean of `x` [n] over the samples of the global batch, a scalar."""
        return self.sum(x.sum()) / self.total

    def gather(self, x: Tensor) -> Tensor:
        """The rows [n, D] of all ranks as [N, D], on every rank; n may differ between ranks."""
        return x if self.world == 1 else cast(Tensor, _GatherRows.apply(x, self))


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, _AllReduce.apply(grad, ctx.group)), None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, ranks: Ranks) -> Tensor:
        # Collectives want equal shapes: short shards travel padded to the longest, and the padding is cut off here.
        longest = max(ranks.rows)
        sent = torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[0])).contiguous()
        shards = [torch.empty_like(sent) for _ in ranks.rows]
        dist.all_gather(shards, sent, group=ranks.group)
        return torch.cat([shard[:n] for shard, n in zip(shards, ranks.rows, strict=True)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.ranks = inputs[1]
        ctx.set_materialize_grads(False)  # the first backward pass never asks for this gradient: send nothing then

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        ranks: Ranks = ctx.ranks
        return ranks.sum(grad)[ranks.first : ranks.first + ranks.rows[ranks.rank]], None
