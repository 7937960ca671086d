"""Two processes with different data normalise as one process does with all of it."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from barlow.models.sync_norm import synchronise_norms

CLASSES = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def network(ndim: int) -> nn.Module:
    torch.manual_seed(0)
    norm = CLASSES[ndim](3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(norm, nn.Flatten(), nn.Linear(3 if ndim == 2 else 3 * 4 * 5, 2)).double()


def data(ndim: int) -> Tensor:
    shape = (8, 3) if ndim == 2 else (8, 3, 4, 5)
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 100


def outcome(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    module.train()
    module(x).square().mean().backward()
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    gradients = {f"grad {name}": p.grad for name, p in inner.named_parameters() if p.grad is not None}
    return {**gradients, **dict(inner.named_buffers())}


def one_rank(rank: int, ndim: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module = DistributedDataParallel(synchronise_norms(network(ndim), "cpu"))
    torch.save(outcome(module, data(ndim).chunk(2)[rank]), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ndim", [2, 4])
def test_gradients_and_running_statistics_are_those_of_the_global_batch(ndim: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_rank, (ndim, folder), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
        ranks = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = outcome(network(ndim), data(ndim))
    for found in ranks:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
