"""Many encoded samples in few files, each at a known offset: tar shards, and what Parquet files are unpacked to."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from barlow.files import written

from .files import EncodedSource
from .source import CorruptSample, IntArray, Names, digest


@dataclass
class Index:
    """Where each of N samples lies."""

    keys: Sequence[str]
    shard: IntArray
    """[N] number of the file that holds it."""
    offset: IntArray
    size: IntArray
    labels: IntArray | None = None
    classes: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write atomically: several ranks may build the same index at the same time."""
        facts = json.dumps({"keys": list(self.keys), "classes": self.classes, "left_out": self.left_out}).encode()
        arrays = {
            "shard": self.shard,
            "offset": self.offset,
            "size": self.size,
            "facts": np.frombuffer(facts, np.uint8),
        }
        if self.labels is not None:
            arrays["labels"] = self.labels
        with written(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs take a name for an option

    @classmethod
    def load(cls, path: Path) -> "Index | None":
        """The index stored there, or None when there is none that can be read."""
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                facts: dict[str, Any] = json.loads(stored["facts"].tobytes())
                labels = stored["labels"] if "labels" in stored.files else None
                arrays = {name: stored[name] for name in ("shard", "offset", "size")}
                classes = tuple(facts["classes"]) if facts["classes"] else None
                left_out = tuple(facts["left_out"])
                return cls(Names(facts["keys"]), labels=labels, classes=classes, left_out=left_out, **arrays)
        except Exception:  # damage raises nearly anything; the index is made again
            return None


@dataclass(kw_only=True, eq=False)
class PackedSource(EncodedSource):
    """Samples at offsets of files; a file is opened for each read, so workers share nothing."""

    files: Sequence[Path]
    index: Index
    stamps: Sequence[object] = field(default_factory=list)
    """What identifies the stored data: names, sizes and times of the files the person gave."""

    def stored(self, i: int) -> bytes:
        size = int(self.index.size[i])
        with self.files[int(self.index.shard[i])].open("rb", buffering=0) as file:
            file.seek(int(self.index.offset[i]))
            data = file.read(size)
        if len(data) < size:
            raise CorruptSample(self.keys[i], f"its shard ends after {len(data):,} of {size:,} bytes")
        return data

    def fingerprint(self) -> str:
        return digest(*self.stamps)

    def stored_sizes(self) -> IntArray:
        return self.index.size


def packed_source(
    index: Index, files: Sequence[Path], *, name: str, stamps: Sequence[object], channels: int | None
) -> PackedSource:
    """A source over an index; its form is read from a sample of it."""
    source = PackedSource(
        name=name,
        keys=index.keys,
        channels=3,
        dtype=torch.uint8,
        labels=index.labels,
        classes=index.classes,
        left_out=index.left_out,
        files=files,
        index=index,
        stamps=stamps,
    )
    source.settle_form(channels)
    return source


def read_or_build(paths: Sequence[Path], build: Callable[[], Index]) -> Index:
    """The first index stored at one of `paths`; else the built one, stored at the first path that can be written."""
    for path in paths:
        if (index := Index.load(path)) is not None:
            return index
    index = build()
    for path in paths:
        try:
            index.save(path)
        except OSError:  # read-only, or full: the next place, or none
            continue
        break
    return index
