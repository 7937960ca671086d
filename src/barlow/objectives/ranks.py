"""The batch spread over the ranks of a process group: who holds how many rows; sums and gathers with exact gradients.

Every rank computes the same global loss L. Each collective here carries the adjoint of its own map, so the backward
pass of all ranks together is that of the sum over ranks of L, that is W times dL/dz on every rank.
DistributedDataParallel divides by W: the averaged gradient is that of one process holding the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from barlow.errors import InputError


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


def share_batch(views: Sequence[Tensor], group: dist.ProcessGroup | None = None, fault: str = "") -> Ranks:
    """Agree with the other ranks on the global batch.

    Args:
        views: this rank's embeddings, each [n, D]; n may differ between ranks, D and the compute type may not.
        group: the process group; None is the default group, or this process alone when none is initialised.
        fault: what the caller already found wrong with this rank's arguments, if anything.

    Raises:
        InputError: on every rank, when any rank's arguments are unusable or the ranks disagree: none is left waiting.
            On a rank outside the group, which the others do not wait for.
    """
    fault = _fault(views) or fault
    world = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    if world < 1:
        raise InputError("This process is not in the process group given; call the loss on the group's ranks alone.")
    ranks = _exchange(views, group, fault) if world > 1 else Ranks(tuple(views[0].shape[:1]))
    if fault:
        raise InputError(fault)
    if ranks.total < 2:
        raise InputError(f"Received a batch of {ranks.total} sample(s): correlations over a batch need at least 2.")
    return ranks


def _fault(views: Sequence[Tensor]) -> str:
    shapes = [tuple(view.shape) for view in views]
    if any(len(shape) != 2 for shape in shapes) or len(set(shapes)) != 1:
        return f"Embeddings must be matrices [N, D] of one shape; received {', '.join(map(str, shapes))}."
    if not shapes[0][1]:
        return f"Embeddings need a feature at least; received shape {shapes[0]}."
    if not all(view.is_floating_point() for view in views):
        return f"Embeddings must be floating point; received {', '.join(str(view.dtype) for view in views)}."
    if len({view.device for view in views}) != 1:
        return f"Embeddings must be on one device; received {', '.join(str(view.device) for view in views)}."
    return ""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _exchange(views: Sequence[Tensor], group: dist.ProcessGroup | None, fault: str) -> Ranks:
    """All ranks' row counts; raises the same way everywhere when they cannot work together."""
    facts = [0, 0, 0, 1] if fault else [*views[0].shape, int(any(v.dtype == torch.float64 for v in views)), 0]
    # Through Gloo where the group has it: reading what came back would make the host wait for the GPU.
    device = "cpu" if "cpu:" in dist.get_backend_config(group) else views[0].device
    sent = torch.tensor(facts, dtype=torch.int64, device=device)
    heard = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(heard, sent, group=group)
    rows, widths, doubles, faults = zip(*torch.stack(heard).tolist(), strict=True)
    if any(faults) and not fault:
        raise InputError(f"Rank {faults.index(1)} was given unusable embeddings; its own message says why.")
    if not fault and (len(set(widths)) > 1 or len(set(doubles)) > 1):
        raise InputError(f"All ranks need one width and type; received D = {widths}, float64 = {doubles} by rank.")
    return Ranks(rows, dist.get_rank(group), group)
