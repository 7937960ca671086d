"""A picture of a recipe: originals and their views side by side, for a person to judge."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from barlow.errors import InputError
from barlow.files import MARK, written
from barlow.views.maker import ViewMaker

_CELL = 160  # pixels of one picture, about: small views are enlarged by whole factors, so that pixels stay square
_GAP = 4
_MARGIN = 12
_INK, _PAPER, _FAINT = (28, 28, 30), (250, 250, 248), (110, 110, 115)


def grid(
    images: Sequence[Tensor], maker: ViewMaker, path: str | Path, *, ids: Sequence[int] | None = None, epochs: int = 3
) -> Path:
    """Write a PNG with one row per image [C, H, W]: the original, then its views in each of `epochs` epochs.

    More than three channels are shown as the first three, fewer as gray. Raises InputError without images.
    """
    if not images:
        raise InputError("A grid of views needs at least one image.")
    path = Path(path)
    ids = range(len(images)) if ids is None else ids
    rows = [_row(image, maker, int(i), epochs) for image, i in zip(images, ids, strict=True)]
    view_count = maker.recipe.view_count
    headings = ["original"] + [f"epoch {e}, view {v + 1}" for e in range(epochs) for v in range(view_count)]
    try:
        note = PngInfo()
        note.add_text("Software", MARK)
        with written(path) as temporary:
            _compose(rows, headings, _title(maker), view_count).save(temporary, format="PNG", pnginfo=note)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


def _title(maker: ViewMaker) -> str:
    return f"recipe {maker.recipe.name}   {maker.image_size} px, channels: {maker.channels}, seed: {maker.seed}"


def _row(image: Tensor, maker: ViewMaker, sample: int, epochs: int) -> list[Image.Image]:
    low, high = (0.0, 255.0) if image.dtype == torch.uint8 else _range(image, maker.value_range)
    pictures = [_original(_picture(image, low, high))]
    for epoch in range(epochs):
        cuts = maker.cut(image, maker.boxes(sample, epoch, image.shape[1], image.shape[2]))
        views = maker.finish([cut[None] for cut in cuts], torch.tensor([sample]), epoch)
        scale = 255.0 if image.dtype == torch.uint8 else 1.0
        pictures += [_enlarged(_picture(maker.unnormalise(view[0]) * scale, low, high)) for view in views]
    return pictures


def _range(image: Tensor, value_range: tuple[float, float]) -> tuple[float, float]:
    """Black and white of a float image: the maker's for images within, else the 1st and the 99th percentile."""
    if value_range[0] <= image.min() and image.max() <= value_range[1]:
        return value_range
    low, high = np.percentile(image.numpy(), (1, 99)).tolist()
    return (low, high) if low < high else (low, low + 1.0)


def _picture(image: Tensor, low: float, high: float) -> Image.Image:
    """An RGB picture of [C, H, W]: the first three channels, or the first as gray."""
    shown = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    values = ((shown.float() - low) / (high - low) * 255.0).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy(), "RGB")


def _original(picture: Image.Image) -> Image.Image:
    """The original as a cell: enlarged by a whole factor when small, shrunk when large."""
    picture.thumbnail((2 * _CELL, _CELL), Image.Resampling.LANCZOS)
    return _enlarged(picture)


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = max(1, round(_CELL / max(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _compose(rows: list[list[Image.Image]], headings: list[str], title: str, view_count: int) -> Image.Image:
    """Rows of pictures under headings; the gap is wider where an epoch begins."""
    font, small = ImageFont.load_default(18), ImageFont.load_default(11)
    widths = [max([row[c].width for row in rows] + [int(small.getlength(text))]) for c, text in enumerate(headings)]
    heights = [max(picture.height for picture in row) for row in rows]
    gaps = [_GAP * (5 if (c - 1) % view_count == 0 else 1) for c in range(1, len(headings))] + [0]
    lefts = [_MARGIN + sum(widths[:c]) + sum(gaps[:c]) for c in range(len(headings))]
    top = _MARGIN + 50
    size = (lefts[-1] + widths[-1] + _MARGIN, top + sum(heights) + _GAP * (len(rows) - 1) + _MARGIN)
    canvas = Image.new("RGB", (max(size[0], int(font.getlength(title)) + 2 * _MARGIN), size[1]), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    for left, text in zip(lefts, headings, strict=True):
        pen.text((left, top - 18), text, fill=_FAINT, font=small)
    for row, height in zip(rows, heights, strict=True):
        for left, picture in zip(lefts, row, strict=True):
            canvas.paste(picture, (left, top))
        top += height + _GAP
    return canvas
