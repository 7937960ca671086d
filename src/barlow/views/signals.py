"""Views of signals [B, C, T]: time series, audio, EEG."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.views.maker import check_statistics
from barlow.views.random import Stream
from barlow.views.recipes import Recipe, SignalView


class SignalViewMaker:
    """Makes the views of a batch of signals; called as `ViewMaker`, with the same promise about the draws."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`mean` and `std` per channel, in the unit of the signal."""
        check_statistics(mean, std, channels)
        self.recipe = recipe
        self.channels = channels
        self.seed = seed
        self.dtype = dtype
        self._mean = torch.tensor(mean, dtype=torch.float32)[:, None]
        self._std = torch.tensor(std, dtype=torch.float32)[:, None]
        self._views = _signal_views(recipe)

    def __call__(self, signals: Tensor, ids: Tensor, epoch: int) -> list[Tensor]:
        """Views [B, C, T], normalised, of signals [B, C, T] with ids int64 [B]."""
        if signals.ndim != 3 or signals.shape[1] != self.channels:
            raise InputError(f"Views need signals [B, {self.channels}, T], got {list(signals.shape)}.")
        mean, std = (of.to(signals.device, non_blocking=True) for of in (self._mean, self._std))
        x = (signals.float() - mean) / std
        views = []
        for v, view in enumerate(self._views):
            stream = Stream.of(self.seed, epoch, ids.cpu(), [v])
            views.append(make_view(x, stream, view).to(self.dtype))
        return views


def _signal_views(recipe: Recipe) -> tuple[SignalView, ...]:
    views = []
    for view in recipe.views:
        if not isinstance(view, SignalView):
            raise InputError(f"Recipe '{recipe.name}' is of kind '{recipe.kind}'; the data are signals.")
        views += [replace(view, count=1)] * view.count
    return tuple(views)


def make_view(x: Tensor, stream: Stream, view: SignalView) -> Tensor:
    """One view of normalised signals [B, C, T], of which 0 is the mean."""
    luck = stream.field("signal", 8, x.device, numbers="uniform")  # [B, 8]
    flips = luck[:, 7] < view.flip
    x = torch.where(flips[:, None, None], x.flip(2), x)
    x = resample_time(x, time_positions(luck[:, :4], x.shape[2], view))
    x = x * (1.0 + view.scale * (2.0 * luck[:, 4, None, None] - 1.0))
    if view.jitter:
        x = x + view.jitter * stream.field("signal noise", x[0].numel(), x.device).view_as(x)
    x = mask_time(x, start=luck[:, 5], share=view.mask[0] + (view.mask[1] - view.mask[0]) * luck[:, 6])
    return x * _kept_channels(stream, x, view.channel_drop)[:, :, None]


def time_positions(luck: Tensor, length: int, view: SignalView) -> Tensor:
    """Where each of the `length` samples of the view lies in its signal: float32 [B, T], from luck uniform [B, 4].

    A crop, stretched to the full length, whose time runs as u + a sin(pi u) / pi + b sin(2 pi u) / (2 pi): its speed
    1 + a cos(pi u) + b cos(2 pi u) stays positive for |a| + |b| <= warp < 1.
    """
    share = view.crop[0] + (view.crop[1] - view.crop[0]) * luck[:, :1]
    start = (1.0 - share) * luck[:, 1:2]
    u = torch.linspace(0.0, 1.0, length, device=luck.device)[None]
    a, b = (view.warp / 2.0 * (2.0 * luck[:, i : i + 1] - 1.0) for i in (2, 3))
    warped = u + a * torch.sin(math.pi * u) / math.pi + b * torch.sin(2.0 * math.pi * u) / (2.0 * math.pi)
    return (start + share * warped) * (length - 1)


def resample_time(x: Tensor, positions: Tensor) -> Tensor:
    """Linear interpolation of signals [B, C, T] at positions [B, T'] in samples, in [0, T - 1]."""
    left = positions.floor().clamp(0, x.shape[2] - 2 if x.shape[2] > 1 else 0)
    weight = (positions - left)[:, None, :]
    index = left.long()[:, None, :].expand(-1, x.shape[1], -1)
    right = (index + 1).clamp(max=x.shape[2] - 1)
    return torch.lerp(x.gather(2, index), x.gather(2, right), weight)


def mask_time(x: Tensor, start: Tensor, share: Tensor) -> Tensor:
    """Zero one stretch of each signal [B, C, T]: `share` [B] of its time, placed by `start` [B] in [0, 1)."""
    length = x.shape[2]
    width = (share * length).round()[:, None]
    first = (start[:, None] * (length - width + 1)).floor()
    t = torch.arange(length, device=x.device)[None]
    return x.masked_fill(((t >= first) & (t < first + width))[:, None, :], 0.0)


def _kept_channels(stream: Stream, x: Tensor, drop: float) -> Tensor:
    luck = stream.field("channel drop", x.shape[1], x.device, numbers="uniform")
    return ((luck >= drop) | (luck == luck.amax(dim=1, keepdim=True))).to(x.dtype)
