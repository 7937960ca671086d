"""From a stored image to what an encoder reads: resize, centre crop, normalise. It travels with the weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from barlow.errors import InputError, suggest
from barlow.records import exact

LARGEST = 2**16  # pixels a side; an image this large takes 13 GB
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Preprocess:
    """The deterministic transform of evaluation and deployment.

    `mean` and `std` are per channel, on the scale of `pixel / scale` (0 to 1 for 8-bit images).
    Signals and table rows have no geometry: `image_size` is then 0 and only the normalisation is applied.
    """

    image_size: int
    """side of the square handed to the encoder, in pixels; 0 for signals and tables"""
    channels: int
    """number of input channels"""
    mean: tuple[float, ...]
    """mean per channel"""
    std: tuple[float, ...]
    """standard deviation per channel"""
    resize: int = 0
    """length of the shorter side before the centre crop, in pixels; 0 means `image_size`"""
    interpolation: str = "bicubic"
    """bicubic or bilinear, antialiased"""
    scale: float = 255.0
    """what a stored value is divided by first: 255 for 8-bit images, 1 for float sources"""

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            hint = suggest(self.interpolation, INTERPOLATIONS)
            raise InputError(f"unknown interpolation '{self.interpolation}'. {hint}")
        if not 0 <= self.image_size <= LARGEST or not 0 <= self.resize <= LARGEST:
            raise InputError(f"images have 0 to {LARGEST} pixels a side, got {self.image_size} and {self.resize}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise InputError(
                f"mean and std need one value per channel: {self.channels} channels, "
                f"{len(self.mean)} means, {len(self.std)} standard deviations"
            )

    def __call__(self, batch: Tensor) -> Tensor:
        """Normalised float32 `[B, C, image_size, image_size]` of `[B, C, H, W]` (or one `[C, H, W]`) stored values.

        Raises InputError when the channel count differs from the encoder's.
        """
        batched = batch if batch.ndim > 3 or self.image_size == 0 else batch[None]
        if batched.shape[1] != self.channels:
            raise InputError(f"the encoder reads {self.channels} channels, got {batched.shape[1]}")
        fitted = self.fit(batched)
        shape = (1, self.channels) + (1,) * (fitted.ndim - 2)
        mean = torch.tensor(self.mean, device=batch.device).view(shape)
        std = torch.tensor(self.std, device=batch.device).view(shape)
        return (fitted.float() / self.scale - mean) / std

    def fit(self, batch: Tensor) -> Tensor:
        """`[B, C, image_size, image_size]` by resizing the shorter side and cropping the centre; same value type."""
        if self.image_size == 0 or batch.shape[-2:] == (self.image_size, self.image_size):
            return batch
        height, width = batch.shape[-2:]
        # rounded as torchvision's Resize and CenterCrop round, so that the two give the same pixels
        short, target = min(height, width), self.resize or self.image_size
        size = [max(self.image_size, int(target * side / short)) for side in (height, width)]
        resized = functional.interpolate(batch.float(), size, mode=self.interpolation, antialias=True)
        if batch.dtype == torch.uint8:
            resized = resized.round().clamp(0, 255).to(torch.uint8)
        top, left = (round((side - self.image_size) / 2) for side in resized.shape[-2:])
        return resized[..., top : top + self.image_size, left : left + self.image_size]

    def image(self, image: Image.Image | str | Path) -> Tensor:
        """`[1, C, image_size, image_size]` of one PIL image or image file, as data sources read it.

        Raises InputError for what is not an image, or has channels that cannot become the encoder's.
        """
        from barlow.data.decode import decode_one  # an encoder loads without the readers of data
        from barlow.data.source import CorruptSample

        dtype = torch.uint8 if self.scale == 255.0 else torch.float32
        given, name = (image, "the image") if isinstance(image, Image.Image) else (Path(image).read_bytes(), str(image))
        try:
            return self(decode_one(given, self.channels, dtype, name))
        except CorruptSample as error:
            raise InputError(str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Read back strictly; raises InputError on an unknown or missing field."""
        return exact(values, cls, "preprocess")
