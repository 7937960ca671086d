"""IDX files, the layout of MNIST: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, gzipped or not.

Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, a type, the number of axes, big-endian sizes, the data).
"""

import gzip
import math
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from barlow.errors import InputError

from .arrays import ArraySource, choose_split, from_array, split_note
from .files import counted, suffix_of
from .memory import UNPACK_RATIO, available_memory

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_AXES = 4
_PREFIXES = {"train": "train", "t10k": "test", "test": "test"}


def is_idx(name: str) -> bool:
    """Whether a file's name says IDX: `*-idx3-ubyte`, `*.idx3-ubyte`, with or without `.gz`."""
    name = name.lower().removesuffix(".gz")
    return not name.startswith(".") and (name.endswith(".idx") or ("idx" in name and name.endswith("byte")))


def open_idx_folder(folder: Path, *, split: str | None, channels: int | None) -> ArraySource:
    """The images of one split of a folder of IDX files, with their labels where they lie beside them."""
    images, label_files = (dict(_by_split(folder, content)) for content in ("images", "labels"))
    if not images:
        raise InputError(f"{folder}: holds IDX files but none named like train-images-idx3-ubyte.")
    found = tuple(s for s in ("train", "test") if s in images)
    chosen = choose_split(split, found, str(folder)) or ""
    label_file = label_files.get(chosen)
    labels = read_idx(label_file) if label_file else None
    source = from_array(
        read_idx(images[chosen]), name=str(folder), labels=labels, channels=channels, kind="image", path=images[chosen]
    )
    source.split_names = found
    source.add_note(split_note(chosen, found))
    used = {*images.values(), *label_files.values()}
    kinds = (suffix_of(path.name) or path.name for path in folder.iterdir() if path not in used)
    if others := Counter(kind for kind in kinds if not kind.startswith(".barlow")):
        source.left_out += (counted(others),)
    return source


def _by_split(folder: Path, content: str) -> list[tuple[str, Path]]:
    files = sorted((p for p in folder.iterdir() if is_idx(p.name) and content in p.name), reverse=True)
    return [(_PREFIXES[prefix], p) for p in files for prefix in _PREFIXES if p.name.startswith(prefix)]


def open_idx_file(path: Path, *, channels: int | None) -> ArraySource:
    """One IDX file of images, without labels."""
    return from_array(read_idx(path), name=str(path), channels=channels, kind="image", path=path)


def read_idx(path: Path) -> npt.NDArray[Any]:
    """The array in an IDX file. Raises InputError when it is not one, is cut off or does not fit the memory."""
    stored = path.stat().st_size
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not 1 <= head[3] <= _MAX_AXES:
                raise InputError(f"{path}: is not an IDX file of 1 to {_MAX_AXES} axes (it starts with {head!r}).")
            sizes = file.read(4 * head[3]).ljust(4 * head[3], b"\0")
            shape, dtype = struct.unpack(f">{head[3]}I", sizes), np.dtype(_TYPES[head[2]])
            nbytes = math.prod(shape) * dtype.itemsize
            body = file.read(min(nbytes, stored * UNPACK_RATIO, available_memory()) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    if len(body) != nbytes:
        held = f"{len(body):,} bytes" if len(body) < nbytes else f"more than {nbytes:,} bytes"
        raise InputError(f"{path}: holds {held} of data where its header says {nbytes:,}; fetch it again.")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))
