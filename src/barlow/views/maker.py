"""ViewMaker: uint8 images and sample ids in, normalised views out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, permutations

import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.views import colour, geometry, native
from barlow.views.blur import gaussian_blur_
from barlow.views.geometry import Box, Boxes
from barlow.views.noise import draw_rectangles, erase_, gaussian_noise_, shuffle_pixels
from barlow.views.random import Stream
from barlow.views.recipes import Recipe, ViewRecipe
from barlow.views.scratch import scratch

_CHUNK = {"cpu": 2**19, "cuda": 2**28}  # values worked on at a time: two megabytes stay near a core
_MATRIX_LIMIT = 48  # pixels: up to here, on a CPU, two matrix products beat one kernel call per image

_Fetch = Callable[[Tensor, Tensor], Tensor]  # (indices into the views of a group, float32 tensor to fill) -> filled


@dataclass(frozen=True)
class _Draws:
    """The random parameters of a batch of views, one entry per view."""

    order: Tensor  # int64 [N], index into the orders of jitter; -1: none
    factors: dict[str, Tensor]  # op of jitter: float32 [N]
    gains: Tensor | None  # float32 [N, C]
    grayscale: Tensor  # bool [N]
    sigma: Tensor  # float32 [N], of the blur; 0: none
    solarize: Tensor  # bool [N]
    posterize: Tensor  # bool [N]
    noise_std: Tensor  # float32 [N]; 0: none
    rectangles: Tensor | None  # int64 [N, 4], to erase: top, left, height, width; empty: none

    def at(self, index: Tensor | slice) -> "_Draws":
        return _Draws(
            order=self.order[index],
            factors={op: factor[index] for op, factor in self.factors.items()},
            gains=None if self.gains is None else self.gains[index],
            grayscale=self.grayscale[index],
            sigma=self.sigma[index],
            solarize=self.solarize[index],
            posterize=self.posterize[index],
            noise_std=self.noise_std[index],
            rectangles=None if self.rectangles is None else self.rectangles[index],
        )


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
        value_range: tuple[float, float] = (0.0, 1.0),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`mean` and `std` per channel: of image / 255 for uint8 images, on their own scale for float images.

        `value_range` holds the values of float images that the colour ops take for black and white; the range of a
        view that goes beyond is widened to its own. Raises InputError when the recipe does not suit the channels.
        """
        _check_channels(recipe, channels)
        check_statistics(mean, std, channels)
        if image_size < 2:
            raise InputError(f"image_size must be at least 2 pixels, got {image_size}.")
        if not -math.inf < value_range[0] < value_range[1] < math.inf:
            raise InputError(f"value_range must be two numbers, low and high, got {list(value_range)}.")
        self.recipe = recipe
        self.image_size = image_size
        self.channels = channels
        self.seed = seed
        self.value_range = value_range
        self.dtype = dtype
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self._views = _image_views(recipe)
        self._groups = _group(self._views)

    def __call__(self, images: Tensor, ids: Tensor, epoch: int) -> list[Tensor]:
        """Views of images [B, C, H, W], uint8 or float, with ids int64 [B] (best kept on the CPU)."""
        self._check_batch(images, ids)
        views: dict[int, Tensor] = {}
        for members in self._groups:
            stream = Stream.of(self.seed, epoch, ids.cpu(), members)
            fetch = self._fetch_from(images, stream, members)
            views.update(self._finish(fetch, images, stream, members))
        return [views[v] for v in range(len(self._views))]

    def boxes(self, id: int, epoch: int, height: int, width: int) -> list[Box]:
        """Where the views of sample `id` lie in its image of height x width pixels."""
        return self.batch_boxes([id], epoch, [height], [width])[0]

    def batch_boxes(
        self, ids: Sequence[int], epoch: int, heights: Sequence[int], widths: Sequence[int]
    ) -> list[list[Box]]:
        """`boxes` of several samples, which costs little more than that of one."""
        count = len(ids)
        stream = Stream.of(self.seed, epoch, torch.tensor(ids), range(len(self._views)))
        sides = torch.tensor(heights), torch.tensor(widths)
        by_view = [
            geometry.draw_boxes(stream.at(slice(v * count, (v + 1) * count)), view, *sides, self._size(view)).to_list()
            for v, view in enumerate(self._views)
        ]
        return [list(of_sample) for of_sample in zip(*by_view, strict=True)]

    def cut(self, image: Tensor, boxes: Sequence[Box], scale: float = 1.0) -> list[Tensor]:
        """The cuts [C, h, w] of one image [C, H, W], decoded at `scale` times its full size, in the image's dtype."""
        cuts = [geometry.cut(image, box, scale) for box in boxes]
        if image.dtype == torch.uint8:
            return cuts
        low, high = _widened(self.value_range, image[None])  # bicubic resampling overshoots
        return [cut.clamp(low[0], high[0]) for cut in cuts]

    def finish(self, cuts: Sequence[Tensor], ids: Tensor, epoch: int) -> list[Tensor]:
        """Views of stacked cuts [B, C, h, w], one tensor per view: colour, blur, normalisation."""
        if len(cuts) != len(self._views):
            raise InputError(f"Recipe '{self.recipe.name}' has {len(self._views)} views, got {len(cuts)} cuts.")
        for cut in cuts:
            self._check_batch(cut, ids)
        views: dict[int, Tensor] = {}
        for members in self._groups:
            stream = Stream.of(self.seed, epoch, ids.cpu(), members)
            chosen = [cuts[v] for v in members]
            views.update(self._finish(partial(_take, chosen), chosen[0], stream, members))
        return [views[v] for v in range(len(cuts))]

    def unnormalise(self, views: Tensor) -> Tensor:
        """Views [..., C, h, w] back on the scale of `mean` and `std` ([0, 1] for uint8 images), float32."""
        return views.float() * self._std.to(views.device) + self._mean.to(views.device)

    def _fetch_from(self, images: Tensor, stream: Stream, members: Sequence[int]) -> _Fetch:
        """A function that fills a float32 tensor with the crops of chosen views of the group."""
        height, width = images.shape[2:]
        batch = len(images)
        boxes = [
            geometry.draw_boxes(
                stream.at(slice(i * batch, (i + 1) * batch)), self._views[v], height, width, self._size(self._views[v])
            )
            for i, v in enumerate(members)
        ]
        merged = replace(boxes[0], fields=torch.cat([b.fields for b in boxes]))
        if images.device.type != "cpu" or max(height, width, merged.size) <= _MATRIX_LIMIT:
            fetch: _Fetch = partial(_resample, images, merged)
        else:
            fetch = partial(_cut, images, merged.to_list())
        if images.dtype == torch.uint8:
            return fetch
        return partial(_clipped, fetch, *_widened(self.value_range, images))

    def _finish(self, fetch: _Fetch, images: Tensor, stream: Stream, members: Sequence[int]) -> dict[int, Tensor]:
        """Colour and normalise what `fetch` gives, a cache-sized chunk of views at a time."""
        view, device, total = self._views[members[0]], images.device, len(stream.keys)
        size = self._size(view)
        draws = self._draw(stream, [self._views[v] for v in members])
        compiled = self._compiled(device)
        if compiled:
            sequence = torch.arange(total)
        else:
            sequence = draws.order.argsort(stable=True)  # neighbours share their order of jitter
            draws, stream = draws.at(sequence), stream.at(sequence)
        out = torch.empty(total, self.channels, size, size, dtype=self.dtype, device=device)
        if compiled:
            native.advise_large_pages(out)
        # where crops are matrix products, whole images are their operands
        pixels = size * size if device.type == "cpu" else max(size * size, images.shape[2] * images.shape[3])
        step = max(1, _CHUNK.get(device.type, 2**28) // (self.channels * pixels))
        for start in range(0, total, step):
            part = slice(start, start + step)
            in_place = compiled and self.dtype == torch.float32
            shape = (len(sequence[part]), *out.shape[1:])
            x = fetch(sequence[part], out[part] if in_place else scratch("view", shape, out))
            x = self._colour(x, images.dtype, draws.at(part), stream.at(part), view, compiled)
            if not in_place or x.data_ptr() != out[part].data_ptr():
                _put(out, sequence[part], x)
        return dict(zip(members, out.chunk(len(members)), strict=True))

    def _compiled(self, device: torch.device) -> bool:
        """Whether the compiled loops make these views."""
        narrow = all(view.blur_sigma[1] <= native.MOST_SIGMA for view in self._views)
        return device.type == "cpu" and narrow and native.library() is not None

    def _colour(
        self, x: Tensor, source: torch.dtype, draws: _Draws, stream: Stream, view: ViewRecipe, compiled: bool
    ) -> Tensor:
        """The ops after the crop, in place, and the normalisation; x float32 [n, C, h, w].

        Unless `compiled` the views are sorted by their order of jitter.
        """
        top, mean, std = self._prepare(x, source)
        last = not (draws.posterize.any() or (draws.noise_std > 0).any() or view.shuffle) and mean.ndim == 3
        if draws.gains is not None:
            colour.scale_channels_(x, draws.gains, top)
        if compiled:
            _tone_compiled(x, top, view, draws, (mean, 1.0 / std) if last else None)
        else:
            _tone(x, top, view, draws)
        _apply(draws.posterize, x, lambda part, _: colour.posterize_(part, view.posterize_bits, top))
        noisy = draws.noise_std > 0
        _apply(noisy, x, lambda part, i: gaussian_noise_(part, draws.noise_std[i], stream.at(i), top))
        x = shuffle_pixels(x) if view.shuffle else x
        if not (compiled and last):
            x.sub_(mean).mul_(1.0 / std)
        return x if draws.rectangles is None else erase_(x, draws.rectangles)

    def _prepare(self, x: Tensor, source: torch.dtype) -> tuple[float, Tensor, Tensor]:
        """Bring x, in place, to a range [0, top]; returns top and the mean and std of the data in that range."""
        mean, std = (of.to(x.device, non_blocking=True) for of in (self._mean, self._std))
        if source == torch.uint8:
            return 255.0, 255.0 * mean, 255.0 * std
        low, high = _widened(self.value_range, x)
        span = high - low
        x.sub_(low).div_(span)
        return 1.0, (mean - low) / span, std / span

    def _draw(self, stream: Stream, views: Sequence[ViewRecipe]) -> _Draws:
        """The random parameters of everything after the crop, for a group of views."""
        batch = len(stream.keys) // len(views)

        def column(name: str, item: int | None = None) -> Tensor:
            values = [getattr(view, name) if item is None else getattr(view, name)[item] for view in views]
            return torch.tensor(values, dtype=torch.float64).repeat_interleave(batch)

        def chance(op: str) -> Tensor:
            return stream.chance(op, column(op))

        def between(op: str, name: str) -> Tensor:
            return stream.between(op, column(name, 0), column(name, 1)).float()

        orders = _orders(views[0])
        jitter = chance("jitter") & bool(orders[0])
        return _Draws(
            order=torch.where(jitter, stream.integer("jitter order", len(orders)), -1),
            factors={op: _factor(stream, op, column(op)) for op in orders[0]},
            gains=self._draw_gains(stream, column("channel_gain"), column("channel_drop")),
            grayscale=chance("grayscale") & (self.channels == 3),
            sigma=between("blur sigma", "blur_sigma") * chance("blur"),
            solarize=chance("solarize"),
            posterize=chance("posterize"),
            noise_std=between("noise std", "noise_std") * chance("noise"),
            rectangles=self._draw_erase(stream, views, chance("erase")),
        )

    def _draw_gains(self, stream: Stream, gain: Tensor, drop: Tensor) -> Tensor | None:
        """[N, C]: 0 for dropped channels, of which there is never the last."""
        if not (gain.any() or drop.any()):
            return None
        spread = 2.0 * stream.field("channel gain", self.channels, numbers="uniform") - 1.0
        luck = stream.field("channel drop", self.channels, numbers="uniform")
        kept = (luck >= drop[:, None]) | (luck == luck.amax(dim=1, keepdim=True))
        return ((1.0 + gain[:, None] * spread).clamp(min=0.0) * kept).float()

    def _draw_erase(self, stream: Stream, views: Sequence[ViewRecipe], chosen: Tensor) -> Tensor | None:
        if not chosen.any():
            return None
        batch = len(stream.keys) // len(views)
        rectangles = [
            draw_rectangles(
                stream.at(slice(i * batch, (i + 1) * batch)), self._size(view), view.erase_scale, view.erase_ratio
            )
            for i, view in enumerate(views)
        ]
        return torch.cat(rectangles) * chosen[:, None]

    def _size(self, view: ViewRecipe) -> int:
        return view.size or self.image_size

    def _check_batch(self, images: Tensor, ids: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise InputError(f"Views need images [B, {self.channels}, H, W], got {list(images.shape)}.")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(f"Views need uint8 or float images, got {images.dtype}. Scale 16-bit images to [0, 1].")
        if ids.shape != images.shape[:1]:
            raise InputError(f"Views need one id per image: {len(images)} images, ids {list(ids.shape)}.")


def _tone(x: Tensor, top: float, view: ViewRecipe, draws: _Draws) -> None:
    """Jitter, grayscale, blur and solarize views sorted by their order of jitter."""
    first = int((draws.order < 0).sum())
    every_order = _orders(view)
    runs = [(every_order[i], len(list(run))) for i, run in groupby(draws.order[first:].tolist())]
    colour.jitter_(x[first:], runs, {op: factor[first:] for op, factor in draws.factors.items()}, top)
    _apply(draws.grayscale, x, lambda part, _: colour.grayscale_(part))
    _apply(draws.sigma > 0, x, lambda part, i: gaussian_blur_(part, draws.sigma[i]))
    _apply(draws.solarize, x, lambda part, _: colour.solarize_(part, top))


def _tone_compiled(
    x: Tensor, top: float, view: ViewRecipe, draws: _Draws, normalise: tuple[Tensor, Tensor] | None
) -> None:
    """The same in compiled loops, of views in any sequence, and the normalisation by (mean, 1 / std)."""
    zeros = torch.zeros(len(x))
    factors = torch.stack([draws.factors.get(op, zeros) for op in colour.JITTER_OPS], dim=1)
    luma = colour.luma_weights(x.shape[1], x.device)
    native.tone_(
        *(x, top, luma, _order_table(view), draws.order, factors),
        *(draws.grayscale, draws.sigma, draws.solarize, normalise),
    )


def _order_table(view: ViewRecipe) -> Tensor:
    """int8 [m, 4]: `_orders` by the ops' numbers; -1 fills up."""
    rows = [[colour.JITTER_OPS.index(op) for op in order] for order in _orders(view)]
    return torch.tensor([row + [-1] * (len(colour.JITTER_OPS) - len(row)) for row in rows], dtype=torch.int8)


def _image_views(recipe: Recipe) -> tuple[ViewRecipe, ...]:
    """One entry per view. Raises InputError for a recipe of signals or tables."""
    views = []
    for view in recipe.views:
        if not isinstance(view, ViewRecipe):
            raise InputError(f"Recipe '{recipe.name}' is of kind '{recipe.kind}'; the data are images.")
        views += [replace(view, count=1)] * view.count
    return tuple(views)


def _check_channels(recipe: Recipe, channels: int) -> None:
    if channels in (1, 3):
        return
    for view in _image_views(recipe):
        used = [op for op in ("saturation", "hue", "grayscale") if getattr(view, op)]
        if used:
            raise InputError(
                f"Recipe '{recipe.name}' uses {used[0]}, which is defined for RGB; the images have {channels} "
                "channels. Use the recipe 'multispectral'."
            )


def check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raise InputError unless there is one finite mean and one finite, positive std per channel."""
    if len(mean) != channels or len(std) != channels:
        raise InputError(f"mean and std need {channels} values, one per channel; got {len(mean)} and {len(std)}.")
    if not all(map(math.isfinite, mean)):
        raise InputError(f"mean must be finite, got {list(mean)}.")
    if not all(0 < s < math.inf for s in std):
        raise InputError(f"std must be positive and finite, got {list(std)}.")


def _orders(view: ViewRecipe) -> list[tuple[str, ...]]:
    """Every order of the jitter ops that the recipe uses, sorted; one empty order when it uses none."""
    return list(permutations(op for op in colour.JITTER_OPS if getattr(view, op)))


def _group(views: Sequence[ViewRecipe]) -> list[list[int]]:
    """Views that can be made as one batch: of one size and filter, with the same ops of jitter."""
    groups: dict[object, list[int]] = {}
    for v, view in enumerate(views):
        alike = (view.size, view.interpolation, _orders(view)[0], view.posterize_bits, view.shuffle)
        groups.setdefault(alike, []).append(v)
    return list(groups.values())


def _factor(stream: Stream, op: str, strength: Tensor) -> Tensor:
    """torchvision's ColorJitter: a factor in [max(0, 1 - s), 1 + s], or a hue shift in [-s, s]."""
    if op == "hue":
        return stream.between(op, -strength, strength).float()
    return stream.between(op, (1.0 - strength).clamp(min=0.0), 1.0 + strength).float()


def _widened(value_range: tuple[float, float], x: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value [B, 1, 1, 1] of each image [B, C, H, W], or those of the range where that is wider."""
    low = x.amin(dim=(1, 2, 3), keepdim=True).clamp_(max=value_range[0])
    high = x.amax(dim=(1, 2, 3), keepdim=True).clamp_(min=value_range[1])
    return low, high


def _clipped(fetch: _Fetch, low: Tensor, high: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """Crops without the overshoot of bicubic resampling, within the bounds [B, 1, 1, 1] of the images."""
    x = fetch(index, x)
    which = (index % len(low)).to(x.device, non_blocking=True)
    return torch.clamp(x, low[which], high[which], out=x)


def _apply(mask: Tensor, x: Tensor, op: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace the masked samples by `op(samples, index)`; the others are not touched."""
    index = mask.nonzero()[:, 0]
    if len(index) == len(x):
        op(x, index)
    elif len(index) == 1:
        op(x[index[0] : index[0] + 1], index)
    elif len(index):
        on_device = index.to(x.device, non_blocking=True)
        part = scratch("part", (len(index), *x.shape[1:]), x)
        torch.index_select(x, 0, on_device, out=part)
        x.index_copy_(0, on_device, op(part, index))


def _put(out: Tensor, index: Tensor, x: Tensor) -> None:
    """out[index] = x. Few large rows are copied one by one, which is faster than indexing."""
    if len(index) > 8:
        out[index.to(out.device, non_blocking=True)] = x.to(out.dtype)
    else:
        for i, row in zip(index.tolist(), x, strict=True):
            _copy_planar(out[i : i + 1], row[None])


def _copy_planar(out: Tensor, x: Tensor) -> None:
    """out[:] = x; channels-last bytes to planes of floats is what torch's copy is slow at."""
    if (x.dtype, out.dtype) == (torch.uint8, torch.float32) and x.device.type == "cpu" and native.library() is not None:
        native.planes(x, out)
    else:
        out.copy_(x)


def _take(cuts: Sequence[Tensor], index: Tensor, x: Tensor) -> Tensor:
    """Float32 copies of chosen cuts, numbered through all tensors, with planar channels: colour runs over planes."""
    batch = len(cuts[0])
    for v, cut in enumerate(cuts):
        rows = (index // batch == v).nonzero()[:, 0]
        if len(rows):
            _put(x, rows, cut[(index[rows] - v * batch).to(cut.device, non_blocking=True)])
    return x


def _resample(images: Tensor, boxes: Boxes, index: Tensor, x: Tensor) -> Tensor:
    which, boxes = index % len(images), replace(boxes, fields=boxes.fields[index])
    if images.device.type == "cpu" and native.library() is not None:
        native.resample(images, which, boxes.fields, boxes.interpolation, x)
        return geometry.turn(x, boxes.fields[:, 6])
    chosen = scratch("chosen", (len(index), *images.shape[1:]), images, images.dtype)
    torch.index_select(images, 0, which.to(images.device, non_blocking=True), out=chosen)
    return geometry.resample(chosen, boxes, x)


def _cut(images: Tensor, boxes: Sequence[Box], index: Tensor, x: Tensor) -> Tensor:
    for row, i in zip(x, index.tolist(), strict=True):
        _copy_planar(row[None], geometry.cut(images[i % len(images)], boxes[i])[None])
    return x
