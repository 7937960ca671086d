"""`open_source`: from what a person names to a source."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from barlow.errors import InputError, suggest
from barlow.files import user_path

from . import columnar
from .arrays import choose_split, from_array, open_npy, open_npz, open_tiff_stack, split_note
from .decode import IMAGE_SUFFIXES
from .files import counted, listable, listed, open_folder, scan, suffix_of
from .idx import is_idx, open_idx_file, open_idx_folder
from .named import NAMES, open_named
from .shards import expand, is_pattern, open_shards
from .source import DataWarning, Kind, Source

SPLITS = ("train", "val", "test")
"""Top-level folders of exactly these names are splits."""
_IMAGES, _SHARDS, _TABLES = "images", "tar shards", "Parquet or Arrow files"


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

    Warns once (DataWarning) of what in the data is left out. Raises InputError for a path, name, split or array that
    is none of these, and for data of which a part is lost to damage.
    """
    if channels is not None and channels < 1:
        raise InputError(f"channels must be at least 1, not {channels}.")
    source = _open(data, split, channels, kind)
    if len(source) == 0:
        raise InputError(f"{source.name}: holds no samples.")
    if isinstance(data, str) and data in NAMES:
        source.location = data
    elif isinstance(data, str | Path):
        source.location = os.path.abspath(user_path(data))  # noqa: PTH100  a pattern is no path to resolve
    if source.left_out and os.environ.get("RANK", "0") == "0":  # of several ranks, one tells
        warnings.warn(f"{source.name}: left out: {'; '.join(source.left_out)}", DataWarning, stacklevel=1)
    return source


def _open(
    data: str | Path | npt.NDArray[Any] | Tensor, split: str | None, channels: int | None, kind: Kind | None
) -> Source:
    if isinstance(data, np.ndarray | Tensor):
        choose_split(split, (), "array")
        return from_array(data, channels=channels, kind=kind)
    if isinstance(data, str) and data in NAMES:
        return open_named(data, split=split, channels=channels)
    if not str(data):
        raise InputError("the data are named by an empty text; give a folder, a file, or the name of a data set.")
    path = user_path(data)
    if path.is_dir():
        return _open_directory(path, split, channels)
    if path.is_file():
        return _open_file(path, split, channels, kind)
    if is_pattern(str(data)):
        return _open_packed(expand(str(data)), str(data), split, channels)
    if isinstance(data, str) and not any(mark in data for mark in "/\\."):
        raise InputError(f"'{data}' is neither a path nor a data set. {suggest(data, NAMES)}")
    raise InputError(f"{data}: there is no such file or folder.")


def _open_directory(root: Path, split: str | None, channels: int | None) -> Source:
    """What lies in a folder decides: IDX files, tar shards, Parquet or Arrow files, else images.

    Top-level folders named train, val or test are splits: the others are left out, and train is the default.
    """
    with listable(root), os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    if any(map(is_idx, names)):
        return open_idx_folder(root, split=split, channels=channels)
    found = tuple(name for name in SPLITS if (root / name).is_dir())
    chosen = choose_split(split, found, str(root)) if found else None
    top = root / chosen if chosen else root
    source = _open_contents(top, str(root), None if chosen else split, channels)
    if chosen:
        source.split_names = found
        source.note = "; ".join(filter(None, (split_note(chosen, found), source.note)))
        if beside := [name for name in names if name not in SPLITS]:
            source.left_out += (f"what lies beside the splits ({listed(beside)})",)
    return source


def _open_contents(top: Path, name: str, split: str | None, channels: int | None) -> Source:
    others: Counter[str] = Counter()
    keys = sorted(scan(top, IMAGE_SUFFIXES | columnar.SUFFIXES | {".tar"}, others))
    if len(set(map(_store_of, keys))) > 1:  # features that `embed` wrote beside the images are no images
        features = {key for key in keys if _store_of(key) == _TABLES and columnar.holds_no_images(top / key)}
        keys = [key for key in keys if key not in features]
        others.update(f"{suffix_of(key)} without images" for key in features)
    stored = set(map(_store_of, keys))
    if len(stored) > 1:
        raise InputError(f"{top}: holds {' and '.join(sorted(stored))}; move one kind to a folder of its own.")
    if not keys:
        held = f"it holds {counted(others)}" if others else "it is empty"
        looked = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"{top}: no images found, {held}; looked for {looked} in all subfolders.")
    files = [top / key for key in keys] if stored != {_IMAGES} else []
    if stored == {_TABLES}:
        source: Source = columnar.open_tables(files, name=name, split=split, channels=channels)
    else:
        choose_split(split, (), name)
        shards = stored == {_SHARDS}
        source = (
            open_shards(files, name=name, channels=channels)
            if shards
            else open_folder(top, keys, name=name, channels=channels)
        )
    if others:
        source.left_out += (counted(others),)
    return source


def _store_of(key: str) -> str:
    suffix = suffix_of(key)
    return _SHARDS if suffix == ".tar" else _TABLES if suffix in columnar.SUFFIXES else _IMAGES


def _open_file(path: Path, split: str | None, channels: int | None, kind: Kind | None) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return open_npz(path, split=split, channels=channels, kind=kind)
    if suffix in columnar.SUFFIXES or suffix == ".tar":
        return _open_packed([path], str(path), split, channels)
    choose_split(split, (), str(path))
    if suffix == ".npy":
        return open_npy(path, channels=channels, kind=kind)
    if is_idx(path.name):
        return open_idx_file(path, channels=channels)
    if suffix in (".tif", ".tiff"):
        return open_tiff_stack(path, channels=channels)
    if suffix in IMAGE_SUFFIXES:
        raise InputError(f"{path}: is a single image; give the folder that holds many.")
    raise InputError(f"{path}: is not a kind of file that holds a data set; give a folder, .npz, .npy, IDX or .tar.")


def _open_packed(files: Sequence[Path], name: str, split: str | None, channels: int | None) -> Source:
    suffixes = {path.suffix.lower() for path in files}
    if suffixes <= columnar.SUFFIXES:
        return columnar.open_tables(files, name=name, split=split, channels=channels)
    if suffixes != {".tar"}:
        raise InputError(f"{name}: a pattern names .tar, .parquet or .arrow files, not {', '.join(sorted(suffixes))}.")
    choose_split(split, (), name)
    return open_shards(files, name=name, channels=channels)
