"""Reading for evaluation: every sample in order, brought to one size the same way each time."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from barlow.errors import InputError

from .arrays import ArraySource
from .source import CorruptSample, IntArray, Source


def read_batch(
    source: Source, indices: IntArray | Sequence[int], size: int | None = None, *, interpolation: str = "bicubic"
) -> Tensor:
    """The samples at `indices`, stacked [n, C, size, size]: shorter side resized to `size`, then the centre cut out.

    Resizing is antialiased, as Pillow's and torchvision's; uint8 stays uint8. Without a `size`, and for signals and
    tables, samples are stacked as stored. Raises CorruptSample for one that cannot be read, InputError when stored
    sizes differ and no size is given.
    """
    wanted = np.asarray(indices, np.int64)
    if isinstance(source, ArraySource):
        samples = source.gather(wanted)
        return samples if size is None or source.kind != "image" else resized_centre(samples, size, interpolation)
    images = [_read(source, int(i), size, interpolation) for i in wanted]
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{source.name}: images of several sizes do not stack; give the size to bring them to.")
    return torch.stack(images)


def read_in_order(
    source: Source,
    indices: IntArray,
    batch_size: int,
    size: int | None = None,
    *,
    skipped: dict[int, str],
    interpolation: str = "bicubic",
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images [b, C, size, size], ids [b] int64) of the readable samples, in the order of `indices`.

    An unreadable sample is left out of its batch and its reason put into `skipped`.
    """
    for first in range(0, len(indices), batch_size):
        images, ids = [], []
        for i in indices[first : first + batch_size].tolist():
            try:
                images.append(read_batch(source, [i], size, interpolation=interpolation))
                ids.append(i)
            except CorruptSample as error:
                skipped[i] = error.reason
        if ids:
            yield torch.cat(images), torch.tensor(ids, dtype=torch.int64)


def _read(source: Source, i: int, size: int | None, interpolation: str) -> Tensor:
    if size is None:
        return source.read(i)
    image = source.image(i)
    spare = min(image.height, image.width) // size
    pixels, _ = image.decode(max(r for r in (1, 2, 4, 8) if r == 1 or 2 * r <= spare))
    return resized_centre(pixels[None], size, interpolation)[0]


def resized_centre(images: Tensor, size: int, interpolation: str = "bicubic") -> Tensor:
    """[n, C, H, W] -> [n, C, size, size]: shorter side to `size` (antialiased), then the centre."""
    height, width = images.shape[-2:]
    if height == width == size:
        return images
    shorter = min(height, width)
    target = (max(size, round(height * size / shorter)), max(size, round(width * size / shorter)))
    scaled = F.interpolate(images, target, mode=interpolation, antialias=True)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return scaled[..., top : top + size, left : left + size].contiguous()
