"""Two processes with different data normalise as one process does with all of it."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm import create_model
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from barlow.errors import InputError
from barlow.models.sync_norm import synchronise_norms

CLASSES = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}


FAMILIES = ("efficientnet_b0", "mobilenetv3_small_050", "regnety_002", "resnet18", "densenet121")


def network(ndim: int, *, activated: bool = False) -> nn.Module:
    torch.manual_seed(0)
    norm = BatchNormAct2d(3, act_layer=nn.SiLU) if activated else CLASSES[ndim](3)
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


def one_rank(rank: int, ndim: int, activated: bool, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module = DistributedDataParallel(synchronise_norms(network(ndim, activated=activated), "cpu"))
    torch.save(outcome(module, data(ndim).chunk(2)[rank]), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("ndim", "activated"), [(2, False), (4, False), (4, True)])
def test_gradients_and_running_statistics_are_those_of_the_global_batch(ndim: int, activated: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_rank, (ndim, activated, folder), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
        ranks = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = outcome(network(ndim, activated=activated), data(ndim))
    for found in ranks:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_converted_network_is_the_same_function_under_the_same_names(name: str, device: str) -> None:
    torch.manual_seed(0)
    original = create_model(name, num_classes=0).eval()
    converted = synchronise_norms(copy.deepcopy(original), device)
    assert list(converted.state_dict()) == list(original.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(converted(x), original(x))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", FAMILIES)
def test_one_process_trains_on_the_same_outputs_as_without_conversion(name: str) -> None:
    torch.manual_seed(0)
    original = create_model(name, num_classes=0).double().train()
    converted = synchronise_norms(copy.deepcopy(original), "cpu")
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(seeded(converted, x), seeded(original, x), rtol=1e-6, atol=1e-8)


def seeded(module: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # stochastic depth
    out: Tensor = module(x)
    return out


class Doubled(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_norm_that_does_something_else_is_refused_rather_than_replaced(device: str) -> None:
    with pytest.raises(InputError, match="cannot synchronise Doubled over ranks"):
        synchronise_norms(nn.Sequential(Doubled(3)), device)
