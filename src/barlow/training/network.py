"""Encoder and projector as one module, so that data-parallel wrappers see a single forward pass per step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from barlow.models import Encoder


class TwinNetwork(nn.Module):
    """Views in, embeddings out.

    One pass of the encoder *per view*: batch normalisation sees one view at a time, as in the papers' code. Some
    methods train a head after the projector: a predictor, prototypes.
    """

    def __init__(self, encoder: Encoder, projector: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.head = head

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings `[B, D]` of each view `[B, C, h, w]`; with a head then what it makes of each embedding."""
        embeddings = [self.projector(self.encoder(view)) for view in views]
        return embeddings if self.head is None else [*embeddings, *(self.head(z) for z in embeddings)]


class GuardedConv2d(nn.Conv2d):
    """A convolution that computes in float32 where its kernel reaches over all of a tiny map.

    There, oneDNN's bfloat16 kernel (seen in torch 2.14) leaves gradients of the weights that no pixel meets unwritten:
    whatever was in memory, NaN at times.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self._some_weight_meets_no_pixel(input.shape[-2:]):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())

    def _some_weight_meets_no_pixel(self, sides: Sequence[int]) -> bool:
        if all(n > k for n, k in zip(sides, self.kernel_size, strict=True)):
            return False  # the usual case, at no cost
        if isinstance(self.padding, str):
            return True
        axes = zip(sides, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return any(_meets_no_pixel(*axis) for axis in axes)


def _meets_no_pixel(n: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    starts = range(-padding, n + padding - dilation * (kernel - 1), stride)
    return not all(any(0 <= start + dilation * tap < n for start in starts) for tap in range(kernel))


def guard_convolutions(network: nn.Module) -> None:
    """Make every plain dense convolution of a network a `GuardedConv2d`; weights and names stay as they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.groups == 1:
            module.__class__ = GuardedConv2d


def is_of_compiler(error: BaseException) -> bool:
    """Whether an exception is of torch.compile itself: no C++ compiler, an operation that it cannot translate, ..."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Convolutions on NVIDIA GPUs by kernels that give the same bits every time, or resuming would not be exact."""
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    flags.deterministic, flags.benchmark = True, False  # what a benchmark chooses differs between processes
    try:
        yield
    finally:
        flags.deterministic, flags.benchmark = before


def autocast(device: str, precision: str) -> torch.autocast:
    """The mixed-precision region of forward passes; a no-op in float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def to_layout(batch: Tensor) -> Tensor:
    """Channels-last memory for images, which convolutions read fastest on both CPU and GPU."""
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch
