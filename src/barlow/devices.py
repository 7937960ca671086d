"""Devices by name."""

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
