"""An encoder under measurement: in eval mode, and provably the same before and after."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by name, the non-persistent buffers that `state_dict` leaves out included."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def encoder_hash(encoder: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(encoder), key=lambda item: item[0]):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        if value.numel():
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put the modules in eval mode, and give every submodule its own mode back afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[str]:
    """Eval mode, and the encoder's hash, which must be the same at the end.

    Raises:
        RuntimeError: A weight or a buffer (BatchNorm's running statistics, say) changed inside the block.
    """
    before = encoder_hash(encoder)
    with eval_mode(encoder):
        yield before
    if encoder_hash(encoder) != before:
        raise RuntimeError("the frozen encoder's weights or buffers changed while it was being evaluated")
