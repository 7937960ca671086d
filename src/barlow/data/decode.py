"""Encoded bytes to pixels: JPEG, PNG, WebP, BMP, GIF, TIFF and .npy, brought to one channel count and dtype.

The decoder is chosen by the first bytes, never by the file's name, and each format's own class is called: Pillow's
`Image.open` would warn or refuse at a pixel count before a JPEG can be asked for a reduced size, and would try
formats nobody asked for.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from . import png16
from .source import CorruptSample, LazyImage

MAX_PIXELS = 89_478_485
"""Largest image of up to 4 channels that is decoded whole (Pillow's own limit: 1/4 GiB in 8-bit RGB), in proportion
fewer with more channels; a baseline JPEG above it is decoded reduced."""
MAX_CHANNELS = 32
MIN_SIDE = 2
"""Pixels a side below which an image is refused: there is nothing to crop in it."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy"})

Array = npt.NDArray[Any]
Opener = Callable[[io.BytesIO], ImageFile.ImageFile]

_OPENERS: tuple[tuple[bytes, Opener], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II", TiffImagePlugin.TiffImageFile),
    (b"MM", TiffImagePlugin.TiffImageFile),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes the image upright
_SIDEWAYS = (5, 6, 7, 8)  # orientations whose height and width change places
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}  # axes of [C, H, W], after that change
_ORIENTATION = 0x0112
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG and in Pillow's mode L


@dataclass(frozen=True)
class Form:
    """What every image of one source is brought to."""

    channels: int
    dtype: torch.dtype


def open_image(data: bytes, form: Form, key: str) -> LazyImage:
    """The image in `data`, its pixels not decoded yet. Raises CorruptSample."""
    with _corrupt_as(key):
        return _GuardedImage(_checked(_open(data)), form, key)


def natural_form(data: bytes, key: str) -> Form:
    """Channels and dtype as stored: alpha does not count, a palette is colour. Raises CorruptSample."""
    with _corrupt_as(key):
        return _checked(_open(data)).natural


def join_forms(forms: list[Form], channels: int | None) -> Form:
    """The form that holds every one of `forms`: the most channels, float32 where any is not 8-bit."""
    most = max((form.channels for form in forms), default=3)
    wide = any(form.dtype != torch.uint8 for form in forms)
    return Form(channels or most, torch.float32 if wide else torch.uint8)


@contextmanager
def _corrupt_as(key: str) -> Iterator[None]:
    """Decoders raise nearly anything on damaged bytes (SyntaxError, struct.error, KeyError...): no common base."""
    try:
        yield
    except CorruptSample:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise CorruptSample(key, text if len(text) < 160 else text[:157] + "...") from error


class _GuardedImage:
    def __init__(self, image: "_PillowImage | _ArrayImage", form: Form, key: str) -> None:
        self._image, self._form, self._key = image, form, key
        self.height, self.width = image.height, image.width

    def decode(self, reduction: int = 1) -> tuple[Tensor, int]:
        with _corrupt_as(self._key):
            return self._image.decode(self._form, reduction)


def _open(data: bytes) -> "_PillowImage | _ArrayImage":
    if data.startswith(_TIFF):
        return _open_tiff(data)
    if data.startswith(b"\x93NUMPY"):
        return _open_npy(data)
    if png16.is_png16(data):
        return _open_png16(data)
    return _open_pillow(data)


def _checked(image: "_PillowImage | _ArrayImage") -> "_PillowImage | _ArrayImage":
    if min(image.height, image.width) < MIN_SIDE:
        raise ValueError(f"{image.width}x{image.height} pixels: under {MIN_SIDE} a side")
    if image.natural.channels > MAX_CHANNELS:
        raise ValueError(f"{image.natural.channels} channels: more than {MAX_CHANNELS}")
    if image.height * image.width * max(image.natural.channels / 4, 1) > MAX_PIXELS and not image.reducible:
        raise ValueError(f"{image.width}x{image.height} pixels: over the limit of {MAX_PIXELS:,}")
    return image


# --- Pillow: 8-bit images ---------------------------------------------------------------------------------------


def _open_pillow(data: bytes) -> "_PillowImage":
    for magic, opener in _OPENERS:
        if data.startswith(magic):
            return _PillowImage(opener(io.BytesIO(data)))
    raise ValueError(f"not an image: it starts with {data[:8]!r}" if data else "empty file")


class _PillowImage:
    def __init__(self, image: ImageFile.ImageFile) -> None:
        self._image = image
        orientation, (width, height) = _orientation(image), _stored_size(image)
        self._turn = _UPRIGHT.get(orientation) if image.format != "TIFF" else None  # Pillow turns a TIFF by itself
        self.height, self.width = (width, height) if orientation in _SIDEWAYS else (height, width)
        # a progressive JPEG is held whole as coefficients before it is reduced
        self.reducible = image.format == "JPEG" and not image.info.get("progressive")

    @property
    def natural(self) -> Form:
        wide = self._image.mode == "F" or self._image.mode.startswith("I")
        gray = wide or self._image.mode in ("1", "L", "LA", "La")
        return Form(1 if gray else 3, torch.float32 if wide else torch.uint8)

    def decode(self, form: Form, reduction: int) -> tuple[Tensor, int]:
        image, used = self._loaded(form, reduction)
        upright = image if self._turn is None else image.transpose(self._turn)
        if self.natural.dtype != torch.uint8:
            return _to_form(_chw(np.array(upright), None), form), used
        pixels = np.array(_to_mode(upright, form.channels))
        return _to_form(_chw(pixels, -1 if pixels.ndim == 3 else None), form), used

    def _loaded(self, form: Form, reduction: int) -> tuple[Image.Image, int]:
        """The image, its pixels decoded on first use; only a JPEG comes reduced."""
        if self._image.format != "JPEG":
            return self._image, 1
        width, height = self._image.size
        used = next(r for r in (1, 2, 4, 8) if r >= reduction and width * height // r**2 <= MAX_PIXELS)
        self._image.draft("L" if form.channels == 1 else None, (width // used, height // used))
        return self._image, used


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 when there is none or it is damaged (PNG: only when it comes before the pixels)."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the pixels to look for it
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises nearly anything, and the pixels are fine without it
        return 1


def _stored_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Width and height as stored: Pillow gives those of the upright TIFF from version 11 on."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[TiffImagePlugin.IMAGEWIDTH]), int(image.tag_v2[TiffImagePlugin.IMAGELENGTH])
    return image.size


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Gray, RGB or RGBA pixels; transparency is laid over white, as a page would show it."""
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # converting to the same mode copies


# --- Arrays: TIFF, .npy, 16-bit PNG -----------------------------------------------------------------------------


class _ArrayImage:
    """An image stored as an array, with the axis of its channels (None: gray) and its orientation, as in EXIF."""

    reducible = False

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        axis: int | None,
        load: Callable[[], Array],
        orientation: int = 1,
    ) -> None:
        self._axis, self._load, self._orientation = axis, load, orientation
        height, width = (n for i, n in enumerate(shape) if axis is None or i != axis % len(shape))
        self.height, self.width = (width, height) if orientation in _SIDEWAYS else (height, width)
        self.natural = Form(1 if axis is None else shape[axis], _natural_dtype(np.dtype(dtype)))

    def decode(self, form: Form, reduction: int) -> tuple[Tensor, int]:
        return _to_form(_upright(_chw(self._load(), self._axis), self._orientation), form), 1


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """[C, H, W] as a viewer shows it."""
    turned = pixels.transpose(1, 2) if orientation in _SIDEWAYS else pixels
    return turned.flip(_FLIPS[orientation]) if orientation in _FLIPS else turned


def _natural_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    if dtype in (np.uint8, np.bool_):
        return torch.uint8
    if dtype.newbyteorder("=") == np.uint16 or dtype.kind == "f":
        return torch.float32
    raise ValueError(f"pixels of dtype {dtype}: only uint8, uint16 and floats are images")


def _open_npy(data: bytes) -> _ArrayImage:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return _ArrayImage(array.shape, array.dtype, channel_axis(array.shape), lambda: array)


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """The channel axis of one image's array: None for [H, W], 0 for [C, H, W], -1 for [H, W, C].

    Raises ValueError when neither end can be channels, or the array has another number of axes.
    """
    if len(shape) == 2:
        return None
    if len(shape) != 3 or min(shape[0], shape[2]) > MAX_CHANNELS:
        raise ValueError(f"an array of shape {list(shape)} is not an image [H, W], [C, H, W] or [H, W, C]")
    first, last = shape[0], shape[2]
    if (first in (1, 3, 4)) != (last in (1, 3, 4)):
        return 0 if first in (1, 3, 4) else -1
    return 0 if first <= last else -1


def _open_png16(data: bytes) -> _ArrayImage:
    channels, height, width = png16.header(data)
    opaque = channels - (channels in (2, 4))
    return _ArrayImage((opaque, height, width), np.uint16, 0, lambda: png16.read_png16(data))


def _open_tiff(data: bytes) -> "_PillowImage | _ArrayImage":
    """Pillow for plain 8-bit gray, palette and RGB(A); tifffile for every other depth, stack and channel count."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        series, page = tiff.series[0], tiff.series[0].keyframe
        shape, dtype, axes = series.shape, np.dtype(series.dtype), series.axes
        orientation = int(page.tags.valueof(_ORIENTATION, default=1))
    if dtype in (np.uint8, np.bool_) and axes in ("YX", "YXS") and page.samplesperpixel in (1, 3, 4):
        return _open_pillow(data)
    axis = None if axes == "YX" else _tiff_channel_axis(axes, shape)
    if len(shape) == 2 and page.compression != tifffile.COMPRESSION.NONE:
        return _open_pillow(data)  # Pillow reads compressed 16-bit and float gray without further packages
    return _ArrayImage(shape, dtype, axis, lambda: tifffile.imread(io.BytesIO(data)), orientation)


def _tiff_channel_axis(axes: str, shape: tuple[int, ...]) -> int:
    if len(shape) == 3 and axes.endswith("YX"):
        return 0  # pages, planes or depth are the channels
    if len(shape) == 3 and axes.startswith("YX"):
        return -1
    raise ValueError(f"a TIFF of shape {list(shape)} (axes {axes}) is not one image of up to {MAX_CHANNELS} channels")


# --- To the source's form ---------------------------------------------------------------------------------------


def _chw(array: Array, axis: int | None) -> Tensor:
    """[C, H, W] as uint8, or as float32: uint16 divided by 65535, floats as they are. Strides stay as stored:
    decoders write channels last, which is what cutting likes."""
    stacked = array[None] if axis is None else np.moveaxis(array, axis, 0)
    return pixels_to_tensor(stacked)


def pixels_to_tensor(array: Array) -> Tensor:
    """uint8 and bool stay 8-bit; uint16 becomes float32 in [0, 1]; floats become float32 unchanged."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.newbyteorder("=") == np.uint16:
        array = array.astype(np.float32) / np.float32(65535)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif array.dtype != np.uint8:
        raise ValueError(f"pixels of dtype {array.dtype}: only uint8, uint16 and floats are images")
    return torch.from_numpy(array if array.flags.writeable else array.copy(order="K"))


def _to_form(pixels: Tensor, form: Form) -> Tensor:
    if pixels.dtype == torch.float32 and not bool(torch.isfinite(pixels).all()):
        raise ValueError("holds NaN or infinity")
    return to_channels(_to_dtype(pixels, form.dtype), form.channels)


def _to_dtype(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    if pixels.dtype == dtype:
        return pixels
    if dtype == torch.float32:
        return pixels.float() / 255
    if bool((pixels.min() < 0) | (pixels.max() > 1)):
        raise ValueError("float pixels outside [0, 1] in a data set of 8-bit images")
    return (pixels * 255).round().to(torch.uint8)


def to_channels(pixels: Tensor, channels: int) -> Tensor:
    """[..., C, H, W] to `channels`: equal counts pass, gray is repeated, RGB becomes luma; else ValueError."""
    have = pixels.shape[-3]
    if have == channels:
        return pixels
    if have == 1:
        return pixels.repeat_interleave(channels, dim=-3)
    if have == 3 and channels == 1:
        luma = torch.einsum("...chw,c->...hw", pixels.float(), torch.tensor(_LUMA)).unsqueeze(-3)
        return luma.round().to(torch.uint8) if pixels.dtype == torch.uint8 else luma
    raise ValueError(f"has {have} channels where the data set has {channels}")
