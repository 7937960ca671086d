"""16-bit colour PNG: Pillow reduces it to 8 bits, so its pixels are unpacked here.

Format: https://www.w3.org/TR/png-3/ (chunks, zlib, and one of five predictors per row).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_CHANNELS = {2: 3, 4: 2, 6: 4}  # colour type -> RGB; gray and alpha; RGB and alpha


def is_png16(data: bytes) -> bool:
    """Whether the bytes start as a PNG with 16 bits in each of several channels."""
    return data.startswith(b"\x89PNG") and data[24:25] == b"\x10" and data[25:26] in (b"\2", b"\4", b"\6")


def header(data: bytes) -> tuple[int, int, int]:
    """(stored channels, height, width)."""
    width, height, _, colour = struct.unpack(">IIBB", data[16:26])
    return _CHANNELS[colour], height, width


def read_png16(data: bytes) -> Array:
    """The samples, uint16 [stored channels, H, W]. Raises ValueError or zlib.error on damaged bytes."""
    channels, height, width = header(data)
    if data[28] != 0:
        raise ValueError("interlaced 16-bit colour PNG: save it without interlacing")
    wanted = height * (1 + 2 * channels * width)
    packed = zlib.decompressobj().decompress(b"".join(_pixel_chunks(data)), wanted)
    if len(packed) < wanted:
        raise ValueError("truncated PNG")
    rows = np.frombuffer(packed, np.uint8).reshape(height, -1)
    values = _unfiltered(rows, 2 * channels).reshape(height, width, channels, 2)
    return np.ascontiguousarray(values).view(">u2")[..., 0].transpose(2, 0, 1).astype(np.uint16)


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(data):
        (length,), name = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if name == b"IDAT":
            if zlib.crc32(name + body).to_bytes(4, "big") != check:
                raise ValueError("damaged PNG: a checksum differs")
            yield body
        at += 12 + length


def _unfiltered(rows: Array, step: int) -> Array:
    """Undo each row's predictor (left, above, their mean, or Paeth): uint8 [H, 1 + W * step] -> [H, W, step].

    A pixel needs those left, above and left-above of it, so all pixels of an antidiagonal are done at once.
    """
    kinds, stored = rows[:, 0], rows[:, 1:].reshape(len(rows), -1, step).astype(np.int16)
    if kinds.max() > 4:
        raise ValueError("damaged PNG: unknown row filter")
    height, width = stored.shape[:2]
    out = np.zeros((height + 1, width + 1, step), np.int16)  # with the zeros above and left that the format assumes
    for diagonal in range(height + width - 1):
        r = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        c = diagonal - r
        predicted = _predicted(kinds[r, None], out[r + 1, c], out[r, c + 1], out[r, c])
        out[r + 1, c + 1] = (stored[r, c] + predicted) & 255
    return out[1:, 1:].astype(np.uint8)


def _predicted(kind: Array, left: Array, above: Array, corner: Array) -> Array:
    return np.choose(kind, [np.zeros_like(left), left, above, (left + above) // 2, _paeth(left, above, corner)])


def _paeth(left: Array, above: Array, corner: Array) -> Array:
    """Whichever neighbour is nearest to left + above - corner, in this order on a tie."""
    guess = left + above - corner
    to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    nearest = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
