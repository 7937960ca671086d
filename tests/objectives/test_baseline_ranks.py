"""The baselines' losses on two ranks with samples of their own: one value, and the one-process gradient.

Run as a script this file is the ranks: it forks, takes one step on each, and leaves what came out in a folder.
"""

import datetime
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from barlow.objectives import (
    BYOLLoss,
    DINOLoss,
    MixedBarlowTwinsLoss,
    MoCoLoss,
    NTXentLoss,
    SimSiamLoss,
    SwAVLoss,
    VICRegLoss,
    WMSELoss,
)
from barlow.objectives.dino import moved_centre

SHARDS = [(15, 15), (15, 8)]  # W-MSE cuts these into 3 and 2 sub-batches, one of them with rows of both ranks
WIDTH = 5
Embeddings = Sequence[Tensor]

G = torch.Generator().manual_seed(5)
PAST = torch.randn(2, 7, WIDTH, dtype=torch.float64, generator=G).tanh()  # not a multiple of the ranks
QUEUE = nn.functional.normalize(torch.randn(8, WIDTH, dtype=torch.float64, generator=G), dim=1)

# Each of four embeddings per sample: two of the trained network, two more of it that serve as predictions or targets.
LOSSES: dict[str, Callable[[Embeddings], Tensor]] = {
    "simclr": lambda z: NTXentLoss().forward(z[0], z[1]),
    "moco": lambda z: MoCoLoss().forward(z[0], z[1], z[2], z[3], QUEUE),
    "byol": lambda z: BYOLLoss().forward(z[0], z[1], z[2], z[3]),
    "simsiam": lambda z: SimSiamLoss().forward(z[0], z[1], z[2], z[3]),
    "swav": lambda z: SwAVLoss().forward(z[0].tanh(), z[1].tanh()),
    "swav with queue": lambda z: SwAVLoss().forward(z[0].tanh(), z[1].tanh(), (PAST[0], PAST[1])),
    "vicreg, gram": lambda z: VICRegLoss(form="gram").forward(z[0], z[1]),
    "vicreg, correlation": lambda z: VICRegLoss(form="correlation").forward(z[0], z[1]),
    "w-mse": lambda z: WMSELoss().forward(z[0], z[1]),
    "dino": lambda z: DINOLoss().forward(z[0].tanh(), z[1].tanh(), z[2].tanh(), z[3].tanh(), PAST[0, 0]),
}


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, WIDTH)).double()


def batch(total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [4, N, 4] of the global batch, a mix per sample, and a permutation of the whole batch."""
    g = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, total, 4, dtype=torch.float64, generator=g)
    return inputs, torch.rand(total, dtype=torch.float64, generator=g), torch.randperm(total, generator=g)


def outcomes(network: nn.Module, total: int, mine: slice) -> dict[str, list[Tensor]]:
    """Value and gradient of every loss for the rows `mine` of the global batch."""
    inputs, mix, permutation = batch(total)
    losses: dict[str, Callable[[Embeddings], Tensor]] = {
        **LOSSES,
        "mixed over the whole batch": lambda z: MixedBarlowTwinsLoss(0.1, mix_global=True).forward(
            z[0], z[1], z[2], mix[mine], permutation[mine]
        ),
    }
    found = {}
    for name, loss_of in losses.items():
        network.zero_grad()
        rows = inputs[:, mine]
        loss = loss_of(network(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]).unbind())
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        found[name] = [loss.detach(), gradient.clone()]
    with torch.no_grad():
        scores = inputs[:, mine].tanh()
        found["dino's centre"] = [moved_centre(PAST[0, 0, :4], scores[0], scores[1])]
    return found


def run_rank(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=limit)
    network = nn.parallel.DistributedDataParallel(encoder(), find_unused_parameters=False)
    results = [outcomes(network, sum(shards), slice(sum(shards[:rank]), sum(shards[: rank + 1]))) for shards in SHARDS]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(size: int, folder: Path) -> None:
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            run_rank(rank, size, folder)
            os._exit(0)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))


@pytest.fixture(scope="module")
def ranks() -> Iterator[list[list[dict[str, list[Tensor]]]]]:
    """What came out on each rank, for each way to spread the batch."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "2", folder], check=True, timeout=240)
        yield [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LOSSES, "mixed over the whole batch", "dino's centre"])
def test_every_rank_has_the_global_value_and_averaging_gives_the_one_process_gradient(
    name: str, ranks: list[list[dict[str, list[Tensor]]]]
) -> None:
    for index, shards in enumerate(SHARDS):
        total = sum(shards)
        alone = outcomes(encoder(), total, slice(total))[name]
        for rank in ranks:
            for got, want in zip(rank[index][name], alone, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
