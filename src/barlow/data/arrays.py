"""Arrays in memory or memory-mapped: images [N, H, W], [N, C, H, W], [N, H, W, C]; signals [N, C, T], [N, T, C];
tables [N, F]."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from barlow.errors import InputError

from .decode import MAX_CHANNELS, MIN_SIDE, channel_axis, over_white, pixels_to_tensor, to_channels
from .files import file_stamp
from .labels import LABEL_KEYS, Labels, read_labels
from .memory import MEMORY_SHARE, UNPACK_RATIO, available_memory
from .source import IntArray, Kind, Source, digest
from .tiff import Tiff

Array = npt.NDArray[Any]

IMAGE_KEYS = ("x", "X", "images", "image", "data", "signals", "signal", "table", "features", "arr_0")
_SIGNAL_CHANNELS = 32  # the most for which float [N, C, T] is taken for signals, not images
_LAYOUTS = "[N, H, W], [N, C, H, W] or [N, H, W, C]; signals [N, C, T] or [N, T, C]; tables [N, F]"


class Numbered(Sequence[str]):
    """The keys of samples that have no names: "0" ... "n-1", without storing them."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: Any) -> Any:
        return [str(j) for j in range(self._n)[i]] if isinstance(i, slice) else str(range(self._n)[i])


@dataclass(kw_only=True, eq=False)
class ArraySource(Source):
    """Samples in one array: a tensor in the library's layout, or a memory-mapped array in its own."""

    array: Tensor | Array
    layout: str
    """Of a memory-mapped array: "NHW", "NCHW", "NHWC", "NCT", "NTC" or "NF"; a tensor is always channels first."""
    path: Path | None = None
    member: str = ""
    """Which of the arrays in the file it is, where there are several."""

    def gather(self, indices: IntArray) -> Tensor:
        """The samples, stacked: [len(indices), C, H, W] (signals [., C, T], tables [., F])."""
        if isinstance(self.array, Tensor):
            return self.array[torch.from_numpy(indices)]
        return to_library_layout(self.array[indices], self.layout, self.channels)

    def read(self, i: int) -> Tensor:
        return self.gather(np.array([i], np.int64))[0]

    def content_hash(self, i: int) -> str:
        return hashlib.sha256(self.read(i).numpy().tobytes()).hexdigest()

    def fingerprint(self) -> str:
        return digest(file_stamp(self.path) if self.path else id(self.array), self.member)

    def stored_sizes(self) -> IntArray:
        return np.full(len(self), self.read(0).nbytes, np.int64)  # as samples are handed out, whatever the file's dtype


def from_array(
    array: Array | Tensor,
    *,
    name: str = "array",
    labels: Array | None = None,
    classes: tuple[str, ...] | None = None,
    channels: int | None = None,
    kind: Kind | None = None,
    path: Path | None = None,
    layout: str = "",
) -> ArraySource:
    """A source over an array, whose axes are inferred without `layout`.

    Raises InputError for a shape, dtype or values that cannot be samples.
    """
    values = _plain(_as_numpy(array), name)
    inferred = not layout
    layout = layout or _layout(values, kind, channels, name)
    channels = channels or _channels(values.shape, layout)
    mapped = isinstance(values, np.memmap) and values.nbytes > MEMORY_SHARE * available_memory()
    samples = values if mapped else _in_library_layout(values, layout, channels, name)
    known = _labels(labels, len(values), name)
    source = ArraySource(
        name=name,
        keys=Numbered(len(values)),
        channels=channels,
        dtype=torch.uint8 if values.dtype in (np.uint8, np.bool_) else torch.float32,
        kind={"NF": "table", "NCT": "signal", "NTC": "signal"}.get(layout, "image"),  # type: ignore[arg-type]
        labels=known.numbers,
        classes=known.classes or classes,
        left_out=known.left_out,
        array=samples,
        layout=layout,
        path=path,
    )
    if inferred and (source.kind == "signal" or (values.ndim == 4 and _channels(values.shape, layout) > 4)):
        source.add_note(f"array {list(values.shape)} read as [{', '.join(layout)}]")
    return source


def _as_numpy(array: Array | Tensor) -> Array:
    if not isinstance(array, Tensor):
        return array
    known = array.float() if array.dtype == torch.bfloat16 else array  # NumPy has no bfloat16
    return known.detach().cpu().numpy()


def _plain(values: Array, name: str) -> Array:
    """The array in a dtype that samples have: integers that fit become 8-bit or 16-bit."""
    if values.dtype.kind not in "buif":
        raise InputError(f"{name}: an array of dtype {values.dtype} holds no samples; give uint8, uint16 or floats.")
    if len(values.shape) < 2 or 0 in values.shape:
        raise InputError(f"{name}: an array of shape {list(values.shape)} holds no samples; give {_LAYOUTS}.")
    if values.dtype.kind == "f" or values.dtype.newbyteorder("=") in (np.uint8, np.uint16, np.bool_):
        return values
    if values.ndim == 2:
        return values.astype(np.float32)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise InputError(f"{name}: integers from {low} to {high} are not pixels (0..255 or 0..65535); give floats.")
    return values.astype(np.uint8 if high <= 255 else np.uint16)


def _layout(values: Array, kind: Kind | None, channels: int | None, name: str) -> str:
    """What the axes are, like "NHWC". Raises InputError where that cannot be told."""
    shape = list(values.shape)
    axes = {2: "NF", 3: "NHW"}.get(values.ndim, "")
    if values.ndim == 3 and kind != "image":
        axes = _signal_axes(values, channels, told=kind == "signal") or axes
    if values.ndim == 4:
        try:
            axes = "NHWC" if channel_axis(values.shape[1:], channels) else "NCHW"
        except ValueError as error:
            raise InputError(f"{name}: {len(values)} samples, each {error}.") from None
    wanted = {"table": ("NF",), "signal": ("NCT", "NTC"), "image": ("NHW", "NCHW", "NHWC")}
    if not axes or (kind is not None and axes not in wanted[kind]):
        kind_text = f" of kind {kind}" if kind else ""
        raise InputError(f"{name}: an array of shape {shape} holds no samples{kind_text}; give {_LAYOUTS}.")
    if "H" in axes:
        sides = [side for axis, side in zip(axes, shape, strict=True) if axis in "HW"]
        if min(sides) < MIN_SIDE:
            raise InputError(f"{name}: images of {sides[1]}x{sides[0]} pixels are too small: under {MIN_SIDE} a side.")
        if axes == "NHW" and shape[2] in (3, 4) and shape[1] >= 4 * shape[2]:
            raise InputError(f"{name}: an array of shape {shape} is a single image; give many, as {_LAYOUTS}.")
        if _channels(values.shape, axes) > MAX_CHANNELS:
            raise InputError(f"{name}: {_channels(values.shape, axes)} channels are more than {MAX_CHANNELS}.")
    return axes


def _signal_axes(values: Array, channels: int | None, *, told: bool) -> str:
    """ "NCT" or "NTC", or "" for images, which are not float or not four times as long as wide, unless `told`."""
    first, last = values.shape[1:]
    if told and (first == channels) != (last == channels):
        return "NCT" if first == channels else "NTC"
    if not told and (values.dtype.kind != "f" or min(first, last) > _SIGNAL_CHANNELS):
        return ""
    if first >= 4 * last:
        return "NTC"
    return "NCT" if told or last >= 4 * first else ""


def _channels(shape: tuple[int, ...], layout: str) -> int:
    return 1 if layout == "NHW" else shape[layout.index("F" if layout == "NF" else "C")]


def _in_library_layout(values: Array, layout: str, channels: int, name: str) -> Tensor:
    try:
        samples = to_library_layout(values, layout, channels)
    except ValueError as error:
        raise InputError(f"{name}: {error}; choose other channels or convert the array.") from error
    bad = 0 if samples.dtype == torch.uint8 else int((~torch.isfinite(samples).flatten(1).all(1)).sum())
    if bad:
        raise InputError(f"{name}: {bad} of {len(samples)} samples hold NaN or infinity; remove or fill them first.")
    return samples


def to_library_layout(values: Array, layout: str, channels: int) -> Tensor:
    """[N, C, H, W] (signals [N, C, T], tables [N, F]) with `channels` channels. Raises ValueError on a mismatch."""
    if layout == "NHW":
        values = values[:, None]
    elif layout in ("NHWC", "NTC"):
        values = np.moveaxis(values, -1, 1)
    samples = pixels_to_tensor(values).contiguous()
    if layout in ("NF", "NCT", "NTC"):
        if channels != samples.shape[1]:
            raise ValueError(f"has {samples.shape[1]} channels or features, not {channels}")
        return samples
    return to_channels(samples, channels)


def _labels(labels: Array | None, n: int, name: str) -> Labels:
    if labels is None:
        return Labels()
    if not labels.shape or len(labels) != n:
        raise InputError(f"{name}: has {n} samples but labels of shape {list(labels.shape)}; they are of other data.")
    return read_labels(labels.reshape(n) if labels.size == n else labels)


def open_npy(path: Path, *, channels: int | None, kind: Kind | None) -> ArraySource:
    """A `.npy` file, memory-mapped when it is larger than a share of the memory."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header raises nearly anything (SyntaxError, tokenize's errors...)
        raise _unloadable(path, error) from error
    return from_array(array, name=str(path), channels=channels, kind=kind, path=path)


def open_tiff_stack(path: Path, *, channels: int | None) -> ArraySource:
    """A TIFF file whose pages are the samples, of one or more channels; opacity is laid over white."""
    try:
        with path.open("rb") as file:
            tiff = Tiff(file)
            nbytes = math.prod(tiff.shape) * tiff.dtype.itemsize
            if nbytes > min(path.stat().st_size * UNPACK_RATIO, available_memory()):
                raise ValueError(f"its header promises {nbytes:,} bytes of pixels")
            bands, opacity = (None, None) if len(tiff.shape) == 3 else tiff.read()
    except Exception as error:  # damaged tags raise nearly anything
        raise InputError(f"{path}: cannot be read as TIFF ({' '.join(str(error).split())}).") from error
    if bands is None:
        raise InputError(f"{path}: is a single image; give a stack of pages, or the folder that holds many.")
    if bands.ndim == 5 and bands.shape[2] == 1 and opacity is None:
        bands = bands[:, :, 0]  # pages along two axes: samples, and their channels
    if bands.ndim != 4:
        raise InputError(f"{path}: a TIFF of shape {list(bands.shape)} is not a stack of images.")
    seen = bands if opacity is None else over_white(torch.from_numpy(bands), torch.from_numpy(opacity))
    return from_array(seen, name=str(path), channels=channels, path=path, layout="NCHW")


def open_npz(path: Path, *, split: str | None, channels: int | None, kind: Kind | None) -> ArraySource:
    """A `.npz` file: samples under `x`, `images`... or the only fitting array; labels under `y`, `labels`...

    Keys that carry a split (`train_images`, `x_test`) make splits.
    """
    with _archive(path) as archive:
        names = {name: _split_of(name) for name in archive.files}
        found = tuple(s for s in ("train", "val", "test") if s in names.values())
        chosen = choose_split(split, found, str(path))
        keys = {_base(name): name for name, owner in names.items() if owner == chosen}
        key = _samples_key(keys, archive, path)
        array = _member(archive, key, path)
        label_key = next((keys[k] for k in LABEL_KEYS if k in keys), None)
        labels, left_out = None, [name for name in keys.values() if name not in (key, label_key)]
        try:
            labels = None if label_key is None else _member(archive, label_key, path)
        except PickledError:  # labels are optional, and text is often saved so
            left_out.append(f"{label_key} (Python objects)")
    source = from_array(array, name=str(path), labels=labels, channels=channels, kind=kind, path=path)
    source.member, source.split_names = key, found
    source.add_note(split_note(chosen, found))
    if left_out:
        source.left_out += (f"arrays not read: {', '.join(left_out)}",)
    return source


class PickledError(InputError):
    """Pickled objects, which are never loaded."""


@contextmanager
def _archive(path: Path) -> Iterator[NpzFile]:
    with path.open("rb") as file:
        try:
            archive = NpzFile(file, allow_pickle=False)
        except Exception as error:  # damage raises zipfile's, zlib's and Python's errors
            raise _unloadable(path, error) from error
        with archive:
            yield archive


def _member(archive: Any, key: str, path: Path) -> Array:
    try:
        stored = archive.zip.getinfo(f"{key}.npy").file_size if f"{key}.npy" in archive.zip.namelist() else 0
        if stored > available_memory():
            raise MemoryError(f"{stored:,} bytes in memory")
        array: Array = archive[key]
    except Exception as error:  # zipfile and zlib have errors of their own
        raise _unloadable(path, error) from error
    return array


def _unloadable(path: Path, error: Exception) -> InputError:
    if any(words in str(error) for words in ("Object arrays", "Python objects")):  # of NumPy's two messages
        return PickledError(f"{path}: holds Python objects, which are not loaded; save plain numeric arrays.")
    if isinstance(error, MemoryError):
        return InputError(f"{path}: its arrays are larger than the memory ({error}).")
    return InputError(f"{path}: cannot be read as a NumPy file.")


def _split_of(key: str) -> str | None:
    return next((s for s in ("train", "val", "test") if s in key.lower().split("_")), None)


def _base(key: str) -> str:
    """The key without its split: train_images -> images, x_test -> x."""
    return "_".join(part for part in key.split("_") if part.lower() not in ("train", "val", "test"))


def _samples_key(keys: dict[str, str], archive: Any, path: Path) -> str:
    for key in IMAGE_KEYS:
        if key in keys:
            return keys[key]
    rest = [name for base, name in keys.items() if base not in LABEL_KEYS]
    if len(rest) == 1:
        return rest[0]
    raise InputError(
        f"{path}: cannot tell the samples among the arrays {', '.join(archive.files) or '(none)'}; name them 'x'."
    )


def choose_split(split: str | None, found: tuple[str, ...], name: str) -> str | None:
    """The split to open: the one asked for, else train where there are splits. Raises InputError."""
    if split is None:
        return None if not found else "train" if "train" in found else found[0]
    if split not in found:
        has = f"it has {', '.join(found)}" if found else "it has no splits"
        raise InputError(f"{name}: there is no split '{split}'; {has}.")
    return split


def split_note(chosen: str | None, found: tuple[str, ...]) -> str:
    return f"split '{chosen}' of {', '.join(found)}" if chosen else ""
