"""Samples decoded once: in memory, on the device, or in a memory-mapped file."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.files import cache_folder, locked, write_json

from .arrays import ArraySource
from .files import sample_indices
from .memory import MEMORY_SHARE, available_memory, available_processors
from .source import CorruptSample, IntArray, Source, digest

Cache = Literal["auto", "memory", "disk", "none"]
CACHES: tuple[str, ...] = get_args(Cache)

SMALL_SIDE = 128
"""Pixels a side up to which images of one size are decoded once rather than in every epoch."""

_SPARE_DISK = 1 << 30  # bytes left free on the disk that holds the cache


class Store(Protocol):
    """Decoded samples by their index in the source."""

    corrupt: dict[int, str]
    """Index in the source -> why it cannot be read; its row holds zeros."""

    @property
    def on_disk(self) -> bool:
        """Gathering may wait for a disk."""

    @property
    def on_device(self) -> bool:
        """The samples lie on the training device, not in the machine's memory."""

    def gather(self, indices: IntArray) -> Tensor: ...


@dataclass
class ArrayStore:
    """An array source is its own store."""

    source: ArraySource
    corrupt: dict[int, str] = field(default_factory=dict)

    @property
    def on_disk(self) -> bool:
        return not isinstance(self.source.array, Tensor)

    @property
    def on_device(self) -> bool:
        return False

    def gather(self, indices: IntArray) -> Tensor:
        return self.source.gather(indices)


@dataclass
class TensorStore:
    """Rows of one tensor, which may lie on the training device."""

    samples: Tensor
    row: IntArray
    corrupt: dict[int, str]
    on_disk: bool = False

    @property
    def on_device(self) -> bool:
        return self.samples.device.type != "cpu"

    def gather(self, indices: IntArray) -> Tensor:
        return self.samples[torch.from_numpy(self.row[indices]).to(self.samples.device, non_blocking=True)]


@dataclass
class MappedStore:
    """Rows of a memory-mapped file."""

    samples: npt.NDArray[Any]
    row: IntArray
    corrupt: dict[int, str]
    on_disk: bool = True
    on_device: bool = False

    def gather(self, indices: IntArray) -> Tensor:
        return torch.from_numpy(self.samples[self.row[indices]])


def open_store(
    source: Source, indices: IntArray, cache: Cache, device: torch.device, corrupt_limit: int
) -> Store | None:
    """A store of the samples at `indices`, or None where they are to be decoded in every epoch.

    `auto` decodes images of one small size once: into memory up to MEMORY_SHARE of it, else into a file. `memory` and
    `disk` insist, and raise InputError where the images have several sizes. More than `corrupt_limit` unreadable
    samples end the decoding early.
    """
    if isinstance(source, ArraySource):
        return _array_store(source, device) if cache != "none" else ArrayStore(source)
    shape = common_shape(source, indices)
    small = shape is not None and max(shape[-2:]) <= SMALL_SIDE
    if cache == "none" or (cache == "auto" and not small):
        return None
    if shape is None:
        raise InputError(f"{source.name}: images of several sizes cannot be cached decoded; use cache='none'.")
    job = _Decoding(source, indices, shape, corrupt_limit)
    where = cache if cache != "auto" else "memory" if job.nbytes <= MEMORY_SHARE * available_memory() else "disk"
    return _decoded(job, where, device, insist=cache != "auto")


class _SizeDiffers(Exception):  # noqa: N818  not a failure: the caller chooses another way
    pass


@dataclass
class _Decoding:
    """Decoding every sample at `indices` into the rows of one array [n, *shape]."""

    source: Source
    indices: IntArray
    shape: tuple[int, ...]
    corrupt_limit: int

    @property
    def nbytes(self) -> int:
        return len(self.indices) * int(np.prod(self.shape)) * self.source.dtype.itemsize

    @property
    def dtype(self) -> npt.DTypeLike:
        return np.uint8 if self.source.dtype == torch.uint8 else np.float32

    def fill(self, rows: npt.NDArray[Any]) -> dict[int, str]:
        """Fill the rows; returns what could not be read. Raises _SizeDiffers."""
        corrupt: dict[int, str] = {}
        threads = max(1, available_processors())
        with ThreadPoolExecutor(threads) as pool:  # decoders release the interpreter's lock
            for found in pool.map(lambda chunk: self._fill(rows, chunk), np.array_split(range(len(self.indices)), 64)):
                corrupt.update(found)
                if len(corrupt) > self.corrupt_limit:
                    pool.shutdown(cancel_futures=True)
                    break
        return corrupt

    def _fill(self, rows: npt.NDArray[Any], chunk: npt.NDArray[Any]) -> dict[int, str]:
        corrupt = {}
        for row in chunk:
            i = int(self.indices[row])
            try:
                pixels = self.source.read(i)
            except CorruptSample as error:
                corrupt[i] = error.reason
                continue
            if pixels.shape != self.shape:
                raise _SizeDiffers
            rows[row] = pixels.numpy()
        return corrupt


def _decoded(job: _Decoding, where: str, device: torch.device, *, insist: bool) -> Store | None:
    try:
        return _in_memory(job, device) if where == "memory" else _on_disk(job, insist=insist)
    except _SizeDiffers:
        if insist:
            raise InputError(
                f"{job.source.name}: images of several sizes cannot be cached decoded; use cache='none'."
            ) from None
        return None


def _in_memory(job: _Decoding, device: torch.device) -> TensorStore:
    rows = np.zeros((len(job.indices), *job.shape), job.dtype)
    corrupt = job.fill(rows)
    return TensorStore(_to_device(torch.from_numpy(rows), device), _row_numbers(job), corrupt)


def _on_disk(job: _Decoding, *, insist: bool) -> MappedStore | None:
    """A file per (data, samples, form), written once even when several ranks ask for it at the same time."""
    path = cache_folder() / "decoded" / f"{_cache_name(job)}.npy"
    facts = path.with_suffix(".json")
    with locked(path.with_suffix(".lock")):
        if not (facts.exists() and path.exists()):
            if shutil.disk_usage(path.parent).free < job.nbytes + _SPARE_DISK:
                if not insist:
                    return None
                raise InputError(f"{path.parent}: {job.nbytes:,} bytes of decoded images do not fit; set BARLOW_CACHE.")
            facts.unlink(missing_ok=True)
            rows = np.lib.format.open_memmap(path, "w+", job.dtype, (len(job.indices), *job.shape))
            corrupt = job.fill(rows)
            rows.flush()
            if len(corrupt) > job.corrupt_limit:  # the run ends here: not a cache to find again
                return MappedStore(rows, _row_numbers(job), corrupt)
            # the facts say that the rows are complete
            write_json(facts, {str(i): reason for i, reason in corrupt.items()})
        corrupt = {int(i): reason for i, reason in json.loads(facts.read_text()).items()}
    return MappedStore(np.load(path, mmap_mode="r", allow_pickle=False), _row_numbers(job), corrupt)


def _cache_name(job: _Decoding) -> str:
    return digest(job.source.fingerprint(), job.shape, str(job.source.dtype), job.indices.tobytes())[:32]


def _row_numbers(job: _Decoding) -> IntArray:
    row = np.full(len(job.source), -1, np.int64)
    row[job.indices] = np.arange(len(job.indices))
    return row


def _array_store(source: ArraySource, device: torch.device) -> Store:
    if not isinstance(source.array, Tensor) or device.type == "cpu":
        return ArrayStore(source)
    return TensorStore(_to_device(source.array, device), np.arange(len(source)), {})


def _to_device(samples: Tensor, device: torch.device) -> Tensor:
    """On the GPU when it takes at most MEMORY_SHARE of what is free there."""
    if device.type == "cuda" and samples.nbytes <= MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return samples.to(device)
    return samples


def common_shape(source: Source, indices: IntArray) -> tuple[int, ...] | None:
    """[C, H, W] when a sample of the images has one size."""
    sizes = set()
    for i in indices[sample_indices(len(indices), 64, seed=0)]:
        try:
            image = source.image(int(i))
        except CorruptSample:
            continue
        sizes.add((image.height, image.width))
    return (source.channels, *sizes.pop()) if len(sizes) == 1 else None
