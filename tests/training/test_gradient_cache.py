"""A micro-batched step equals the one-piece step, in the memory of a micro-batch."""

import subprocess
import sys
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from barlow.errors import InputError
from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss, NTXentLoss
from barlow.training.gradient_cache import _RandomState, cached_backward, part_sizes


def network(*extra: nn.Module, width: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *extra, nn.Tanh(), nn.Linear(16, width))


def batches(views: int = 2, n: int = 20) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    shared = torch.randn(n, 6, generator=g)
    return [shared + 0.5 * torch.randn(n, 6, generator=g) for _ in range(views)]


def gradient(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def one_piece(module: nn.Module, views: list[Tensor], loss: nn.Module) -> Tensor:
    module.zero_grad()
    value: Tensor = loss(*(module(view) for view in views))
    value.backward()  # type: ignore[no-untyped-call]
    return gradient(module)


@pytest.mark.parametrize("micro_batch", [1, 7, 20, 64])
def test_gradients_equal_those_of_the_one_piece_batch(micro_batch: int) -> None:
    module, views, loss = network(), batches(), BarlowTwinsLoss()
    want = one_piece(module, views, loss)
    module.zero_grad()
    terms = cached_backward(module, views, micro_batch, loss.terms)
    torch.testing.assert_close(gradient(module), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["loss"], loss(*(module(view) for view in views)).detach())
    assert not any(term.requires_grad for term in terms.values())


def test_three_views_and_the_mixed_loss_work_the_same_way() -> None:
    module, views, loss = network(), batches(3), MixedBarlowTwinsLoss()
    p = torch.arange(20).roll(3)

    def terms(z_a: Tensor, z_b: Tensor, z_m: Tensor) -> dict[str, Tensor]:
        return loss.terms(z_a, z_b, z_m, 0.4, p)

    terms(*(module(view) for view in views))["loss"].backward()  # type: ignore[no-untyped-call]
    want = gradient(module)
    module.zero_grad()
    cached_backward(module, views, 8, terms)
    torch.testing.assert_close(gradient(module), want, rtol=1e-5, atol=1e-5)


def test_gradients_add_to_those_already_there() -> None:
    module, views, loss = network(), batches(), BarlowTwinsLoss()
    cached_backward(module, views, 8, loss.terms)
    once = gradient(module).clone()
    cached_backward(module, views, 8, loss.terms)
    torch.testing.assert_close(gradient(module), 2 * once)


def micro_batched_reference(module: nn.Module, views: list[Tensor], micro_batch: int) -> Tensor:
    """One graph over all micro-batches in the same order: what two passes must add up to."""
    z = [
        torch.cat([module(piece) for piece in torch.split(view, part_sizes(len(view), micro_batch))]) for view in views
    ]
    loss: Tensor = BarlowTwinsLoss()(*z)
    loss.backward()  # type: ignore[no-untyped-call]
    return gradient(module)


def test_dropout_is_the_same_in_both_passes_and_draws_once() -> None:
    module, views = network(nn.Dropout(0.5)), batches()
    torch.manual_seed(5)
    want = micro_batched_reference(module, views, 6)
    after = torch.rand(1)
    module.zero_grad()
    torch.manual_seed(5)
    cached_backward(module, views, 6, BarlowTwinsLoss().terms)
    torch.testing.assert_close(gradient(module), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(("device", "known_by"), [("cuda:1", [torch.device("cuda:1")]), ("mps", [])])
def test_the_random_state_of_the_device_is_kept_and_given_back(
    device: str, known_by: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, calls = torch.tensor([7]), list[tuple[object, ...]]()
    module = torch.cuda if device.startswith("cuda") else torch.mps

    def get(*where: object) -> Tensor:
        calls.append(where)
        return kept

    monkeypatch.setattr(module, "get_rng_state", get)
    monkeypatch.setattr(module, "set_rng_state", lambda *state: calls.append(state))
    _RandomState.now(torch.device(device)).restore()
    assert calls == [tuple(known_by), (kept, *known_by)]


def test_batch_norm_takes_its_statistics_from_micro_batches_and_counts_each_once() -> None:
    views = batches()
    reference, module = network(nn.BatchNorm1d(16)), network(nn.BatchNorm1d(16))
    want = micro_batched_reference(reference, views, 5)
    cached_backward(module, views, 5, BarlowTwinsLoss().terms)
    torch.testing.assert_close(gradient(module), want, rtol=1e-5, atol=1e-5)
    for got, exact in zip(module.buffers(), reference.buffers(), strict=True):
        assert torch.equal(got, exact)
    assert (one_piece(module, views, BarlowTwinsLoss()) - want).norm() > 0.01 * want.norm()  # as documented


@pytest.mark.parametrize(
    ("samples", "micro_batch", "sizes"),
    [
        (16, 5, [4, 4, 4, 4]),
        (25, 4, [4, 4, 4, 4, 3, 3, 3]),
        (9, 2, [3, 2, 2, 2]),
        (3, 2, [3]),
        (7, 1, [1] * 7),
        (6, 8, [6]),
    ],
)
def test_a_batch_is_cut_into_equal_parts_to_within_one(samples: int, micro_batch: int, sizes: list[int]) -> None:
    assert part_sizes(samples, micro_batch) == sizes


@pytest.mark.parametrize(("samples", "micro_batch"), [(16, 5), (25, 4), (9, 2)])
def test_no_micro_batch_is_left_with_the_one_sample_that_batch_norm_refuses(samples: int, micro_batch: int) -> None:
    views = batches(n=samples)
    reference, module = network(nn.BatchNorm1d(16)), network(nn.BatchNorm1d(16))
    want = micro_batched_reference(reference, views, micro_batch)
    cached_backward(module, views, micro_batch, BarlowTwinsLoss().terms)
    torch.testing.assert_close(gradient(module), want, rtol=1e-5, atol=1e-5)


@given(samples=st.integers(1, 300), micro_batch=st.integers(2, 300))
def test_parts_hold_every_sample_and_exceed_what_was_asked_only_to_save_a_single_one(
    samples: int, micro_batch: int
) -> None:
    sizes = part_sizes(samples, micro_batch)
    assert sum(sizes) == samples
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, samples)
    assert max(sizes) <= micro_batch + (micro_batch == 2 and samples % 2)


def test_a_function_around_a_module_names_it_and_its_buffers_move_once() -> None:
    views, module, twin = batches(), network(nn.BatchNorm1d(16)), network(nn.BatchNorm1d(16))
    cached_backward(lambda x: module(x) * 1.0, views, 5, BarlowTwinsLoss().terms, module=module)
    cached_backward(twin, views, 5, BarlowTwinsLoss().terms)
    for got, exact in zip(module.buffers(), twin.buffers(), strict=True):
        assert torch.equal(got, exact)


def test_inside_autocast_the_weights_still_get_their_gradients() -> None:
    module, views, loss = network(), batches(), BarlowTwinsLoss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = [module(view) for view in views]
    loss(*z).backward()
    want = gradient(module)
    module.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = cached_backward(module, views, 8, loss.terms)
    assert terms["loss"].dtype == torch.float32
    assert (gradient(module) - want).norm() < 0.02 * want.norm()


def test_autocast_does_not_reach_the_backward_pass_of_a_loss_that_computes_in_float32() -> None:
    scale = torch.linspace(0.5, 2.0, 6).requires_grad_()  # an encoder with nothing in it for autocast to round
    views, loss = batches(), NTXentLoss()
    cached_backward(lambda x: x * scale, views, 8, loss.terms)
    assert scale.grad is not None
    want, scale.grad = scale.grad, None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached_backward(lambda x: x * scale, views, 8, loss.terms)
    torch.testing.assert_close(scale.grad, want)


def test_the_scalers_factor_is_on_the_gradients_and_not_on_the_terms() -> None:
    module, views, loss = network(), batches(), BarlowTwinsLoss()
    plain = cached_backward(module, views, 8, loss.terms)
    want = gradient(module).clone()
    module.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaled = cached_backward(module, views, 8, loss.terms, scaler=scaler)
    torch.testing.assert_close(gradient(module), 8 * want)
    torch.testing.assert_close(scaled["loss"], plain["loss"])


class SavedBytes:
    """Bytes that autograd holds for backward passes, now and at most."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def pack(self, x: Tensor) -> Tensor:
        held = x.detach()
        size = held.numel() * held.element_size()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(held, self.drop, size)
        return held

    def drop(self, size: int) -> None:
        self.live -= size


def peak_bytes(step: Callable[[], object]) -> int:
    counter = SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda x: x):
        step()
    return counter.peak


def test_peak_memory_falls_with_the_micro_batch() -> None:
    # A deep network on a wide batch: what autograd keeps is nearly all activations.
    module = nn.Sequential(nn.Linear(6, 256), *(nn.Tanh() for _ in range(40)), nn.Linear(256, 4))
    views, loss = batches(n=512), BarlowTwinsLoss(form="correlation")
    whole = peak_bytes(lambda: one_piece(module, views, loss))
    cached = {m: peak_bytes(lambda m=m: cached_backward(module, views, m, loss.terms)) for m in (256, 64, 16)}  # type: ignore[misc]
    assert cached[256] < 0.3 * whole  # a quarter: two views of two micro-batches
    assert cached[64] < 0.3 * cached[256]
    assert cached[16] < 0.5 * cached[64]


RANK = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from barlow.objectives import BarlowTwinsLoss
from barlow.training.gradient_cache import cached_backward, part_sizes
torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12)).double()
views = [torch.randn(20, 6, dtype=torch.float64) for _ in range(2)]
BarlowTwinsLoss()(*(module(view) for view in views)).backward()
want = [p.grad.clone() for p in module.parameters()]
module.zero_grad()
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
wrapped = nn.parallel.DistributedDataParallel(module)
reductions = []
wrapped.register_comm_hook(None, lambda state, bucket: (reductions.append(1),
    dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0]))[1])
cached_backward(wrapped, [view[rank * 10:][:10] for view in views], 4, BarlowTwinsLoss().terms)
for p, exact in zip(module.parameters(), want, strict=True):
    torch.testing.assert_close(p.grad, exact, rtol=1e-9, atol=1e-9)
assert len(reductions) == 1, reductions
dist.barrier()
os._exit(0)  # torch's threads that hold the hook's future may end the interpreter's shutdown with an abort
"""


@pytest.mark.slow
def test_two_ranks_average_once_and_get_the_one_process_gradient(tmp_path: object) -> None:
    command = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*command, str(rank), f"{tmp_path}/store"]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


def test_unusable_arguments_are_refused() -> None:
    terms = BarlowTwinsLoss().terms
    with pytest.raises(InputError, match="at least 1 sample; received 0"):
        cached_backward(network(), batches(), 0, terms)
    with pytest.raises(InputError, match=r"of one length, and at least one; received lengths \[20, 19\]"):
        cached_backward(network(), [batches()[0], batches()[0][:19]], 4, terms)
    with pytest.raises(InputError, match=r"received lengths \[\]"):
        cached_backward(network(), [], 4, terms)
