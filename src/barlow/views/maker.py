"""ViewMaker: uint8 images and sample ids in, normalised views out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.views import colour, geometry
from barlow.views.blur import gaussian_blur_
from barlow.views.geometry import Box, Boxes
from barlow.views.noise import draw_rectangles, erase_, gaussian_noise_, shuffle_pixels
from barlow.views.random import Stream
from barlow.views.recipes import Recipe, ViewRecipe

_CHUNK = {"cpu": 2**18, "cuda": 2**28}  # values worked on at a time: a megabyte stays in a core's L2 cache
_MATRIX_LIMIT = 48  # pixels: up to here, on a CPU, two matrix products beat one kernel call per image


@dataclass(frozen=True)
class _Draws:
    """The random parameters of one view of a batch, each [B] (channel gains [B, C]), in the batch's order."""

    order: Tensor  # index into the orders of jitter; -1: none
    factors: dict[str, Tensor]
    gains: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor
    posterize: Tensor
    noise_std: Tensor  # 0: none
    rectangles: Tensor  # [B, 4] top, left, height, width; empty: none

    def __getitem__(self, index: Tensor) -> "_Draws":
        values = {name: value[index] for name, value in vars(self).items() if name != "factors"}
        return _Draws(**values, factors={op: factor[index] for op, factor in self.factors.items()})


class ViewMaker:
    """Makes the views of a batch: `maker(images, ids, epoch)` returns one tensor [B, C, h, w] per view.

    A view is a pure function of (seed, epoch, sample id, which view) and its image: neither the rest of the batch, nor
    workers, ranks or earlier calls change it. Views are made on the device of the images.

    Large images need not become one tensor: `boxes` draws where the views lie, `cut` cuts them out of one decoded
    image in a loader's worker, and `finish` makes views of the stacked cuts on the training device.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        image_size: int,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ) -> None:
        """`mean` and `std` per channel: of image / 255 for uint8 images, on their own scale for float images.

        Float images in [0, 1] are taken as they are; others are mapped to [0, 1] by their own range for the colour
        ops. Raises InputError when the recipe does not suit the channels.
        """
        _check(recipe, image_size, channels, mean, std)
        self.recipe = recipe
        self.image_size = image_size
        self.channels = channels
        self.seed = seed
        self.dtype = dtype
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self._views = tuple(replace(view, count=1) for view in recipe.views for _ in range(view.count))

    def __call__(self, images: Tensor, ids: Tensor, epoch: int) -> list[Tensor]:
        """Views of images [B, C, H, W], uint8 or float, with ids int64 [B] (best kept on the CPU)."""
        self._check_batch(images, ids)
        return [self._view(images, self._stream(ids, epoch, v), view) for v, view in enumerate(self._views)]

    def boxes(self, id: int, epoch: int, height: int, width: int) -> list[Box]:
        """Where the views of sample `id` lie in its image of height x width pixels."""
        ids = torch.tensor([id])
        return [
            geometry.draw_boxes(self._stream(ids, epoch, v), view, height, width, self._size(view)).to_list()[0]
            for v, view in enumerate(self._views)
        ]

    def cut(self, image: Tensor, boxes: Sequence[Box], scale: float = 1.0) -> list[Tensor]:
        """The cuts [C, h, w] of one image [C, H, W], decoded at `scale` times its full size, in the image's dtype."""
        return [geometry.cut(image, box, scale) for box in boxes]

    def finish(self, cuts: Sequence[Tensor], ids: Tensor, epoch: int) -> list[Tensor]:
        """Views of stacked cuts [B, C, h, w], one tensor per view: colour, blur, normalisation."""
        if len(cuts) != len(self._views):
            raise InputError(f"Recipe '{self.recipe.name}' has {len(self._views)} views, got {len(cuts)} cuts.")
        views = []
        for v, (view, cut) in enumerate(zip(self._views, cuts, strict=True)):
            self._check_batch(cut, ids)
            views.append(self._finish(partial(_take, cut), cut, self._stream(ids, epoch, v), view))
        return views

    def _view(self, images: Tensor, stream: Stream, view: ViewRecipe) -> Tensor:
        """One view of whole images."""
        height, width = images.shape[2:]
        boxes = geometry.draw_boxes(stream, view, height, width, self._size(view))
        by_matrix = images.device.type != "cpu" or max(height, width, boxes.size) <= _MATRIX_LIMIT
        fetch = partial(_resample, images, boxes) if by_matrix else partial(_cut, images, boxes.to_list())
        return self._finish(fetch, images, stream, view)

    def _finish(
        self, fetch: Callable[[Tensor], Tensor], images: Tensor, stream: Stream, view: ViewRecipe
    ) -> Tensor:
        """Take float views of chosen samples from `fetch`, colour and normalise them, a cache-sized chunk at a time."""
        size, device = self._size(view), images.device
        draws = self._draw(stream, view)
        out = torch.empty(len(images), self.channels, size, size, dtype=self.dtype, device=device)
        samples = max(1, _CHUNK.get(device.type, 2**28) // out[0].numel())
        for index in draws.order.argsort(stable=True).split(samples):  # neighbours share their order of jitter
            x = self._colour(fetch(index), images.dtype, draws[index], stream.at(index), view)
            out[index.to(device)] = x.to(self.dtype)
        return out

    def _colour(self, x: Tensor, source: torch.dtype, draws: _Draws, stream: Stream, view: ViewRecipe) -> Tensor:
        """The ops after the crop on float views [n, C, h, w], in place, and the normalisation."""
        mean, std = self._mean.to(x.device), self._std.to(x.device)
        top = 1.0
        if source == torch.uint8:
            top = 255.0
            mean, std = mean * top, std * top
            x.clamp_(0, top)  # bicubic resampling overshoots
        else:
            low, span = _own_range(x)
            x.sub_(low).div_(span)
            mean, std = (mean - low) / span, std / span
        if view.channel_gain or view.channel_drop:
            colour.scale_channels_(x, draws.gains, top)
        start = int((draws.order < 0).sum())
        orders = [_orders(view)[i] for i in draws.order[start:].tolist()]
        factors = {op: factor[start:] for op, factor in draws.factors.items()}
        colour.jitter_(x[start:], orders, factors, top)
        _apply(draws.grayscale, x, lambda part, _: colour.grayscale_(part))
        _apply(draws.blur, x, lambda part, i: gaussian_blur_(part, draws.sigma[i]))
        _apply(draws.solarize, x, lambda part, _: colour.solarize_(part, top))
        _apply(draws.posterize, x, lambda part, _: colour.posterize_(part, view.posterize_bits, top))
        _apply(
            draws.noise_std > 0,
            x,
            lambda part, i: gaussian_noise_(part, draws.noise_std[i], stream.at(i, x.device), top),
        )
        x = shuffle_pixels(x) if view.shuffle else x
        x.sub_(mean).div_(std)
        _apply(draws.rectangles[:, 2] > 0, x, lambda part, i: erase_(part, draws.rectangles[i]))
        return x

    def _draw(self, stream: Stream, view: ViewRecipe) -> _Draws:
        """The random parameters of everything after the crop. An op that the recipe leaves out draws nothing."""
        n = len(stream.ids)
        never = torch.zeros(n, dtype=torch.bool)

        def chance(op: str) -> Tensor:
            p = getattr(view, op)
            return stream.chance(op, p) if p else never

        orders = _orders(view)
        jittered = chance("jitter") if orders[0] else never
        gray = chance("grayscale") if self.channels == 3 else never
        noise_std = stream.between("noise std", *view.noise_std).float() * chance("noise") if view.noise else never
        return _Draws(
            order=torch.where(jittered, stream.integer("jitter order", len(orders)), -1),
            factors={op: _factor(stream, op, getattr(view, op)) for op in orders[0]},
            gains=self._draw_gains(stream, view),
            grayscale=gray,
            blur=chance("blur"),
            sigma=stream.between("blur sigma", *view.blur_sigma) if view.blur else never,
            solarize=chance("solarize"),
            posterize=chance("posterize"),
            noise_std=noise_std,
            rectangles=self._draw_erase(stream, view),
        )

    def _draw_gains(self, stream: Stream, view: ViewRecipe) -> Tensor:
        """[B, C]: 0 for dropped channels, of which there is never the last."""
        gains = 1.0 + view.channel_gain * (2.0 * stream.uniform("channel gain", self.channels) - 1.0)
        luck = stream.uniform("channel drop", self.channels)
        kept = (luck >= view.channel_drop) | (luck == luck.amax(dim=1, keepdim=True))
        return gains.clamp(min=0.0) * kept

    def _draw_erase(self, stream: Stream, view: ViewRecipe) -> Tensor:
        if not view.erase:
            return torch.zeros(len(stream.ids), 4, dtype=torch.long)
        rectangles = draw_rectangles(stream, self._size(view), view.erase_scale, view.erase_ratio)
        return rectangles * stream.chance("erase", view.erase)[:, None]

    def _stream(self, ids: Tensor, epoch: int, view: int) -> Stream:
        return Stream(self.seed, epoch, ids.cpu(), view)

    def _size(self, view: ViewRecipe) -> int:
        return view.size or self.image_size

    def _check_batch(self, images: Tensor, ids: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise InputError(f"Views need images [B, {self.channels}, H, W], got {list(images.shape)}.")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(f"Views need uint8 or float images, got {images.dtype}. Scale 16-bit images to [0, 1].")
        if ids.shape != images.shape[:1]:
            raise InputError(f"Views need one id per image: {len(images)} images, ids {list(ids.shape)}.")


def _check(recipe: Recipe, image_size: int, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if channels not in (1, 3):
        for op in ("saturation", "hue", "grayscale"):
            if any(getattr(view, op) for view in recipe.views):
                raise InputError(
                    f"Recipe '{recipe.name}' uses {op}, which is defined for RGB; the images have {channels} "
                    "channels. Use the recipe 'multispectral'."
                )
    if len(mean) != channels or len(std) != channels:
        raise InputError(f"mean and std need {channels} values, one per channel; got {len(mean)} and {len(std)}.")
    if not all(s > 0 for s in std):
        raise InputError(f"std must be positive, got {list(std)}.")
    if image_size < 2:
        raise InputError(f"image_size must be at least 2 pixels, got {image_size}.")


def _orders(view: ViewRecipe) -> list[tuple[str, ...]]:
    """Every order of the jitter ops that the recipe uses, sorted; one empty order when it uses none."""
    return list(permutations(op for op in colour.JITTER_OPS if getattr(view, op)))


def _factor(stream: Stream, op: str, strength: float) -> Tensor:
    """torchvision's ColorJitter: a factor in [max(0, 1 - s), 1 + s], or a hue shift in [-s, s]."""
    if op == "hue":
        return stream.between(op, -strength, strength)
    return stream.between(op, max(0.0, 1.0 - strength), 1.0 + strength)


def _own_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest value and span [n, 1, 1, 1] of float images: 0 and 1 for an image within [0, 1]."""
    low = x.amin(dim=(1, 2, 3), keepdim=True).clamp_(max=0.0)
    high = x.amax(dim=(1, 2, 3), keepdim=True).clamp_(min=1.0)
    return low, high - low


def _apply(mask: Tensor, x: Tensor, op: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace the masked samples by `op(samples, index)`; the others are not touched."""
    index = mask.nonzero()[:, 0]
    if len(index) == len(x):
        op(x, index)
    elif len(index):
        on_device = index.to(x.device)
        x[on_device] = op(x[on_device], index)


def _take(cuts: Tensor, index: Tensor) -> Tensor:
    """Cuts as float, channels planar in memory: the colour ops run over whole planes."""
    return cuts[index.to(cuts.device)].to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _resample(images: Tensor, boxes: Boxes, index: Tensor) -> Tensor:
    return geometry.resample(images[index.to(images.device)], boxes[index])


def _cut(images: Tensor, boxes: list[Box], index: Tensor) -> Tensor:
    chosen = index.tolist()
    x = torch.empty(len(chosen), images.shape[1], boxes[0].size, boxes[0].size)
    for row, i in zip(x, chosen, strict=True):
        row.copy_(geometry.cut(images[i], boxes[i]))
    return x
