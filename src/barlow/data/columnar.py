"""Parquet and Arrow files with image bytes, as Hugging Face `datasets` writes them.

A row group has to be decoded whole, so random access would read every file many times over. The bytes are unpacked
once into one flat file in the cache folder, as large as the images are, and read from there.
"""

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from barlow.errors import InputError
from barlow.files import cache_folder, locked

from .arrays import choose_split, split_note
from .decode import is_image
from .files import file_stamp, listed
from .labels import LABEL_KEYS, Labels, read_labels
from .packed import Index, PackedSource, packed_source
from .source import Names, digest

SUFFIXES = frozenset({".parquet", ".arrow", ".feather"})

_LABELS = (*LABEL_KEYS, "fine_label", "class", "cls")
_VERSION = 2  # of the index's content
_PROBED = 64  # rows in which a column of bytes has to show an image


def open_tables(files: Sequence[Path], *, name: str, split: str | None, channels: int | None) -> PackedSource:
    """The images in Parquet or Arrow files; `train-00000-of-00004.parquet` names a split.

    Raises InputError when a file cannot be read or no column holds image bytes.
    """
    # `datasets` keeps results of `map` as cache-...
    tables = [path for path in files if not path.name.startswith("cache-")] or files
    splits = {path: _split_of(path) for path in tables}
    found = tuple(sorted({owner for owner in splits.values() if owner}))
    chosen = choose_split(split, found, name)
    mine = [path for path in tables if splits[path] == chosen]
    column = next(filter(None, map(_image_column, mine)), None)
    if column is None:
        with _opened(mine[0]) as (schema, _):
            raise InputError(f"{name}: no column holds image bytes; it has {listed(schema.names)}.")
    mine = [path for path in mine if column in _columns(path)]  # features that `embed` wrote may lie beside the images
    stamps = [file_stamp(path) for path in mine]
    blob = cache_folder() / "unpacked" / f"{digest(_VERSION, *stamps)[:32]}.bin"
    source = packed_source(_unpacked(mine, blob, column, name), [blob], name=name, stamps=stamps, channels=channels)
    source.split_names = found
    source.add_note(split_note(chosen, found))
    read = {*mine, *(path for path, owner in splits.items() if owner and owner != chosen)}
    if unread := [path.name for path in files if path not in read]:
        source.left_out += (f"tables without images, of no split or of a cache: {len(unread)} ({listed(unread)})",)
    return source


def holds_no_images(path: Path) -> bool:
    """Whether a table has no column of images, or cannot be read."""
    try:
        return _image_column(path) is None
    except InputError:
        return True


def _split_of(path: Path) -> str | None:
    """Hub files are called `<split>-00000-of-00004`; `datasets` saves every split's files as `data-...`."""
    named = re.match(r"(.+)-\d{5}-of-\d{5}", path.name)
    return named[1] if named and named[1] != "data" else None


def _unpacked(files: Sequence[Path], blob: Path, column: str, name: str) -> Index:
    stored = blob.with_suffix(".npz")
    with locked(blob.with_suffix(".lock")):  # of several ranks one builds it
        index = Index.load(stored)
        if index is None or not blob.exists():
            index = _unpack(files, blob, column, name)
            index.save(stored)
    return index


def _unpack(files: Sequence[Path], blob: Path, column: str, name: str) -> Index:
    if shutil.disk_usage(blob.parent).free < 2 * sum(path.stat().st_size for path in files):
        raise InputError(f"{blob.parent}: has no room to unpack {name}; set BARLOW_CACHE to a folder on a larger disk.")
    with _opened(files[0]) as (schema, _):
        features = _features(schema)
        label = next((key for key in _LABELS if key in schema.names), None)
    sizes: list[int] = []
    labels: list[Any] = []
    with blob.open("wb") as out:
        for path in files:
            with _opened(path) as (schema, batches):
                labelled = label in schema.names
                for batch in batches([column, label] if label and labelled else [column]):
                    sizes.extend(out.write(data) for data in _image_bytes(batch.column(column)))
                    labels.extend(batch.column(label).to_pylist() if labelled else [None] * len(batch))
    ends = np.cumsum(np.array(sizes, np.int64))
    known = read_labels(labels) if label else Labels()
    names = features[label].get("names") if label and _type_of(features.get(label)) == "ClassLabel" else None
    return Index(
        keys=Names(f"row {i}" for i in range(len(sizes))),
        shard=np.zeros(len(sizes), np.int64),
        offset=ends - np.array(sizes, np.int64),
        size=np.array(sizes, np.int64),
        labels=known.numbers,
        classes=known.classes or (tuple(map(str, names)) if isinstance(names, list) and names else None),
        left_out=known.left_out,
    )


Batches = Callable[[list[str]], Iterator[pa.RecordBatch]]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[pa.Schema, Batches]]:
    """The schema of a Parquet or Arrow file, and what reads batches of some columns of it.

    Raises InputError, within the block too, for a file that is damaged.
    """
    try:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path) as file:
                yield file.schema_arrow, lambda columns: file.iter_batches(batch_size=256, columns=columns)
            return
        with pa.memory_map(str(path)) as mapped:
            if mapped.read(6) == b"ARROW1":  # the file format, in which batches are found by a footer
                table = pa.ipc.open_file(mapped)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                mapped.seek(0)
                table = batches = pa.ipc.open_stream(mapped)
            yield table.schema, lambda columns: (batch.select(columns) for batch in batches)
    except InputError:
        raise
    except Exception as error:  # damaged files raise pyarrow's, Python's and the system's errors
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # of the file that the bytes are unpacked to
            raise
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}).") from error


def _image_column(path: Path) -> str | None:
    """The column that `datasets` calls an image, else the first whose bytes are one; None without one."""
    with _opened(path) as (schema, batches):
        features = _features(schema)
        declared: str | None = next((key for key in schema.names if _type_of(features.get(key)) == "Image"), None)
        stored: list[str] = [field.name for field in schema if _holds_bytes(field.type)]
        if declared or not stored:
            return declared
        rows = next(batches(stored), None)
        if rows is None:
            return stored[0]
        head = rows.slice(0, _PROBED)
        return next((key for key in stored if any(map(is_image, _image_bytes(head.column(key))))), None)


def _columns(path: Path) -> list[str]:
    with _opened(path) as (schema, _):
        return list(schema.names)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))


def _image_bytes(column: pa.Array) -> Iterator[bytes]:
    """The bytes of each row; none are stored for a null, or where only a path was kept."""
    values = column.field("bytes") if pa.types.is_struct(column.type) else column
    return (value or b"" for value in values.to_pylist())


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` notes about the columns in the schema's metadata."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _type_of(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None
