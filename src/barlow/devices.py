"""Devices by name, and what they can do."""

import torch

from barlow.errors import InputError


def known_device(name: str | torch.device) -> torch.device:
    """The device of that name. Raises InputError where there is no such device, or not on this machine."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device '{name}'; use cpu, cuda, mps or auto") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise InputError(f"device '{name}' is not available here; use --device cpu or auto")
    return device


def has_fast_bfloat16(device: str | torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices natively, so that they are faster than float32 ones."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
