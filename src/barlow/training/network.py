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
