"""Parquet and Arrow files with image bytes, as Hugging Face `datasets` writes them.

A row group has to be decoded whole, so random access would read every file many times over. The bytes are unpacked
once into one flat file in the cache folder, as large as the images are, and read from there.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from barlow.errors import InputError
from barlow.files import cache_folder, locked

from .arrays import LABEL_KEYS, choose_split, split_note
from .files import file_stamp
from .packed import Index, PackedSource, packed_source
from .source import IntArray, Names, digest

SUFFIXES = frozenset({".parquet", ".arrow"})

_LABELS = (*LABEL_KEYS, "fine_label", "class", "cls")


def open_tables(files: Sequence[Path], *, name: str, split: str | None, channels: int | None) -> PackedSource:
    """The images in Parquet or Arrow files; `train-00000-of-00004.parquet` names a split.

    Raises InputError when a file cannot be read or no column holds image bytes.
    """
    files = [path for path in files if not path.name.startswith("cache-")] or files  # `datasets` keeps what `map` gave
    owners = [_split_of(path) for path in files]
    found = tuple(sorted({owner for owner in owners if owner}))
    chosen = choose_split(split, found, name)
    mine = [path for path, owner in zip(files, owners, strict=True) if owner == chosen]
    stamps = [file_stamp(path) for path in mine]
    blob = cache_folder() / "unpacked" / f"{digest(*stamps)[:32]}.bin"
    try:
        index = _unpacked(mine, blob, name)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name}: cannot be read ({' '.join(str(error).split())[:200]}).") from error
    source = packed_source(index, [blob], name=name, stamps=stamps, channels=channels)
    source.split_names = found
    source.add_note(split_note(chosen, found))
    return source


def _split_of(path: Path) -> str | None:
    """Hub files are called `<split>-00000-of-00004`; `datasets` saves every split's files as `data-...`."""
    named = re.match(r"(.+)-\d{5}-of-\d{5}", path.name)
    return named[1] if named and named[1] != "data" else None


def _unpacked(files: Sequence[Path], blob: Path, name: str) -> Index:
    stored = blob.with_suffix(".npz")
    with locked(blob.with_suffix(".lock")):  # of several ranks one builds it
        index = Index.load(stored)
        if index is None or not blob.exists():
            index = _unpack(files, blob, name)
            index.save(stored)
    return index


def _unpack(files: Sequence[Path], blob: Path, name: str) -> Index:
    if shutil.disk_usage(blob.parent).free < 2 * sum(path.stat().st_size for path in files):
        raise InputError(f"{blob.parent}: has no room to unpack {name}; set BARLOW_CACHE to a folder on a larger disk.")
    schema = _schema(files[0])
    column = _image_column(schema, name)
    label = next((key for key in _LABELS if key in schema.names and pa.types.is_integer(schema.field(key).type)), None)
    sizes: list[int] = []
    labels: list[int] = []
    with blob.open("wb") as out:
        for batch in _batches(files, [column, *([label] if label else [])]):
            for data in _image_bytes(batch.column(column)):
                sizes.append(out.write(data))
            labels.extend(
                -1 if value is None else value for value in (batch.column(label).to_pylist() if label else [])
            )
    ends = np.cumsum(np.array(sizes, np.int64))
    return Index(
        keys=Names(f"row {i}" for i in range(len(sizes))),
        shard=np.zeros(len(sizes), np.int64),
        offset=ends - np.array(sizes, np.int64),
        size=np.array(sizes, np.int64),
        labels=_known(labels),
        classes=_class_names(schema, label),
    )


def _known(labels: list[int]) -> IntArray | None:
    return np.array(labels, np.int64) if labels and max(labels) >= 0 else None


def _schema(path: Path) -> pa.Schema:
    if path.suffix == ".parquet":
        return pq.read_schema(path)
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
        return stream.schema


def _batches(files: Sequence[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    for path in files:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=256, columns=columns)
        else:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
                yield from (batch.select(columns) for batch in stream)


def _image_column(schema: pa.Schema, name: str) -> str:
    """The column that `datasets` calls an image, else the first with bytes."""
    declared = (key for key, feature in _features(schema).items() if _type_of(feature) == "Image")
    stored = (field.name for field in schema if _holds_bytes(field.type))
    column = next(declared, None) or next(stored, None)
    if column is None:
        raise InputError(f"{name}: no column holds image bytes; it has {', '.join(schema.names)}.")
    return column


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_bytes(column: pa.Array) -> Iterator[bytes]:
    """The bytes of each row; none are stored for a null, or where only a path was kept."""
    values = column.field("bytes") if pa.types.is_struct(column.type) else column
    return (value or b"" for value in values.to_pylist())


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` notes about the columns in the schema's metadata."""
    try:
        noted: dict[str, Any] = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return noted


def _type_of(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    feature: Any = _features(schema).get(label or "")
    return tuple(feature["names"]) if _type_of(feature) == "ClassLabel" and feature.get("names") else None
