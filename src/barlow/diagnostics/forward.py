"""One pass of a held-out slice through encoder and projector, in eval mode and in blocks."""

import torch
from torch import Tensor, nn

from barlow.evaluation.frozen import eval_mode

BLOCK = 256
"""Images in one forward pass."""


@torch.no_grad()
def forward(encoder: nn.Module, projector: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features h [N, F] and embeddings z [N, D], float32, of model inputs [N, C, h, w]."""
    with eval_mode(encoder, projector):
        features = [encoder(block).float() for block in torch.split(images, BLOCK)]
        embeddings = [projector(block).float() for block in features]
    return torch.cat(features), torch.cat(embeddings)
