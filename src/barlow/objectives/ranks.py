"""What the ranks of a process group agree on before they compute a loss together."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from barlow.errors import InputError
from barlow.ranks import Ranks


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
