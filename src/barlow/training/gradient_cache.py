"""A large-batch step in the memory of a small one: gradient caching (Gao et al., 2021, arXiv 2101.06983).

Correlation losses couple all samples of a batch, so summing the losses of micro-batches is another loss. Here the
embeddings of all micro-batches are made first, without graphs; the loss of the whole batch gives the gradient of each
embedding; a second pass over the micro-batches carries it to the parameters. One more forward pass buys a peak memory
that no longer grows with the batch.

The gradient is that of the one-piece batch for an encoder that treats samples alone. An encoder with BatchNorm takes
its statistics from each micro-batch: the gradient is then that of this encoder, not of one that saw the whole batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from barlow.errors import InputError


def cached_backward(
    forward: Callable[[Tensor], Tensor],
    views: Sequence[Tensor],
    micro_batch: int,
    terms: Callable[..., dict[str, Tensor]],
    *,
    module: nn.Module | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """Add the gradient of the whole batch's loss to `.grad` of the parameters of `forward`, a micro-batch at a time.

    Both passes see the same randomness (dropout, stochastic depth) and the same buffers, and leave them as one pass
    would: BatchNorm's running statistics move once per micro-batch. The caller's autocast region holds in both. With
    DistributedDataParallel the gradients are averaged once, in the last backward pass.

    Args:
        forward: makes embeddings [b, D] from inputs [b, ...]; an encoder with its projector, say.
        views: the input batches, each [N, ...], all of one length.
        micro_batch: how many samples to embed at a time, at most (see `part_sizes`).
        terms: the loss, as named scalars with "loss" among them, from one embedding [N, D] per view: `loss.terms`.
        module: whose buffers to rewind and, for DistributedDataParallel, whose averaging to hold back; `forward` itself
            where that is a module. A function around a module that has either must name it here.
        scaler: scales the loss for float16.

    Returns:
        The terms, detached.

    Raises:
        InputError: for a micro-batch below 1, no views, or views of different lengths.
    """
    _check(views, micro_batch)
    module = forward if module is None and isinstance(forward, nn.Module) else module
    start = _Buffers.of(module)
    sizes = part_sizes(len(views[0]), micro_batch)
    embeddings, states = _embed(forward, views, sizes)
    results, grads = _loss_and_gradients(terms, embeddings, scaler)
    start.restore()
    # The casts of weights that autocast made without gradients must not be met again in the second pass.
    torch.clear_autocast_cache()
    pieces = [(x, g) for view, grad in zip(views, grads, strict=True) for x, g in _cut(sizes, view, grad)]
    last = len(pieces) - 1
    with _rewound(views[0].device):
        for k, ((inputs, grad), state) in enumerate(zip(pieces, states, strict=True)):
            state.restore()
            with nullcontext() if k == last else _no_sync(module):
                z = forward(inputs)
                with torch.autocast(device_type=z.device.type, enabled=False):
                    z.backward(grad)  # type: ignore[no-untyped-call]
    return results


def part_sizes(samples: int, micro_batch: int) -> list[int]:
    """How a batch is cut: into as few parts of at most `micro_batch` samples as there can be, all equal to within one.

    Unless `micro_batch` is 1, no part of a larger batch is left with a single sample, in which BatchNorm has nothing to
    normalise: an odd batch in micro-batches of 2 has one part of 3.
    """
    parts = -(-samples // micro_batch)
    if micro_batch > 1:
        parts = min(parts, max(1, samples // 2))
    least, larger = divmod(samples, parts)
    return [least + 1] * larger + [least] * (parts - larger)


def _check(views: Sequence[Tensor], micro_batch: int) -> None:
    if micro_batch < 1:
        raise InputError(f"A micro-batch holds at least 1 sample; received {micro_batch}.")
    lengths = [len(view) for view in views]
    if len(set(lengths)) != 1:
        raise InputError(f"The views must be of one length, and at least one; received lengths {lengths}.")


def _embed(
    forward: Callable[[Tensor], Tensor], views: Sequence[Tensor], sizes: list[int]
) -> tuple[list[Tensor], list["_RandomState"]]:
    """The embeddings of each view, and the random state that each micro-batch met, in order."""
    embeddings, states = [], []
    with torch.no_grad():
        for view in views:
            pieces = []
            for (inputs,) in _cut(sizes, view):
                states.append(_RandomState.now(inputs.device))
                pieces.append(forward(inputs))
            embeddings.append(torch.cat(pieces))
    return embeddings, states


def _loss_and_gradients(
    terms: Callable[..., dict[str, Tensor]], embeddings: Sequence[Tensor], scaler: torch.amp.GradScaler | None
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    leaves = [z.detach().requires_grad_() for z in embeddings]
    results = terms(*leaves)
    loss = results["loss"] if scaler is None else scaler.scale(results["loss"])
    # The backward pass of a product would be cast as well, though the loss kept its own out of autocast's reach.
    with torch.autocast(device_type=leaves[0].device.type, enabled=False):
        grads = torch.autograd.grad(loss, leaves)
    return {name: term.detach() for name, term in results.items()}, grads


def _cut(sizes: list[int], *batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(batch, sizes) for batch in batches), strict=True)


def _no_sync(module: nn.Module | None) -> AbstractContextManager[None]:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


@dataclass(frozen=True)
class _RandomState:
    """The random state of the CPU and, where the inputs are there, of one CUDA device or of Apple's GPU."""

    cpu: Tensor
    device: torch.device
    on_device: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "_RandomState":
        on_device = None
        if device.type == "cuda":
            on_device = torch.cuda.get_rng_state(device)
        elif device.type == "mps":
            on_device = torch.mps.get_rng_state()
        return cls(torch.get_rng_state(), device, on_device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.on_device is None:
            return
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.on_device, self.device)
        else:
            torch.mps.set_rng_state(self.on_device)


@contextmanager
def _rewound(device: torch.device) -> Iterator[None]:
    """A region that may turn the random state back, and leaves it as it found it."""
    state = _RandomState.now(device)
    try:
        yield
    finally:
        state.restore()


@dataclass(frozen=True)
class _Buffers:
    """A module's buffers and copies of their values. Restored before the second pass, which then moves them alike."""

    buffers: list[Tensor]
    values: list[Tensor]

    @classmethod
    def of(cls, module: nn.Module | None) -> "_Buffers":
        buffers = [] if module is None else list(module.buffers())
        return cls(buffers, [buffer.clone() for buffer in buffers])

    def restore(self) -> None:
        with torch.no_grad():
            for buffer, value in zip(self.buffers, self.values, strict=True):
                buffer.copy_(value)
