"""Encoded bytes to pixels: JPEG, PNG, WebP, AVIF, TIFF and others, brought to one channel count and dtype.

The decoder is chosen by the first bytes, never by the file's name, and each format's own class is called: Pillow's
`Image.open` would warn or refuse at a pixel count before a JPEG can be asked for a reduced size, and would try
formats nobody asked for.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from . import png16
from .source import CorruptSample, LazyImage
from .tiff import ORIENTATION, SIDEWAYS, Tiff

MAX_PIXELS = 89_478_485
"""Largest image of up to 4 channels that is decoded whole (Pillow's own limit: 1/4 GiB in 8-bit RGB), in proportion
fewer with more channels; a baseline JPEG above it is decoded reduced."""
MAX_CHANNELS = 512
"""More than the bands of a hyperspectral camera (224 of AVIRIS, 426 of its successor)."""
MIN_SIDE = 2
"""Pixels a side below which an image is refused: there is nothing to crop in it."""
HEIF_SUFFIXES = frozenset({".heic", ".heif"})
HAS_HEIF = find_spec("pillow_heif") is not None
"""Whether Pillow's plugin for HEIC, the format of phones, is installed; Pillow alone does not read it."""
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"),
        *(".pgm", ".ppm", ".pbm", ".pnm", ".npy"),
        *(HEIF_SUFFIXES if HAS_HEIF else ()),
    )
)
RICHER_SHARE = 0.1
"""Share of colour among gray images, and of deep ones among 8-bit ones, from which all are brought to the richer form,
which holds the other without loss."""

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
    (b"\0\0\0\x0cjP  ", Jpeg2KImagePlugin.Jpeg2KImageFile),
    (b"\xff\x4f\xff\x51", Jpeg2KImagePlugin.Jpeg2KImageFile),
    *((b"P%d" % n, PpmImagePlugin.PpmImageFile) for n in range(1, 7)),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""EXIF orientation -> the axes of [C, H, W] to flip, after height and width have changed places where they do."""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG and in Pillow's mode L
_PICTURE = (1, 3)  # channels of gray and of RGB, of which each can be made the other


@dataclass(frozen=True)
class Form:
    """What every image of one source is brought to."""

    channels: int
    dtype: torch.dtype
    rgba: bool = False
    """the four channels are RGB and opacity, so that pictures without opacity are opaque; else they are four bands"""
    layout: str = field(default="", compare=False)
    """of one image as stored: how the axes of its array were taken, "" where nothing had to be inferred"""


def open_image(data: bytes, form: Form, key: str) -> LazyImage:
    """The image in `data`, its pixels not decoded yet. Raises CorruptSample."""
    with _corrupt_as(key):
        image = _checked(_open(data, form.channels))
        _check_fit(image.natural, form)
        return _GuardedImage(image, form, key)


def natural_form(data: bytes, key: str, channels: int | None = None) -> Form:
    """Channels and dtype as stored: opacity does not count, a palette is colour. Raises CorruptSample.

    `channels` decides between the layouts of an array that could be [C, H, W] or [H, W, C].
    """
    with _corrupt_as(key):
        return _checked(_open(data, channels)).natural


def common_form(forms: Sequence[Form], channels: int | None) -> Form:
    """The form of most of `forms`, with the count of channels asked for.

    Gray and RGB are alike; see RICHER_SHARE for which of them it is, and for the dtype.
    """
    counts = Counter(_kind(form) for form in forms)
    most = counts.most_common(1)[0][0] if counts else 3
    alike = [form for form in forms if _kind(form) == most]
    enough = RICHER_SHARE * len(alike)
    gray = bool(alike) and most == 3 and sum(form.channels == 3 for form in alike) < enough
    deep = bool(alike) and sum(form.dtype != torch.uint8 for form in alike) >= enough
    return Form(
        channels or (1 if gray else most), torch.float32 if deep else torch.uint8, rgba=channels == 4 and most == 3
    )


def _kind(form: Form) -> int:
    return 3 if form.channels in _PICTURE else form.channels


def loss(natural: Form, form: Form, *, asked: bool) -> str:
    """What bringing an image to `form` loses: "" for nothing, or nothing but colour that was not `asked` for."""
    if not _fits(natural.channels, form):
        return f"{natural.channels} channels, left out"
    if natural.channels == 3 and form.channels == 1 and not asked:
        return "colour, read as gray"
    deep = natural.dtype != torch.uint8 and form.dtype == torch.uint8
    return "more than 8 bits, read as 8-bit" if deep else ""


def _fits(channels: int, form: Form) -> bool:
    if channels in _PICTURE:
        return form.rgba or form.channels in _PICTURE
    return channels == form.channels and not form.rgba


def _check_fit(natural: Form, form: Form) -> None:
    if not _fits(natural.channels, form):
        wanted = "RGB and opacity" if form.rgba else form.channels
        raise ValueError(f"has {natural.channels} channels where the data set has {wanted}")


def decode_one(
    data: bytes | Image.Image, channels: int, dtype: torch.dtype, key: str, most_pixels: int | None = None
) -> Tensor:
    """[channels, H, W] of one image that belongs to no source: its bytes, or as Pillow opened it.

    Raises CorruptSample, also for an image of more than `most_pixels`, before any of them is decoded.
    """
    with _corrupt_as(key):
        image = _checked(_open(data, channels) if isinstance(data, bytes) else _PillowImage(data.copy()))
        if most_pixels is not None and image.height * image.width > most_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels: over the limit of {most_pixels:,}")
        form = Form(channels, dtype, rgba=channels == 4 and image.natural.channels in _PICTURE)
        _check_fit(image.natural, form)
        return image.decode(form, 1)[0].contiguous()


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


def _open(data: bytes, channels: int | None) -> "_PillowImage | _ArrayImage":
    if data.startswith(_TIFF):
        return _open_tiff(data)
    if data.startswith(b"\x93NUMPY"):
        return _open_npy(data, channels)
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


def is_image(data: bytes) -> bool:
    """Whether bytes begin as an image file does that `open_image` reads."""
    return data.startswith(b"\x93NUMPY") or data.startswith(_TIFF) or _opener(data) is not None


def _opener(data: bytes) -> Opener | None:
    if data[4:8] == b"ftyp":  # a box of brands begins both AVIF and HEIC
        return AvifImagePlugin.AvifImageFile if b"avi" in data[8:40] else _open_heif if HAS_HEIF else None
    return next((opener for magic, opener in _OPENERS if data.startswith(magic)), None)


def _open_heif(file: io.BytesIO) -> ImageFile.ImageFile:
    image: ImageFile.ImageFile = import_module("pillow_heif").HeifImageFile(file)
    return image


def _open_pillow(data: bytes) -> "_PillowImage":
    opener = _opener(data)
    if opener is None:
        raise ValueError(f"not an image: it starts with {data[:8]!r}" if data else "empty file")
    return _PillowImage(opener(io.BytesIO(data)))


class _PillowImage:
    def __init__(self, image: Image.Image) -> None:
        self._image = image
        orientation, (width, height) = _orientation(image), _stored_size(image)
        self.height, self.width = (width, height) if orientation in SIDEWAYS else (height, width)
        self._orientation = 1 if image.format == "TIFF" else orientation  # Pillow turns a TIFF by itself
        # a progressive JPEG is held whole as coefficients before it is reduced
        self.reducible = image.format == "JPEG" and not image.info.get("progressive")
        deep = image.mode == "F" or image.mode.startswith("I")
        gray = deep or image.mode in ("1", "L", "LA", "La")
        self.natural = Form(1 if gray else 3, torch.float32 if deep else torch.uint8)

    def decode(self, form: Form, reduction: int) -> tuple[Tensor, int]:
        used, image = self._draft(form, reduction), self._image
        if self.natural.dtype == torch.uint8:
            opaque = "L" if form.channels == 1 else "RGB"
            mode = "RGBA" if image.has_transparency_data else opaque
            image = image if image.mode == mode else image.convert(mode)  # converting to the same mode copies
        pixels = np.array(image)
        if image.format == "PPM" and pixels.dtype == np.int32:  # Pillow scales a deep gray map to 65535
            pixels = pixels.astype(np.uint16)
        # channels stay last in memory, which is what cutting likes
        bands = pixels_to_tensor(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0))
        opacity = bands[3:] if len(bands) == 4 else None
        return _upright(_to_form(bands[:3], opacity, form), self._orientation), used

    def _draft(self, form: Form, reduction: int) -> int:
        """Ask for the pixels of a JPEG reduced by what is returned, and without colours where none are wanted."""
        if self._image.format != "JPEG":
            return 1
        width, height = self._image.size
        used = next(r for r in (1, 2, 4, 8) if r >= reduction and width * height // r**2 <= MAX_PIXELS)
        self._image.draft("L" if form.channels == 1 else None, (width // used, height // used))
        return used


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 when there is none or it is damaged (PNG: only when it comes before the pixels)."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the pixels to look for it
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF raises nearly anything, and the pixels are fine without it
        return 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as stored: Pillow gives those of the upright TIFF from version 11 on."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[TiffImagePlugin.IMAGEWIDTH]), int(image.tag_v2[TiffImagePlugin.IMAGELENGTH])
    return image.size


# --- Arrays: TIFF, .npy, 16-bit PNG -----------------------------------------------------------------------------


class _ArrayImage:
    """An image whose decoder gives its channels [C, H, W] and its opacity [1, H, W] or None, as arrays."""

    reducible = False

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        load: Callable[[], tuple[Array, Array | None]],
        orientation: int = 1,
        layout: str = "",
    ) -> None:
        channels, height, width = shape
        self._load, self._orientation = load, orientation
        self.height, self.width = (width, height) if orientation in SIDEWAYS else (height, width)
        self.natural = Form(channels, _natural_dtype(np.dtype(dtype)), layout=layout)

    def decode(self, form: Form, reduction: int) -> tuple[Tensor, int]:
        bands, opacity = self._load()
        straight = None if opacity is None else pixels_to_tensor(opacity)
        return _upright(_to_form(pixels_to_tensor(bands), straight, form), self._orientation), 1


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """[C, H, W] as a viewer shows it."""
    turned = pixels.transpose(1, 2) if orientation in SIDEWAYS else pixels
    return turned.flip(_FLIPS[orientation]) if orientation in _FLIPS else turned


def _natural_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    if dtype in (np.uint8, np.bool_):
        return torch.uint8
    if dtype.newbyteorder("=") == np.uint16 or dtype.kind == "f":
        return torch.float32
    raise ValueError(f"pixels of dtype {dtype}: only uint8, uint16 and floats are images")


def _open_npy(data: bytes, channels: int | None) -> _ArrayImage:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"an array of shape {list(array.shape)} is not an image [H, W], [C, H, W] or [H, W, C]")
    axis = channel_axis(array.shape, channels) if array.ndim == 3 else None
    bands = array[None] if axis is None else np.moveaxis(array, axis, 0)
    layout = "" if axis is None else f"arrays {list(array.shape)} read as {'[H, W, C]' if axis else '[C, H, W]'}"
    return _ArrayImage(bands.shape, array.dtype, lambda: (bands, None), layout=layout if len(bands) > 4 else "")


def channel_axis(shape: tuple[int, ...], channels: int | None) -> int:
    """The axis of an image's channels: 0 for [C, H, W], 2 for [H, W, C]. It is the odd one out.

    What decides, in this order: which end has the `channels` asked for; two equal neighbours, which are the sides; an
    end of 1, 3 or 4; sides of at least twice as square an image. Raises ValueError where nothing does.
    """
    first, middle, last = shape
    if (first == channels) != (last == channels):
        return 0 if first == channels else 2
    if (first == middle) != (middle == last):
        return 0 if middle == last else 2
    if (first in (1, 3, 4)) != (last in (1, 3, 4)):
        return 0 if first in (1, 3, 4) else 2
    after_first, before_last = (max(sides) / min(sides) for sides in (shape[1:], shape[:2]))
    if max(after_first, before_last) >= 2 * min(after_first, before_last):
        return 0 if after_first < before_last else 2
    if first == last == channels:
        return 0  # PyTorch's layout
    counts = f"--channels {first}" if first == last else f"--channels {first} or --channels {last}"
    raise ValueError(f"an array of shape {list(shape)} that may be [C, H, W] or [H, W, C]: tell which with {counts}")


def _open_png16(data: bytes) -> _ArrayImage:
    channels, height, width = png16.header(data)
    colours = channels - (channels in (2, 4))

    def load() -> tuple[Array, Array | None]:
        samples = png16.read_png16(data)
        return samples[:colours], samples[colours:] if channels > colours else None

    return _ArrayImage((colours, height, width), np.uint16, load)


def _open_tiff(data: bytes) -> "_PillowImage | _ArrayImage":
    """One page, or several of one channel, which are the channels of the image."""
    tiff = Tiff(io.BytesIO(data))
    if tiff.is_for_pillow:
        return _open_pillow(data)
    *pages, samples, height, width = tiff.shape
    if len(pages) == 1 and samples == tiff.channels == 1:
        return _ArrayImage(
            (pages[0], height, width), tiff.dtype, lambda: (tiff.read()[0][:, 0], None), tiff.orientation
        )
    if pages:
        raise ValueError(f"a TIFF of {pages[0]} pages of {samples} samples is not one image")
    return _ArrayImage((tiff.channels, height, width), tiff.dtype, tiff.read, tiff.orientation)


# --- To the source's form ---------------------------------------------------------------------------------------


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


def _to_form(bands: Tensor, opacity: Tensor | None, form: Form) -> Tensor:
    """[form.channels, H, W] of channels and straight opacity, which is laid over white unless it is wanted itself."""
    if bands.dtype == torch.float32 and not bool(torch.isfinite(bands).all()):
        raise ValueError("holds NaN or infinity")
    if opacity is None:
        return to_channels(_to_dtype(bands, form.dtype), form.channels)
    if form.rgba:
        return torch.cat([to_channels(_to_dtype(part, form.dtype), n) for part, n in ((bands, 3), (opacity, 1))])
    return to_channels(_to_dtype(over_white(bands, opacity), form.dtype), form.channels)


def over_white(bands: Tensor, opacity: Tensor) -> Tensor:
    """Channels [..., C, H, W] as they look on white paper through their opacity [..., 1, H, W]; the same dtype."""
    white = 255 if bands.dtype == torch.uint8 else 1
    share = opacity.float() / white
    seen = bands.float() * share + white * (1 - share)
    return seen.round().to(torch.uint8) if bands.dtype == torch.uint8 else seen


def _to_dtype(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    if pixels.dtype == dtype:
        return pixels
    if dtype == torch.float32:
        return pixels.float() / 255
    if bool((pixels.min() < 0) | (pixels.max() > 1)):
        raise ValueError("float pixels outside [0, 1] in a data set of 8-bit images")
    return (pixels * 255).round().to(torch.uint8)


def to_channels(pixels: Tensor, channels: int) -> Tensor:
    """[..., C, H, W] to `channels`: gray and RGB to each other and to opaque RGBA, equal counts; else ValueError."""
    have = pixels.shape[-3]
    if have == channels:
        return pixels
    if have in _PICTURE and channels == 4:
        rgb = to_channels(pixels, 3)
        opaque = 255 if pixels.dtype == torch.uint8 else 1
        return torch.cat([rgb, torch.full_like(rgb[..., :1, :, :], opaque)], dim=-3)
    if have == 1 and channels == 3:
        return pixels.repeat_interleave(channels, dim=-3)
    if have == 3 and channels == 1:
        luma = torch.einsum("...chw,c->...hw", pixels.float(), torch.tensor(_LUMA)).unsqueeze(-3)
        return luma.round().to(torch.uint8) if pixels.dtype == torch.uint8 else luma
    raise ValueError(f"has {have} channels where the data set has {channels}")
