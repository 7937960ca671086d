"""`open_source`: from what a person names to a source."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from barlow.errors import InputError, suggest

from .arrays import choose_split, from_array, open_npy, open_npz
from .files import open_folder
from .idx import is_idx, open_idx_file, open_idx_folder
from .named import NAMES, open_named
from .source import Kind, Source


def open_source(
    data: str | Path | npt.NDArray[Any] | Tensor,
    *,
    split: str | None = None,
    channels: int | None = None,
    kind: Kind | None = None,
) -> Source:
    """The samples that `data` names.

    data:     a folder (images in any subfolders, IDX files, tar shards, Parquet or Arrow files), a file (`.npz`,
              `.npy`, IDX, `.tar`, `.parquet`, a TIFF stack), a pattern of shards (`{000..127}.tar`, `*.tar`), the name
              of a data set (`./digits` is a folder, `digits` the data set), or an array.
    split:    one of `source.split_names`; by default train where there are splits, else everything.
    channels: 1 gray, 3 RGB, 4 RGBA, or the count stored; by default what the data holds.
    kind:     "image", "signal" or "table", where an array's shape leaves a choice.

    Raises InputError for a path, name, split or array that is none of these.
    """
    if channels is not None and channels < 1:
        raise InputError(f"channels must be at least 1, not {channels}.")
    source = _open(data, split, channels, kind)
    if len(source) == 0:
        raise InputError(f"{source.name}: holds no samples.")
    return source


def _open(
    data: str | Path | npt.NDArray[Any] | Tensor, split: str | None, channels: int | None, kind: Kind | None
) -> Source:
    if isinstance(data, np.ndarray | Tensor):
        choose_split(split, (), "array")
        return from_array(data, channels=channels, kind=kind)
    if isinstance(data, str) and data in NAMES:
        return open_named(data, split=split, channels=channels)
    path = Path(data).expanduser()
    if path.is_dir():
        return _open_directory(path, split, channels)
    if path.is_file():
        return _open_file(path, split, channels, kind)
    if isinstance(data, str) and not any(c in data for c in "/\\.{*"):
        raise InputError(f"'{data}' is neither a path nor a data set. {suggest(data, NAMES)}")
    raise InputError(f"{data}: there is no such file or folder.")


def _open_directory(path: Path, split: str | None, channels: int | None) -> Source:
    if any(is_idx(file) for file in path.iterdir()):
        return open_idx_folder(path, split=split, channels=channels)
    return open_folder(path, split=split, channels=channels)


def _open_file(path: Path, split: str | None, channels: int | None, kind: Kind | None) -> Source:
    if path.suffix.lower() == ".npz":
        return open_npz(path, split=split, channels=channels, kind=kind)
    choose_split(split, (), str(path))
    if path.suffix.lower() == ".npy":
        return open_npy(path, channels=channels, kind=kind)
    if is_idx(path):
        return open_idx_file(path, channels=channels)
    raise InputError(f"{path}: is not a kind of file that holds a data set; give a folder, .npz, .npy, IDX or .tar.")
