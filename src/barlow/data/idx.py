"""IDX files, the layout of MNIST: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, gzipped or not.

Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, a type, the number of axes, big-endian sizes, the data).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from barlow.errors import InputError

from .arrays import ArraySource, choose_split, from_array, split_note

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PREFIXES = {"train": "train", "t10k": "test", "test": "test"}


def is_idx(name: str) -> bool:
    """Whether a file's name says IDX: `*-idx3-ubyte`, `*.idx3-ubyte`, with or without `.gz`."""
    name = name.lower().removesuffix(".gz")
    return not name.startswith(".") and (name.endswith(".idx") or ("idx" in name and name.endswith("byte")))


def open_idx_folder(folder: Path, *, split: str | None, channels: int | None) -> ArraySource:
    """The images of one split of a folder of IDX files, with their labels where they lie beside them."""
    images = dict(_by_split(folder, "images"))
    if not images:
        raise InputError(f"{folder}: holds IDX files but none named like train-images-idx3-ubyte.")
    found = tuple(s for s in ("train", "test") if s in images)
    chosen = choose_split(split, found, str(folder)) or ""
    label_file = dict(_by_split(folder, "labels")).get(chosen)
    labels = read_idx(label_file) if label_file else None
    source = from_array(
        read_idx(images[chosen]), name=str(folder), labels=labels, channels=channels, kind="image", path=images[chosen]
    )
    source.split_names = found
    source.add_note(split_note(chosen, found))
    return source


def _by_split(folder: Path, content: str) -> list[tuple[str, Path]]:
    files = sorted((p for p in folder.iterdir() if is_idx(p.name) and content in p.name), reverse=True)
    return [(_PREFIXES[prefix], p) for p in files for prefix in _PREFIXES if p.name.startswith(prefix)]


def open_idx_file(path: Path, *, channels: int | None) -> ArraySource:
    """One IDX file of images, without labels."""
    return from_array(read_idx(path), name=str(path), channels=channels, kind="image", path=path)


def read_idx(path: Path) -> npt.NDArray[Any]:
    """The array in an IDX file. Raises InputError when it is not one or is cut off."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES or len(data) < 4 + 4 * data[3]:
        raise InputError(f"{path}: is not an IDX file (it starts with {data[:4]!r}).")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    dtype = np.dtype(_TYPES[data[2]])
    body = memoryview(data)[4 + 4 * data[3] :]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"{path}: holds {len(body):,} bytes of data where its header says {math.prod(shape) * dtype.itemsize:,}; "
            "fetch it again."
        )
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))
