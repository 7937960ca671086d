"""Memory that is used again: working tensors of a few megabytes, kept per thread.

The allocator of the C library gives blocks of this size back to the system when they are freed; fetching them again,
page by page, took a quarter of the time of making small views.
"""

import math
import threading

import torch
from torch import Tensor

_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised tensor on the device of `like`, valid until this thread asks for the same name again."""
    if like.device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=like.device)  # these devices keep their own memory
    buffers: dict[str, Tensor] = vars(_kept)
    size, key = math.prod(shape), f"{name} {dtype}"
    if key not in buffers or buffers[key].numel() < size:
        buffers[key] = torch.empty(size, dtype=dtype)
    return buffers[key][:size].view(shape)
