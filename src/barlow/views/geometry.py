"""Where a view lies in its image, and how it is resampled: crop, resize, flips and quarter turns.

Resampling is the antialiased filter of Pillow and torchvision. It is separable, so a crop with resize and flips is
`rows @ image @ columns.T` with one small interpolation matrix per axis and image. Small images and GPUs take the
matrices; a large image on a CPU is cut by torch's own banded kernel, which skips the zeros of the matrices.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from barlow.views.random import Stream
from barlow.views.recipes import ViewRecipe
from barlow.views.scratch import scratch


class Box(NamedTuple):
    """One view's place in its image, in pixels of the full-size image, and what is done after the cut."""

    top: int
    left: int
    height: int
    width: int
    mirror: bool  # left-right flip
    upend: bool  # top-bottom flip
    turns: int  # counter-clockwise quarter turns, after the flips
    size: int  # height and width of the view
    interpolation: str  # "bilinear" or "bicubic"


@dataclass(frozen=True)
class Boxes:
    """The boxes of a batch: int64 [B, 7], the first seven fields of `Box` in order, on the CPU."""

    fields: Tensor
    size: int
    interpolation: str

    def to_list(self) -> list[Box]:
        return [
            Box(top, left, height, width, bool(mirror), bool(upend), turns, self.size, self.interpolation)
            for top, left, height, width, mirror, upend, turns in self.fields.tolist()
        ]


def draw_boxes(stream: Stream, recipe: ViewRecipe, height: int | Tensor, width: int | Tensor, size: int) -> Boxes:
    """Draw the geometry of one view for images of height x width, each one number or int64 [B]."""
    heights, widths = (torch.as_tensor(side).expand(len(stream.keys)) for side in (height, width))
    if recipe.crop_scale is None:
        place = _central_square(heights, widths)
    else:
        place = _random_resized_crop(stream, heights, widths, recipe.crop_scale, recipe.crop_ratio)
    mirror = stream.chance("mirror", recipe.flip)
    upend = stream.chance("upend", recipe.vertical_flip)
    turns = stream.chance("turn", recipe.quarter_turns) * (1 + stream.integer("turns", 3))
    return Boxes(torch.stack([*place, mirror, upend, turns], dim=1), size, recipe.interpolation)


def _central_square(height: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    side = torch.minimum(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _random_resized_crop(
    stream: Stream, height: Tensor, width: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torchvision's RandomResizedCrop.get_params, all ten tries at once: the first that fits is taken."""
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * stream.uniform("crop area"))
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (log_low + (log_high - log_low) * stream.uniform("crop ratio")).exp()
    tried = torch.stack([(area / aspect).sqrt().round(), (area * aspect).sqrt().round()])  # heights, widths
    fits = ((tried > 0) & (tried <= torch.stack([height, width])[:, :, None])).all(dim=0)
    first = fits.byte().argmax(dim=1)
    chosen = tried[:, torch.arange(len(first)), first].long()
    found = fits.any(dim=1)
    if not found.all():
        chosen = torch.where(found, chosen, _fallback(height, width, ratio))
    crop_height, crop_width = chosen
    place = stream.uniform("crop place")
    top = torch.where(found, place[:, 0] * (height - crop_height + 1), (height - crop_height) // 2).long()
    left = torch.where(found, place[:, 1] * (width - crop_width + 1), (width - crop_width) // 2).long()
    return top, left, crop_height, crop_width


def _fallback(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> Tensor:
    """[2, B], height and width: the largest central crop whose width / height is within the ratios."""
    narrow, wide = width / height < ratio[0], width / height > ratio[1]
    crop_height = torch.where(narrow, (width.double() / ratio[0]).round().long().minimum(height), height)
    crop_width = torch.where(wide, (height.double() * ratio[1]).round().long().minimum(width), width)
    return torch.stack([crop_height, crop_width])


def cut(image: Tensor, box: Box, scale: float = 1.0) -> Tensor:
    """One view's cut [C, size, size] of an image [C, H, W], uint8 or float, on the CPU.

    `scale` is the size of `image` relative to the full-size image in whose pixels the box is given (reduced-size
    decoding); the box is then rounded to whole pixels of the reduced image. Integer images are rounded and clamped
    after resampling, as Pillow does. Fastest for images whose channels are last in memory.
    """
    top, left, bottom, right = _scaled(box, scale, image.shape[1], image.shape[2])
    view = image[None, :, top:bottom, left:right]
    if view.shape[2:] != (box.size, box.size):
        view = F.interpolate(view, (box.size, box.size), mode=box.interpolation, antialias=True)
    axes = [axis for axis, flip in ((3, box.mirror), (2, box.upend)) if flip]
    view = view.flip(axes) if axes else view
    return view.rot90(box.turns, (2, 3))[0] if box.turns else view[0]


def _scaled(box: Box, scale: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, bottom, right in the pixels of an image decoded at `scale`; never empty, never outside."""
    if scale == 1.0:
        return box.top, box.left, box.top + box.height, box.left + box.width
    top = min(round(box.top * scale), height - 1)
    left = min(round(box.left * scale), width - 1)
    bottom = min(max(round((box.top + box.height) * scale), top + 1), height)
    right = min(max(round((box.left + box.width) * scale), left + 1), width)
    return top, left, bottom, right


def resample(images: Tensor, boxes: Boxes, out: Tensor | None = None) -> Tensor:
    """The views [B, C, size, size], float32, of images [B, C, H, W] by two batched matrix products.

    Equals `cut` to float rounding, except that nothing is rounded to integers.
    """
    b, c, height, width = images.shape
    size, kind = boxes.size, boxes.interpolation
    top, left, crop_height, crop_width, mirror, upend, _ = boxes.fields.to(images.device, non_blocking=True).unbind(1)
    if height == width:  # one call for both axes
        starts, lengths, flips = (
            torch.cat([top, left]),
            torch.cat([crop_height, crop_width]),
            torch.cat([upend, mirror]),
        )
        rows, columns = interpolation_matrix(starts, lengths, flips, width, size, kind).chunk(2)
    else:
        rows = interpolation_matrix(top, crop_height, upend, height, size, kind)
        columns = interpolation_matrix(left, crop_width, mirror, width, size, kind)
    pixels = scratch("pixels", (b, c * height, width), images).copy_(images.reshape(b, c * height, width))
    out = pixels.new_empty(b, c, size, size) if out is None else out
    multiply(rows, pixels.view(b, c, height, width), columns, out)
    if images.dtype == torch.uint8:
        out.clamp_(0.0, 255.0)  # bicubic overshoots
    return turn(out, boxes.fields[:, 6])


def multiply(rows: Tensor, x: Tensor, columns: Tensor, out: Tensor) -> Tensor:
    """out = rows @ x @ columns.T for every channel: rows [B, h, H], x [B, C, H, W], columns [B, w, W]."""
    b, c, height, width = x.shape
    h, w = rows.shape[1], columns.shape[1]
    middle = scratch("middle", (b, c * height, w), x)
    torch.bmm(x.view(b, c * height, width), columns.mT, out=middle)
    per_channel = scratch("rows", (b, c, h, height), x).copy_(rows[:, None])
    torch.bmm(per_channel.view(b * c, h, height), middle.view(b * c, height, w), out=out.view(b * c, h, w))
    return out


def interpolation_matrix(start: Tensor, length: Tensor, flip: Tensor, extent: int, size: int, kind: str) -> Tensor:
    """Float32 [B, size, extent]: resamples pixels start ... start+length-1 of an axis of `extent` pixels to `size`.

    The antialiased filter of Pillow's `resize` and torchvision: the kernel is widened by length / size when that
    shrinks, and the weights of each output pixel, cut off at the ends of the crop, sum to one. Only the few pixels
    under the kernel are computed, and scattered into a matrix with a margin for those outside the image.
    """
    reach, kernel = _KERNELS[kind]
    taps = 2 * math.ceil(reach * max(1.0, extent / size)) + 1
    start, length = start.float()[:, None], length.float()[:, None]
    i = torch.arange(size, device=start.device)
    i = torch.where(flip[:, None].bool(), size - 1 - i, i)  # [B, size]
    scale = length / size
    stretch = scale.clamp(min=1.0)
    centre = (i + 0.5) * scale  # of the output pixel, in pixels of the crop
    first = (centre - reach * stretch).add_(0.5).floor_()
    pixel = first + torch.arange(taps, device=start.device)[:, None, None]  # [taps, B, size]
    inside = pixel.clamp(min=0.0).minimum(length - 1.0).eq_(pixel)
    weight = kernel((pixel - (centre - 0.5)).div_(stretch)).mul_(inside)
    weight /= weight.sum(dim=0)
    matrix = weight.new_zeros(len(start), size, extent + 2 * taps)
    matrix.scatter_(2, pixel.add_(start + taps).long().permute(1, 2, 0), weight.permute(1, 2, 0))
    return matrix[:, :, taps : taps + extent]


def _triangle(t: Tensor) -> Tensor:
    return t.abs_().neg_().add_(1.0).clamp_(min=0.0)


def _cubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2, Pillow's BICUBIC: zero from 2 on, its two pieces as one sum."""
    t = t.abs_().clamp_(max=2.0)
    inner = 1.0 - t
    outer = (2.0 - t).square_().mul_(inner).mul_(0.5)
    inner.clamp_(min=0.0)
    return outer.add_(inner.square().mul_(inner.mul_(-2.0).add_(1.0)))


_KERNELS = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}  # reach in input pixels, kernel


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Turn each square view [B, C, s, s] counter-clockwise by its number of quarter turns [B] (CPU), in place."""
    for k in (1, 2, 3):
        chosen = (turns == k).nonzero()[:, 0]  # on the CPU: how many there are needs no wait for the device
        if len(chosen):
            chosen = chosen.to(x.device, non_blocking=True)
            x[chosen] = x[chosen].rot90(k, (2, 3))
    return x
