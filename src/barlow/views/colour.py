"""Colour ops on batches of views [B, C, H, W] with one parameter per sample, in place.

Values lie in [0, top]. Every op equals the function of the same name in torchvision.transforms.v2.functional on float
images, which clamps after each op and, unlike Pillow, does not round to integers between ops.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

JITTER_OPS = ("brightness", "contrast", "saturation", "hue")
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision writes it


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.device, x.dtype, non_blocking=True).view(-1, 1, 1, 1)


@lru_cache(maxsize=8)
def luma_weights(channels: int, device: torch.device) -> Tensor:
    """[C]: how much each channel counts in the gray of `luma`."""
    weights = _LUMA if channels == 3 else (1.0 / channels,) * channels
    return torch.tensor(weights, device=device)


def luma(x: Tensor) -> Tensor:
    """The gray plane [B, H, W] of RGB images; the mean of the channels for any other number of channels."""
    if x.shape[1] != 3:
        return x.mean(dim=1)
    red, green, blue = x.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def brightness_(x: Tensor, factor: Tensor, top: float) -> Tensor:
    """Multiply each sample by its factor [B]."""
    return x.mul_(_per_sample(factor, x)).clamp_(0, top)


def contrast_(x: Tensor, factor: Tensor, top: float) -> Tensor:
    """Blend each sample with its mean gray: factor * x + (1 - factor) * mean."""
    factor = _per_sample(factor, x)
    gray = x.mean(dim=(2, 3)) @ luma_weights(x.shape[1], x.device).to(x.dtype)
    return x.mul_(factor).add_((1.0 - factor).mul_(gray.view(-1, 1, 1, 1))).clamp_(0, top)


def saturation_(x: Tensor, factor: Tensor, top: float) -> Tensor:
    """Blend each sample with its gray image: factor * x + (1 - factor) * gray. One channel: unchanged."""
    if x.shape[1] == 1:
        return x
    factor = _per_sample(factor, x)
    gray = luma(x)[:, None].mul_(1.0 - factor)
    return x.mul_(factor).add_(gray).clamp_(0, top)


def hue_(x: Tensor, shift: Tensor, top: float) -> Tensor:
    """Turn the hue of RGB samples by a share `shift` [B] in [-0.5, 0.5] of the colour circle. One channel: unchanged.

    The RGB -> HSV -> RGB of torchvision without its masks. With hue h in (-3, 3] (red 0, green 2, blue -2), chroma c
    and smallest channel m, the channel whose pure colour is at k is m + c * clip(2 - d, 0, 1), d the distance from h
    to k around the circle of length 6; solved for h at red that is |h| = 1 + (g + b - r - m) / c, signed as g - b.
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    low = torch.minimum(red, green).minimum(blue)
    chroma = torch.maximum(red, green).maximum(blue).sub_(low)
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_(min=1e-12)).add_(1.0)
    hue = hue.copysign_(green - blue)
    torch.add(hue[:, None], _hue_offsets(shift.to(x.device, x.dtype, non_blocking=True)), out=x)
    # |t| <= 7, where 2 - distance, clipped to [0, 1], is ||t| - 3| clipped to [1, 2], less 1
    x.abs_().sub_(3.0).abs_().clamp_(1, 2)
    return torch.lerp((low - chroma)[:, None], low[:, None], x, out=x)


# minus the places of red, green and blue on the colour circle of length 6, for a turn forward and for one backward
_FORWARD = torch.tensor([[[[0.0]], [[-2.0]], [[-4.0]]]])
_BACKWARD = torch.tensor([[[[0.0]], [[4.0]], [[2.0]]]])


def _hue_offsets(shift: Tensor) -> Tensor:
    """[B, 3, 1, 1]: six times the shift less the places, of which those are taken for which |hue + offset| <= 7."""
    shift = shift.view(-1, 1, 1, 1)
    below, above = (of.to(shift.device, non_blocking=True) for of in (_BACKWARD, _FORWARD))
    places = torch.where(shift < 0, below, above)
    return places.add(shift, alpha=6.0)


_OPS = {"brightness": brightness_, "contrast": contrast_, "saturation": saturation_, "hue": hue_}


def jitter_(x: Tensor, runs: Sequence[tuple[tuple[str, ...], int]], factors: dict[str, Tensor], top: float) -> Tensor:
    """Apply to each sample the ops of its order, one after another.

    `runs` holds (order, how many samples in a row have it). It must be sorted, so that samples which begin with the
    same ops are neighbours: they share one call on a slice, and nothing is gathered or masked.
    """
    for slot in range(len(runs[0][0]) if runs else 0):
        start = 0
        for prefix, alike in groupby(runs, key=lambda run: run[0][: slot + 1]):
            stop = start + sum(count for _, count in alike)
            op = prefix[slot]
            _OPS[op](x[start:stop], factors[op][start:stop], top)
            start = stop
    return x


def grayscale_(x: Tensor) -> Tensor:
    """Replace every channel by the gray plane."""
    x[:] = luma(x)[:, None]
    return x


def solarize_(x: Tensor, top: float) -> Tensor:
    """Invert the values at or above half of the range: min(x, top - x)."""
    return torch.minimum(x, top - x, out=x)


def posterize_(x: Tensor, bits: int, top: float) -> Tensor:
    """Keep the upper `bits` of the eight bits of each value."""
    step = 2 ** (8 - bits)
    levels = x.mul_(255.0 / top).add_(1e-3).div_(step).floor_()  # 1e-3: n * (255 / top) may fall just below an integer
    return levels.mul_(step * top / 255.0)


def scale_channels_(x: Tensor, gains: Tensor, top: float) -> Tensor:
    """Multiply each channel of each sample by its gain [B, C]; a gain of 0 drops the channel."""
    return x.mul_(gains.to(x.device, x.dtype, non_blocking=True)[:, :, None, None]).clamp_(0, top)
