"""Weight gradients of 3 x 3 convolutions in bfloat16: oneDNN's kernel beside nine matrix products, by shape.

    OMP_NUM_THREADS=1 python -m benchmarks.convolution

Prints medians of milliseconds of one thread, and their ratio; batch 256, channels-last, stride 1.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from barlow.models.network import _SmallMapConv

SHAPES = [(64, 64, 12), (128, 128, 12), (128, 128, 6), (128, 256, 6), (256, 256, 8), (256, 256, 6), (256, 256, 3)]
SHAPES += [(512, 512, 4), (512, 512, 2)]
REPEATS = 5


def milliseconds(step: Callable[[], object]) -> float:
    """Median processor time of a call, after one that does not count."""
    step()
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return 1000 * statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    print(f"AMX {torch.cpu._is_amx_tile_supported()}, torch {torch.__version__}")
    print("| channels | side | oneDNN, ms | products, ms | ratio |\n|---|---:|---:|---:|---:|")
    for inputs, outputs, side in SHAPES:
        x = torch.randn(256, inputs, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
        weight = torch.randn(outputs, inputs, 3, 3, requires_grad=True)
        grad = torch.randn(256, outputs, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
        y = _SmallMapConv.apply(x, weight, 1)
        plain = nn.functional.conv2d(x, weight.bfloat16(), padding=1)
        one = milliseconds(lambda y=plain, w=weight, g=grad: torch.autograd.grad(y, w, g, retain_graph=True))  # type: ignore[misc]
        two = milliseconds(lambda y=y, w=weight, g=grad: torch.autograd.grad(y, w, g, retain_graph=True))  # type: ignore[misc]
        print(f"| {inputs} to {outputs} | {side} | {one:.1f} | {two:.1f} | {one / two:.1f} |")


if __name__ == "__main__":
    main()
