"""Many ranks, each with its own samples: the global loss on every rank, and the one-process gradient after averaging.

Run as a script this file is the ranks: it forks, trains one step on each, and leaves what came out in a folder.
"""

import datetime
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from barlow.errors import InputError
from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss, VariantLoss, correlation
from barlow.objectives.correlation import Form

SHARDS: dict[int, list[tuple[int, ...]]] = {
    2: [(6, 6), (9, 4)],
    4: [(3, 3, 3, 3), (5, 1, 0, 6)],
}  # a rank may have no rows
FORMS: tuple[Form, ...] = ("gram", "correlation", "auto")
VARIANTS = ["auto-correlation", "cross-entropy", "target-minus-one", "no-norm", "feature-norm", "mean-view"]
WIDTHS = [5, 20]
BLOCKS = [2**28, 400]

Case = tuple[tuple[int, ...], Form, str, int, int]


def cases(size: int) -> list[Case]:
    main_losses = itertools.product(SHARDS[size], FORMS, ["plain", "three views", "mixed"], WIDTHS, BLOCKS)
    return [*main_losses, *((SHARDS[size][1], "auto", kind, width, BLOCKS[0]) for kind in VARIANTS for width in WIDTHS)]


def encoder(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, width)).double()


def batch(shards: tuple[int, ...]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Three views of the global batch, a mix per sample, and each rank's permutation."""
    g = torch.Generator().manual_seed(1)
    views = [torch.randn(sum(shards), 4, dtype=torch.float64, generator=g) for _ in range(3)]
    return views, torch.rand(sum(shards), generator=g), [torch.randperm(n, generator=g) for n in shards]


def loss_of(kind: str, form: Form, z: list[Tensor], mix: Tensor, permutation: Tensor) -> Tensor:
    z_a, z_b, z_m = z
    if kind == "mixed":
        return MixedBarlowTwinsLoss(0.1, form=form).forward(z_a, z_b, z_m, mix, permutation)
    if kind == "plain":
        return BarlowTwinsLoss(0.1, form).forward(z_a, z_b)
    if kind == "three views":
        return BarlowTwinsLoss(0.1, form).forward(*z)
    if kind == "mean-view":
        return VariantLoss("mean-view", 0.1, form=form).forward(*z)
    return VariantLoss(kind, 0.1, form=form).forward(z_a, z_b)  # type: ignore[arg-type]


def flat_gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def step_on_a_rank(case: Case, rank: int) -> list[Tensor]:
    shards, form, kind, width, correlation.BLOCK_BYTES = case
    views, mix, permutations = batch(shards)
    mine = slice(sum(shards[:rank]), sum(shards[: rank + 1]))
    network = nn.parallel.DistributedDataParallel(encoder(width), find_unused_parameters=False)
    z = network(torch.cat([view[mine] for view in views])).tensor_split(3)
    loss = loss_of(kind, form, list(z), mix[mine], permutations[rank])
    loss.backward()  # type: ignore[no-untyped-call]
    return [loss.detach(), flat_gradient(network)]


def second_order_on_a_rank(rank: int, size: int, form: Form) -> Tensor:
    """d/dz of the squared norm of the averaged gradient, for this rank's rows."""
    shards = SHARDS[size][1]
    views, mix, permutations = batch(shards)
    mine = slice(sum(shards[:rank]), sum(shards[: rank + 1]))
    z = [view[mine].clone().requires_grad_() for view in views]
    grads = torch.autograd.grad(loss_of("mixed", form, z, mix[mine], permutations[rank]), z, create_graph=True)
    norm = torch.stack([(grad / size).square().sum() for grad in grads]).sum()
    return torch.cat(torch.autograd.grad(norm, z))


def bytes_sent_by_a_rank(form: Form, block: int) -> list[int]:
    """Payloads of the collectives of one forward and one backward pass, at D = 20 and 6 rows on each rank."""
    correlation.BLOCK_BYTES = block
    sent = [0, 0]
    reduce, collect, phase = dist.all_reduce, dist.all_gather, 0

    def counting_reduce(x: Tensor, *args: Any, **settings: Any) -> None:
        sent[phase] += x.numel() * x.element_size()
        reduce(x, *args, **settings)

    def counting_gather(out: list[Tensor], x: Tensor, *args: Any, **settings: Any) -> None:
        sent[phase] += x.numel() * x.element_size()
        collect(out, x, *args, **settings)

    setattr(dist, "all_reduce", counting_reduce)  # noqa: B010 - a type checker refuses the plain assignment
    setattr(dist, "all_gather", counting_gather)  # noqa: B010
    z = [torch.randn(6, 20, requires_grad=True) for _ in range(2)]
    loss = BarlowTwinsLoss(form=form)(*z)
    phase = 1
    loss.backward()
    dist.all_reduce, dist.all_gather = reduce, collect
    return sent


def complaint(rank: int, kind: str) -> str:
    """What this rank is told when rank 1 alone is given something unusable."""
    z = torch.randn(4, 3)
    wrong = {"width": torch.randn(4, 5), "dimensions": torch.randn(4, 3, 1), "type": torch.randn(4, 3).double()}[kind]
    given = wrong if rank == 1 else z
    try:
        BarlowTwinsLoss()(given, given)
    except InputError as error:
        return str(error)
    return "no complaint"


def outsider(group: Any) -> str:
    """What a rank is told that is not in the group it names, while the group's own ranks are not there."""
    try:
        BarlowTwinsLoss(group=group)(torch.randn(4, 3), torch.randn(4, 3))
    except InputError as error:
        return str(error)
    return "no complaint"


def run_rank(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=limit)
    halves: list[Any] = [dist.new_group(list(ranks)) for ranks in (range(size // 2), range(size // 2, size))]
    torch.manual_seed(rank)
    local = torch.randn(5, 8, dtype=torch.float64)
    results = {
        "steps": [step_on_a_rank(case, rank) for case in cases(size)],
        "second": [second_order_on_a_rank(rank, size, form) for form in ("gram", "correlation")],
        "bytes": [bytes_sent_by_a_rank(form, block) for block in BLOCKS for form in ("gram", "correlation")],
        "complaints": [complaint(rank, kind) for kind in ("width", "dimensions", "type")],
        "outsider": outsider(halves[rank < size // 2]),
        "group": [local, BarlowTwinsLoss(group=halves[rank >= size // 2])(local, local.roll(1, 0).exp())],
    }
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


@pytest.fixture(scope="module", params=[2, 4])
def outcome(request: pytest.FixtureRequest) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, str(request.param), folder], check=True, timeout=240)
        yield request.param, [torch.load(Path(folder) / f"{rank}.pt") for rank in range(request.param)]


def global_permutation(shards: tuple[int, ...], permutations: list[Tensor]) -> Tensor:
    starts = itertools.accumulate(shards, initial=0)
    return torch.cat([p + start for p, start in zip(permutations, starts, strict=False)])


@pytest.mark.slow
def test_every_rank_gets_the_global_loss_and_averaging_gives_the_one_process_gradient(
    outcome: tuple[int, list[dict[str, Any]]],
) -> None:
    size, results = outcome
    for index, case in enumerate(cases(size)):
        shards, form, kind, width, _ = case
        views, mix, permutations = batch(shards)
        network = encoder(width)
        z = list(network(torch.cat(views)).split(sum(shards)))
        loss = loss_of(kind, form, z, mix, global_permutation(shards, permutations))
        loss.backward()  # type: ignore[no-untyped-call]
        for result in results:
            value, gradient = result["steps"][index]
            torch.testing.assert_close(value, loss.detach(), rtol=1e-9, atol=1e-9, msg=f"value of {case}")
            want = flat_gradient(network)
            torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-9, msg=f"gradient of {case}")


@pytest.mark.slow
def test_a_derivative_of_the_averaged_gradient_is_the_one_process_one(
    outcome: tuple[int, list[dict[str, Any]]],
) -> None:
    size, results = outcome
    shards = SHARDS[size][1]
    views, mix, permutations = batch(shards)
    z = [view.requires_grad_() for view in views]
    loss = loss_of("mixed", "correlation", z, mix, global_permutation(shards, permutations))
    grads = torch.autograd.grad(loss, z, create_graph=True)
    want = torch.autograd.grad(torch.stack([grad.square().sum() for grad in grads]).sum(), z)
    for form in range(2):
        got = [result["second"][form].tensor_split(3) for result in results]
        for view in range(3):
            torch.testing.assert_close(torch.cat([g[view] for g in got]), want[view], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_each_rank_sends_what_the_cost_table_says(outcome: tuple[int, list[dict[str, Any]]]) -> None:
    _, results = outcome
    header, moments, width, rows = 4 * 8, 2 * 2 * 20 * 4, 20, 6
    gram_sums = width * 4 + 8  # the diagonal, and the norm in float64
    gram = [header + moments + 2 * rows * width * 4 + gram_sums, moments + gram_sums]
    matrix = width**2 * 4
    kept = [header + moments + matrix, moments + gram_sums]
    made_again = [kept[0], kept[1] + matrix]
    for result in results:
        assert result["bytes"] == [gram, kept, gram, made_again]


@pytest.mark.slow
def test_what_one_rank_cannot_use_is_refused_on_every_rank(outcome: tuple[int, list[dict[str, Any]]]) -> None:
    _, results = outcome
    for rank, result in enumerate(results):
        width, dimensions, dtype = result["complaints"]
        assert "All ranks need one width and type; received D = (3, 5" in width
        own = "must be matrices [N, D] of one shape; received (4, 3, 1)"
        assert (own if rank == 1 else "Rank 1 was given unusable embeddings") in dimensions
        assert "float64 = (0, 1" in dtype


@pytest.mark.slow
def test_a_group_shares_its_own_batch_only(outcome: tuple[int, list[dict[str, Any]]]) -> None:
    size, results = outcome
    for half in (range(size // 2), range(size // 2, size)):
        z_a = torch.cat([results[rank]["group"][0] for rank in half])
        z_b = torch.cat([results[rank]["group"][0].roll(1, 0).exp() for rank in half])
        for rank in half:
            torch.testing.assert_close(results[rank]["group"][1], BarlowTwinsLoss()(z_a, z_b))
            assert "This process is not in the process group given" in results[rank]["outsider"]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
