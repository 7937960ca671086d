"""Tar shards in WebDataset's layout: files of one sample share the name up to the first dot. Where none of them is an
image by the rest of its name (`.png`), those that are by their last part (`.v1.png`) are samples of their own.

Samples are read at random by an index of (shard, offset, size), which is built from the headers once and kept beside
the shards, or in the cache folder where that is read-only. Format: https://github.com/webdataset/webdataset.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from re import fullmatch, split

import numpy as np

from barlow.errors import InputError
from barlow.files import cache_folder

from .decode import IMAGE_SUFFIXES
from .files import file_stamp
from .packed import Index, PackedSource, packed_source, read_or_build
from .source import Names, digest


def is_pattern(text: str) -> bool:
    """Whether the text names several files: `{000..127}`, `{a,b}`, `*`, `?` or `[...]`."""
    return any(mark in text for mark in "{*?[")


def expand(pattern: str) -> list[Path]:
    """The existing files a pattern names, in its order. Raises InputError naming the first that is missing."""
    files: list[Path] = []
    for text in _braces(pattern):
        path = Path(text).expanduser()
        found = sorted(_glob(path)) if any(mark in text for mark in "*?[") else [path]
        files.extend(found)
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None or not files:
        raise InputError(f"{pattern}: {f'there is no {missing}' if missing else 'no file fits this pattern'}.")
    return files


def _glob(path: Path) -> Iterator[Path]:
    anchor = Path(path.anchor) if path.anchor else Path()
    return anchor.glob(str(path.relative_to(anchor)))


def _braces(pattern: str) -> Iterator[str]:
    """Every text that the braces stand for: `{08..11}` counts with leading zeros, `{a,b}` lists."""
    parts = split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return ("".join(texts) for texts in product(*choices))


def _choices(inside: str) -> list[str]:
    counted = fullmatch(r"(\d+)\.\.(\d+)", inside)
    if counted is None:
        return inside.split(",")
    first, last = counted.groups()
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]


def open_shards(files: Sequence[Path], *, name: str, channels: int | None) -> PackedSource:
    """The images in tar files; `groups` is each sample's shard. Labels come from `.cls` or the `label` of `.json`.

    Raises InputError for a file that is no plain tar, or shards without images.
    """
    stamps = [file_stamp(path) for path in files]
    stored = f"barlow-index-{digest(*stamps)[:16]}.npz"
    places = (files[0].parent / f".{stored}", cache_folder() / "index" / stored)
    index = read_or_build(places, lambda: _build(files, name))
    source = packed_source(index, files, name=name, stamps=stamps, channels=channels)
    source.groups = index.shard
    source.add_note(f"{len(files)} shards")
    return source


def _build(files: Sequence[Path], name: str) -> Index:
    rows = [(number, *row) for number, path in enumerate(files) for row in _samples(path)]
    if not rows:
        raise InputError(f"{name}: the {len(files)} shards hold no images.")
    numbers, keys, offsets, sizes, labels = zip(*rows, strict=True)
    return Index(
        keys=Names(keys),
        shard=np.array(numbers, np.int64),
        offset=np.array(offsets, np.int64),
        size=np.array(sizes, np.int64),
        labels=None if None in labels else np.array(labels, np.int64),
    )


def _samples(path: Path) -> list[tuple[str, int, int, int | None]]:
    """(key, offset, size, label) of each sample with an image, in the order stored."""
    images: dict[str, tuple[str, int, int]] = {}  # key: the sample's name, offset, size
    labels: dict[str, int | None] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or every header that was read would be kept
                stem, middle, suffix = _parts(member.name)
                if not member.isfile() or not stem:
                    continue
                if suffix in IMAGE_SUFFIXES:
                    images.setdefault(stem + middle, (stem, member.offset_data, member.size))
                elif suffix in (".cls", ".json"):
                    labels.setdefault(stem + middle, _label(suffix, _content(tar, member)))
    except (tarfile.TarError, EOFError) as error:
        raise InputError(
            f"{path}: is not a whole, uncompressed tar file ({error}); fetch or unpack it again."
        ) from error
    return [
        (f"{path.name}/{key}", offset, size, labels.get(key, labels.get(stem)))
        for key, (stem, offset, size) in images.items()
        if key == stem or stem not in images
    ]


def _parts(name: str) -> tuple[str, str, str]:
    """`a/b.seg.PNG` is `a/b`, `.seg` and `.png`; all are empty of a hidden file and of one without a suffix."""
    folder, slash, base = name.rpartition("/")
    stem, dot, rest = base.partition(".")
    middle, _, last = (dot + rest).rpartition(".")
    return (folder + slash + stem, middle, f".{last.lower()}") if stem and dot else ("", "", "")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _label(suffix: str, content: bytes) -> int | None:
    try:
        value = int(content) if suffix == ".cls" else json.loads(content).get("label")
    except (ValueError, AttributeError):
        return None
    return value if isinstance(value, int) else None
