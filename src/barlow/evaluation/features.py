"""Features of a frozen encoder: extracted once, shared by all protocols, kept on disk."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from barlow.data import CorruptSample, Source
from barlow.data.arrays import ArraySource
from barlow.data.files import EncodedSource
from barlow.data.memory import available_processors
from barlow.data.source import jpeg_reduction
from barlow.devices import known_device
from barlow.errors import InputError
from barlow.evaluation.frozen import frozen
from barlow.files import read_json, write_json, written
from barlow.models import Encoder, Preprocess

Ints = NDArray[np.int64]

BATCH_SIZE = 256
"""Samples per forward pass."""

CHUNK_BATCHES = 64
"""Batches per file of a resumable extraction."""

MANIFEST = "extraction.json"

MOST_WORKERS = 16
"""Readers at a time; more only take memory."""


@dataclass(frozen=True)
class Features:
    """One row per sample: features `x [N, F]` float32, labels `y [N]` int64 or None, `ids [N]` int64.

    Ids are positions in the source the features were extracted from.
    """

    x: NDArray[np.float32]
    y: Ints | None
    ids: Ints

    def __post_init__(self) -> None:
        sizes = {len(self.x), len(self.ids), len(self.x) if self.y is None else len(self.y)}
        if self.x.ndim != 2 or len(sizes) != 1:
            raise InputError(
                f"features must be [N, F] with N ids and N labels, got {self.x.shape}, {self.ids.shape} and "
                f"{None if self.y is None else self.y.shape}"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def labels(self) -> Ints:
        """The labels [N]. Raises InputError where there are none."""
        if self.y is None:
            raise InputError("these features have no labels: a score by class needs labelled data")
        return self.y

    def take(self, rows: ArrayLike) -> "Features":
        """The given rows, in the given order."""
        index = np.asarray(rows)
        return Features(self.x[index], None if self.y is None else self.y[index], self.ids[index])

    def save(self, path: str | Path) -> None:
        """Write `.npz` (arrays x, y, ids) or `.parquet` (columns id, label, features), whole or not at all."""
        file = Path(path)
        write = _WRITERS.get(file.suffix)
        if write is None:
            raise InputError(f"features are saved as .npz or .parquet, got '{file.name}': change the file's ending")
        with written(file) as temporary:
            write(self, temporary)

    @classmethod
    def load(cls, path: str | Path) -> "Features":
        """Read what `save` wrote; a folder of such files is joined in the order of their names."""
        file = Path(path)
        if file.is_dir():
            return join([cls.load(part) for part in sorted(file.iterdir()) if part.suffix in _READERS])
        if not file.is_file() or file.suffix not in _READERS:
            raise InputError(f"no features at {file}: expected a .npz or .parquet file, or a folder of them")
        try:
            return _READERS[file.suffix](file)
        except (OSError, EOFError, ValueError, KeyError, BadZipFile, pa.ArrowException) as error:
            raise InputError(f"{file} does not hold features ({error}): extract them again") from None


def join(extractions: Sequence[Features]) -> Features:
    """Rows of several extractions, one after the other. Raises InputError for none, or for mixed widths."""
    if not extractions:
        raise InputError("no features to join: the folder holds no .npz or .parquet file")
    parts = [part for part in extractions if len(part)] or extractions  # an empty part does not know of labels
    if len({part.x.shape[1] for part in parts}) > 1:
        raise InputError(f"features of different widths cannot be joined: {[part.x.shape for part in parts]}")
    labels = [part.y for part in parts if part.y is not None]
    return Features(
        np.concatenate([part.x for part in parts]),
        np.concatenate(labels) if len(labels) == len(parts) else None,
        np.concatenate([part.ids for part in parts]),
    )


def _write_npz(features: Features, file: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {"x": features.x, "ids": features.ids}
    if features.y is not None:
        arrays["y"] = features.y
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _read_npz(file: Path) -> Features:
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        y = arrays["y"] if "y" in arrays.files else None
        return Features(arrays["x"], y, arrays["ids"])


def _write_parquet(features: Features, file: Path) -> None:
    flat = pa.array(np.ascontiguousarray(features.x, dtype=np.float32).ravel())
    columns: dict[str, pa.Array] = {"id": pa.array(features.ids)}
    if features.y is not None:
        columns["label"] = pa.array(features.y)
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, features.x.shape[1])
    pq.write_table(pa.table(columns), file)


def _read_parquet(file: Path) -> Features:
    table = pq.read_table(file)
    column = table["features"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # a table without rows keeps no chunk
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    x = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    y = table["label"].to_numpy() if "label" in table.column_names else None
    return Features(x.astype(np.float32), y, table["id"].to_numpy())


_WRITERS = {".npz": _write_npz, ".parquet": _write_parquet}
_READERS = {".npz": _read_npz, ".parquet": _read_parquet}


def preprocess_of(encoder: Encoder) -> Preprocess:
    """The encoder's own preprocessing. Raises InputError where it has none."""
    if encoder.preprocess is None:
        raise InputError("the encoder has no preprocessing: load it with load_encoder, or set encoder.preprocess")
    return encoder.preprocess


def choose_device(given: torch.device | str | None) -> torch.device:
    """As given, else (or for `auto`) this process's GPU where there is one. Raises InputError where it is not there."""
    if given is not None and given != "auto":
        return known_device(given)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def device_of(encoder: Encoder) -> torch.device:
    """Where the encoder's weights live; the CPU for one without weights."""
    weight = next(iter(encoder.parameters()), None)
    return torch.device("cpu") if weight is None else weight.device


def choose_workers(source: Source, given: int | None) -> int:
    """Readers at a time: as given, else one per processor for image files, and none for samples held in memory."""
    if given is not None and given < 0:
        raise InputError(f"--workers must be 0 or more, got {given}")
    if given is not None:
        return given
    return min(MOST_WORKERS, available_processors()) if isinstance(source, EncodedSource) else 0


def read_images(
    source: Source, ids: Sequence[int] | Ints, preprocess: Preprocess, *, workers: int = 0
) -> tuple[list[Tensor], list[int]]:
    """Resized and cropped stored values, [1, C, h, w] each and not yet normalised, and the ids that could be read.

    A corrupt sample is left out. `workers` threads read and resize at the same time.
    """

    def read(index: int) -> Tensor | None:
        try:
            return preprocess.fit(_stored(source, index, preprocess)[None])
        except CorruptSample:
            return None

    wanted = [int(index) for index in ids]
    if workers:
        with ThreadPoolExecutor(workers) as pool:
            images = list(pool.map(read, wanted))
    else:
        images = [read(index) for index in wanted]
    kept = [(image, index) for image, index in zip(images, wanted, strict=True) if image is not None]
    return [image for image, _ in kept], [index for _, index in kept]


def _stored(source: Source, index: int, preprocess: Preprocess) -> Tensor:
    """The sample; a JPEG is decoded reduced, as far as its size allows."""
    if source.kind != "image":
        return source.read(index)
    image = source.image(index)
    sides = min(image.height, image.width) / max(preprocess.resize, preprocess.image_size, 1)
    return image.decode(jpeg_reduction(sides))[0]


def extract(
    encoder: Encoder,
    source: Source,
    indices: Sequence[int] | Ints | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> Features:
    """Features of the source's samples `indices` (all by default), in that order, by a frozen encoder.

    The encoder runs in eval mode on its own preprocessing; its weights and buffers are checked to be the same
    afterwards. Of several ranks, each returns the contiguous run of whole batches that is its own: their
    `join` in order of rank equals what one process returns, batch by batch. Corrupt samples are left out.

    With `cache`, finished chunks are files in that folder, and a call after a kill goes on behind the last.
    Ranks may share the folder. `workers` threads read images (see `choose_workers`).

    Raises:
        InputError: No samples, no preprocessing, no samples in a batch, or a cache folder of another extraction.
        RuntimeError: The encoder changed.
    """
    ids = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
    if len(ids) == 0:
        raise InputError(f"no samples of '{source.name}' to extract features of: pass at least one index")
    if batch_size < 1:
        raise InputError(f"--batch-size must be 1 or more, got {batch_size}")
    target = torch.device(device) if device is not None else device_of(encoder)
    encoder.to(target)
    threads = choose_workers(source, workers)
    with frozen(encoder) as digest:
        chunks = _own_chunks(ids, batch_size, rank, world_size)
        if cache is None:
            parts = [_encode(encoder, source, rows, batch_size, threads) for _, rows in chunks]
        else:
            folder = _open_cache(Path(cache), identity(encoder, source, ids, batch_size, digest))
            parts = [_cached(folder, first, encoder, source, rows, batch_size, threads) for first, rows in chunks]
    if not parts:  # more ranks than batches
        return Features(_none(encoder), None, ids[:0])
    features = join(parts)
    if len(features) == 0:
        raise InputError(f"none of {len(ids)} samples of '{source.name}' could be read: check the files")
    return features


def _own_chunks(ids: Ints, batch_size: int, rank: int, world_size: int) -> Iterator[tuple[int, Ints]]:
    """(first position, ids) of this rank's chunks; every rank's share begins at a batch's beginning."""
    batches = -(-len(ids) // batch_size)
    first, last = batches * rank // world_size, batches * (rank + 1) // world_size
    for start in range(first, last, CHUNK_BATCHES):
        stop = min(start + CHUNK_BATCHES, last)
        yield start * batch_size, ids[start * batch_size : stop * batch_size]


@torch.no_grad()
def _encode(encoder: Encoder, source: Source, ids: Ints, batch_size: int, workers: int) -> Features:
    preprocess, device = preprocess_of(encoder), device_of(encoder)
    rows: list[NDArray[np.float32]] = []
    kept: list[int] = []
    for start in range(0, len(ids), batch_size):
        images, read = read_images(source, ids[start : start + batch_size], preprocess, workers=workers)
        if images:
            rows.append(encoder(preprocess(torch.cat(images).to(device))).float().cpu().numpy())
        kept += read
    read_ids = np.asarray(kept, dtype=np.int64)
    y = None if source.labels is None else np.asarray(source.labels, dtype=np.int64)[read_ids]
    return Features(np.concatenate(rows) if rows else _none(encoder), y, read_ids)


def _none(encoder: Encoder) -> NDArray[np.float32]:
    return np.zeros((0, encoder.feature_dim), np.float32)


def _cached(
    folder: Path, first: int, encoder: Encoder, source: Source, ids: Ints, batch_size: int, workers: int
) -> Features:
    file = folder / f"features-{first:010d}.npz"
    if file.is_file():
        with contextlib.suppress(InputError):  # a damaged part is made again
            return Features.load(file)
    part = _encode(encoder, source, ids, batch_size, workers)
    part.save(file)
    return part


def identity(encoder: Encoder, source: Source, ids: Ints, batch_size: int, encoder_digest: str) -> dict[str, str | int]:
    """All that features depend on: extractions with the same identity give the same features."""
    return {
        "source": source.name,
        "content": _content(source),
        "ids": hashlib.sha256(ids.tobytes()).hexdigest(),
        "n": len(ids),
        "batch_size": batch_size,
        "encoder": encoder_digest,
        "preprocess": repr(encoder.preprocess),
    }


def _content(source: Source) -> str:
    """The fingerprint; of an array that no file holds, the hash, since its fingerprint is of this process only."""
    if isinstance(source, ArraySource) and source.path is None:
        return hashlib.sha256(np.ascontiguousarray(source.array).data).hexdigest()
    return source.fingerprint()


def _open_cache(folder: Path, wanted: Mapping[str, str | int]) -> Path:
    """Make the folder, or check that it belongs to the same extraction."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        write_json(manifest, wanted)
    try:
        found = read_json(manifest, dict[str, Any])
    except InputError:  # damaged: whose the parts beside it are is not known any more
        for part in folder.glob("features-*.npz"):
            part.unlink(missing_ok=True)
        write_json(manifest, wanted)
        found = dict(wanted)
    differing = sorted(key for key in wanted if found.get(key) != wanted[key])
    if differing:
        raise InputError(
            f"{folder} holds another extraction (it differs in {', '.join(differing)}): choose another folder"
        )
    return folder
