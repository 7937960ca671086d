"""Ops that hide or disturb pixels: additive noise, erased rectangles, and the fixed pixel shuffle."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from barlow.views.random import Stream, sample_keys

_TRIES = 10  # as torchvision's RandomErasing, before it leaves the image alone


def gaussian_noise_(x: Tensor, std: Tensor, stream: Stream, top: float) -> Tensor:
    """Add normal noise of standard deviation std [B] (share of [0, top]) to samples [B, C, H, W], then clamp."""
    field = stream.field("noise", x[0].numel(), x.device).view_as(x)
    return x.add_(field.mul_(top * std.to(x.device, x.dtype, non_blocking=True)[:, None, None, None])).clamp_(0, top)


def draw_rectangles(stream: Stream, size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Rectangles [B, 4] (top, left, height, width) in views of size x size: torchvision's RandomErasing.get_params,
    all ten tries at once. A sample of which no try fits gets an empty rectangle."""
    luck = stream.field("erase", 2 * _TRIES + 2, numbers="uniform").double()
    area = size * size * (scale[0] + (scale[1] - scale[0]) * luck[:, :_TRIES])
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (log_low + (log_high - log_low) * luck[:, _TRIES:-2]).exp()
    tried = torch.stack([(area * aspect).sqrt().round(), (area / aspect).sqrt().round()], dim=2).long()  # [B, tries, 2]
    fits = (tried < size).all(dim=2)
    first = fits.byte().argmax(dim=1)
    extent = tried[torch.arange(len(tried)), first] * fits.any(dim=1, keepdim=True)
    place = (luck[:, -2:] * (size - extent + 1)).long()
    return torch.cat([place, extent], dim=1)


def erase_(x: Tensor, rectangles: Tensor, value: float = 0.0) -> Tensor:
    """Fill the rectangle [B, 4] (top, left, height, width) of each sample [B, C, H, W]."""
    top, left, height, width = rectangles.to(x.device, non_blocking=True)[:, :, None].unbind(1)
    row, column = (torch.arange(n, device=x.device)[None] for n in x.shape[2:])
    rows = (row >= top) & (row < top + height)
    columns = (column >= left) & (column < left + width)
    return x.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], value)


@lru_cache(maxsize=8)
def pixel_permutation(height: int, width: int) -> Tensor:
    """One fixed permutation of the height * width pixel positions, int64; the same in every run."""
    return sample_keys(torch.arange(height * width), "pixel permutation").argsort()


def shuffle_pixels(x: Tensor) -> Tensor:
    """Move the pixels of all samples and channels [B, C, H, W] by `pixel_permutation`."""
    return x.flatten(2)[:, :, pixel_permutation(*x.shape[2:]).to(x.device, non_blocking=True)].view_as(x)
