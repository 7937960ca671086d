"""What the samples of a TIFF mean: one reading for every depth, photometric interpretation, planar layout and kind
of extra sample, so that a picture gives the same pixels however it is stored.

Specification: TIFF 6.0, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf.
"""

import logging
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import TiffImagePlugin
from tifffile import EXTRASAMPLE, PHOTOMETRIC, TIFF

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what is wrong is told once, by whoever reads

Array = npt.NDArray[Any]

ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""Orientations whose height and width change places."""
_READ_HERE = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MASK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE)


class Tiff:
    """The first series of a TIFF file: one page, or several of one shape. Raises nearly anything on damaged bytes."""

    shape: tuple[int, ...]
    """[..., S, H, W] as stored: S samples per pixel, behind the axes of pages"""
    channels: int
    """colours and unspecified extra samples of a page: opacity is no channel, a palette is colour"""
    dtype: np.dtype[Any]
    """of the values that `read` scales: uint8 up to 8 bits and of a palette"""
    orientation: int

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._series = file, tifffile.TiffFile(file).series[0]
        self._page = page = self._series.keyframe
        self._axis = self._series.axes.find("S")
        axes, samples = self._series.axes.replace("S", ""), page.samplesperpixel
        if not axes.endswith("YX") or (samples > 1 and self._axis < 0):
            raise ValueError(f"a TIFF of shape {list(self._series.shape)} (axes {self._series.axes}) holds no images")
        pages = [n for i, n in enumerate(self._series.shape) if i != self._axis]
        self.shape = (*pages[:-2], samples, *pages[-2:])
        self.orientation = int(page.tags.valueof(ORIENTATION, default=1))

        self._palette = page.colormap if page.photometric == PHOTOMETRIC.PALETTE else None
        self._colours = 3 if page.photometric == PHOTOMETRIC.RGB else 1
        extra = tuple(page.extrasamples)
        if samples == 4 and self._colours == 3 and not extra:
            extra = (EXTRASAMPLE.UNASSALPHA,)  # libtiff, too, takes a fourth sample that the file does not describe so
        self._extra = extra + (EXTRASAMPLE.UNSPECIFIED,) * (samples - self._colours - len(extra))
        self.channels = (self._colours if self._palette is None else 3) + self._extra.count(EXTRASAMPLE.UNSPECIFIED)
        self.dtype = np.dtype(np.uint8 if page.bitspersample <= 8 or self._palette is not None else page.dtype)

        has_codec = page.compression in TIFF.DECOMPRESSORS and page.predictor in TIFF.UNPREDICTORS
        self._foreign = not has_codec or page.photometric not in _READ_HERE
        if self._foreign and self.dtype != np.uint8 and self.orientation in SIDEWAYS:
            self.shape = (*self.shape[:-2], self.shape[-1], self.shape[-2])
        if self._foreign:
            self.orientation = 1  # Pillow turns a TIFF by itself
        plain = self.shape[:-2] == (1,) and page.photometric in _READ_HERE
        if self._foreign and not (plain or self.is_for_pillow):
            codec, colours = (getattr(kind, "name", kind) for kind in (page.compression, page.photometric))
            raise ValueError(
                f"a TIFF of compression {codec}, photometric interpretation {colours} and {samples} samples of "
                f"{page.bitspersample} bits is not read; save it as 8-bit or 16-bit gray or RGB with Deflate"
            )

    @property
    def is_for_pillow(self) -> bool:
        """tifffile lacks the codec or the colour space, and Pillow gives every sample the meaning it has in `read`."""
        page = self._page
        one_plane = page.samplesperpixel == 1 or page.planarconfig == 1
        kept = one_plane and EXTRASAMPLE.UNSPECIFIED not in page.extrasamples
        return self._foreign and self.dtype == np.uint8 and len(self.shape) == 3 and kept

    def read(self) -> tuple[Array, Array | None]:
        """(channels [..., C, H, W], opacity [..., 1, H, W] or None): uint8, or float32 where white is 1.

        Opacity is straight: colours that are stored multiplied by it are divided.
        """
        samples = self._samples()
        if self._palette is None:
            samples = _full_scale(samples, self._page.bitspersample)
            colour, extra = samples[..., : self._colours, :, :], samples[..., self._colours :, :, :]
        else:
            table = (self._palette // 256).astype(np.uint8)
            colour = np.moveaxis(table[:, samples[..., 0, :, :].astype(np.uint16)], 0, -3)
            extra = _full_scale(samples[..., 1:, :, :], self._page.bitspersample)
            extra = extra if extra.dtype == np.uint8 else np.rint(extra * 255).astype(np.uint8)  # as the colours are
        white = 255 if colour.dtype == np.uint8 else np.float32(1)
        opacity = None
        for i, kind in enumerate(self._extra):
            if kind != EXTRASAMPLE.UNSPECIFIED and opacity is None:
                opacity = extra[..., i : i + 1, :, :]
                if kind == EXTRASAMPLE.ASSOCALPHA:
                    colour = _divided(colour, opacity, white)
        if self._page.photometric == PHOTOMETRIC.MINISWHITE:
            colour = white - colour
        bands = [i for i, kind in enumerate(self._extra) if kind == EXTRASAMPLE.UNSPECIFIED]
        return np.concatenate([colour, extra[..., bands, :, :]], -3) if bands else colour, opacity

    def _samples(self) -> Array:
        """[..., S, H, W] as stored."""
        if not self._foreign and self._page.bitspersample not in (1, 8, 16, 32, 64):
            return self._unpacked()
        if not self._foreign:
            stored = self._series.asarray(maxworkers=1)
            return np.expand_dims(stored, -3) if self._axis < 0 else np.moveaxis(stored, self._axis, -3)
        self._file.seek(0)
        return np.array(TiffImagePlugin.TiffImageFile(self._file))[None]

    def _unpacked(self) -> Array:
        """[S, H, W] of samples that fill no whole bytes, which tifffile leaves to a further package."""
        page, (*pages, samples, height, width) = self._page, self.shape
        if pages or page.is_tiled or page.predictor != 1:
            raise ValueError(f"samples of {page.bitspersample} bits in pages, tiles or differences are not read")
        decompressed, planar = TIFF.DECOMPRESSORS[page.compression], page.planarconfig == 2
        strips = page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts)
        packed = np.frombuffer(b"".join(decompressed(strip) for strip, _ in strips), np.uint8)
        rows, columns = (samples * height, width) if planar else (height, width * samples)
        digits = np.unpackbits(packed.reshape(rows, -1), axis=1)[:, : columns * page.bitspersample]
        powers = 1 << np.arange(page.bitspersample, dtype=np.uint16)[::-1]
        values = digits.reshape(rows, columns, page.bitspersample) @ powers
        if planar:
            return values.reshape(samples, height, width)
        return np.moveaxis(values.reshape(height, width, samples), -1, 0)


def _full_scale(samples: Array, bits: int) -> Array:
    """Whole numbers to 0..255 (up to 8 bits) or to float32 in [0, 1]; floats as float32, unchanged."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype.kind not in "bu" or bits > 16:
        raise ValueError(f"pixels of dtype {samples.dtype}: only unsigned ones of up to 16 bits and floats are images")
    if bits > 8:
        return samples.astype(np.float32) / np.float32(2**bits - 1)
    return samples if bits == 8 else np.rint(samples * (255 / (2**bits - 1))).astype(np.uint8)


def _divided(colour: Array, opacity: Array, white: Any) -> Array:
    """Colours without the opacity they were multiplied by; where nothing is opaque they are 0."""
    straight = np.minimum(white * colour.astype(np.float32) / np.maximum(opacity, 1e-12), white) * (opacity > 0)
    return np.asarray(np.rint(straight) if colour.dtype == np.uint8 else straight, colour.dtype)
