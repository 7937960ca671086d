"""Weights, gradients and momenta spread over the ranks (FSDP2), and whole states made from the parts and back."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from barlow.models.network import TwinNetwork


def shard(network: TwinNetwork, device: torch.device) -> None:
    """Leave every rank its part of each weight; the whole of one block at a time is gathered when it computes."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in _blocks(network.encoder.backbone):
        fully_shard(block, mesh=mesh)
    fully_shard(network.projector, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _blocks(backbone: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a backbone: what it keeps in sequences."""
    for child in backbone.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))


def gathered(value: Any, *, keep: bool) -> Any:
    """A nested state with every sharded tensor made whole on the CPU; all ranks must ask, those that `keep` get it."""
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: gathered(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [gathered(item, keep=keep) for item in value]
    return value


def network_parts(whole: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A whole network's state as this rank's parts, for `load_state_dict`."""
    ours = network.state_dict()
    return {name: _part(value, ours.get(name)) for name, value in whole.items()}


def optimizer_parts(whole: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A whole optimizer's state as this rank's parts."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in whole["param_groups"] for number in group["params"]]
    of_number = dict(zip(numbers, parameters, strict=False))
    state = {
        number: {key: _part(value, of_number.get(number)) for key, value in entries.items()}
        for number, entries in whole["state"].items()
    }
    return {**whole, "state": state}


def _part(value: Any, like: Any) -> Any:
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value  # a buffer, a step count, or a mismatch that loading will name
