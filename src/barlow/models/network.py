"""Encoder and projector as one module, so that data-parallel wrappers see a single forward pass per step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

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
    """A convolution that goes around two weak spots of oneDNN's bfloat16 kernels (seen in torch 2.14).

    Where its kernel reaches over all of a tiny map, it computes in float32: oneDNN leaves gradients of the weights that
    no pixel meets unwritten, whatever was in memory, NaN at times. Where maps are small and channels many, the gradient
    of its weights is made of matrix products (`_SmallMapConv`).
    """

    def forward(self, input: Tensor) -> Tensor:
        if self._some_weight_meets_no_pixel(input.shape[-2:]):
            with torch.autocast(input.device.type, enabled=False):
                return super().forward(input.float())
        if self.training and self._has_slow_weight_gradient(input):
            with torch.autocast(input.device.type, enabled=False):
                return cast(Tensor, _SmallMapConv.apply(input.bfloat16(), self.weight, self.stride[0]))
        return super().forward(input)

    def _has_slow_weight_gradient(self, input: Tensor) -> bool:
        """On AMX, products are 1.2 to 8 times as fast for these shapes: benchmarks/results/convolution.md."""
        plain = (self.kernel_size, self.padding, self.dilation) == ((3, 3), (1, 1), (1, 1)) and self.bias is None
        height, width = (-(-side // self.stride[0]) for side in input.shape[-2:])
        large = self.in_channels * self.out_channels >= 2**15
        return plain and large and height * width <= 36 and torch.cpu._is_amx_tile_supported()

    def _some_weight_meets_no_pixel(self, sides: Sequence[int]) -> bool:
        if all(n > k for n, k in zip(sides, self.kernel_size, strict=True)):
            return False  # the usual case, at no cost
        if isinstance(self.padding, str):
            return True
        axes = zip(sides, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return any(_meets_no_pixel(*axis) for axis in axes)


class _SmallMapConv(torch.autograd.Function):
    """A 3 x 3 convolution with padding 1 in bfloat16, whose weight gradient is nine matrix products, one per tap.

    oneDNN's own kernel for it runs at 3 to 30% of the rate of a matrix product when maps are small: on 256 channels at
    3 x 3 pixels 25 ms against 5.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return nn.functional.conv2d(x, weight.to(x.dtype), padding=1, stride=stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d_input(x.shape, weight.to(x.dtype), grad, ctx.stride, 1)  # type: ignore[no-untyped-call]
        height, width = (side * ctx.stride for side in grad.shape[-2:])
        padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # [B, h + 2, w + 2, C_in]
        outputs = grad.permute(0, 2, 3, 1).flatten(0, 2).mT  # [C_out, B h' w']
        taps = [
            outputs @ padded[:, i : i + height : ctx.stride, j : j + width : ctx.stride].flatten(0, 2)
            for i in range(3)
            for j in range(3)
        ]
        return grad_x, torch.stack(taps, dim=-1).view_as(weight).to(weight.dtype), None


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
