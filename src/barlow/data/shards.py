"""Tar shards in WebDataset's layout: files of one sample share the name up to the first dot. Where none of them is an
image by the rest of its name (`.png`), those that are by their last part (`.v1.png`) are samples of their own.

Samples are read at random by an index of (shard, offset, size), which is built from the headers once and kept beside
the shards, or in the cache folder where that is read-only. Format: https://github.com/webdataset/webdataset.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from re import fullmatch, search
from typing import Any

import numpy as np

from barlow.errors import InputError
from barlow.files import cache_folder, user_path

from .decode import IMAGE_SUFFIXES
from .files import counted, file_stamp, listed, suffix_of
from .labels import read_labels
from .packed import Index, PackedSource, packed_source, read_or_build
from .source import Names, digest

LOST_SHARE = 0.01
"""Share of the shards' bytes that damage may hide before a run ends."""
LABEL_BYTES = 1 << 20
"""Largest `.cls` or `.json` that is looked into for a label."""
_VERSION = 3  # of the index's content


def is_pattern(text: str) -> bool:
    """Whether the text names several files: `{000..127}`, `{a,b}`, `*`, `?` or `[...]`."""
    return any(mark in text for mark in "{*?[")


def expand(pattern: str) -> list[Path]:
    """The existing files a pattern names, in its order. Raises InputError naming the first that is missing."""
    files: list[Path] = []
    for text in _braces(pattern):
        path = user_path(text)
        found = sorted(_glob(path)) if any(mark in text for mark in "*?[") else [path]
        # The first that is missing ends the search: braces may stand for more names than there is time to look for.
        if not found:
            raise InputError(f"{pattern}: no file fits {text}.")
        if absent := [file for file in found if not file.is_file()]:
            raise InputError(f"{pattern}: there is no {absent[0]}.")
        files.extend(found)
    if not files:
        raise InputError(f"{pattern}: no file fits this pattern.")
    return files


def _glob(path: Path) -> Iterator[Path]:
    anchor = Path(path.anchor) if path.anchor else Path()
    try:
        yield from anchor.glob(str(path.relative_to(anchor)))
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from error


def _braces(pattern: str) -> Iterator[str]:
    """Every text that the braces stand for: `{08..11}` counts with leading zeros, `{a,b}` lists."""
    braces = search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        yield pattern
        return
    for choice in _choices(braces[1]):
        for rest in _braces(pattern[braces.end() :]):
            yield pattern[: braces.start()] + choice + rest


def _choices(inside: str) -> Iterator[str]:
    counted = fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if counted is None:
        yield from inside.split(",")
    else:
        first, last = counted.groups()
        yield from (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))


def open_shards(files: Sequence[Path], *, name: str, channels: int | None) -> PackedSource:
    """The images in tar files; `groups` is each sample's shard. Labels come from `.cls` or the `label` of `.json`.

    Raises InputError for a file that is no plain tar or is cut off, for shards of which more than LOST_SHARE is
    damaged, and for shards without images.
    """
    stamps = [file_stamp(path) for path in files]
    stored = f"barlow-index-{digest(_VERSION, *stamps)[:16]}.npz"
    places = (files[0].parent / f".{stored}", cache_folder() / "index" / stored)
    index = read_or_build(places, lambda: _build(files, name))
    source = packed_source(index, files, name=name, stamps=stamps, channels=channels)
    source.groups = index.shard
    source.add_note(f"{len(files)} shards")
    return source


def _build(files: Sequence[Path], name: str) -> Index:
    rows: list[tuple[int, str, int, int, Any]] = []
    others: Counter[str] = Counter()
    damage: list[str] = []
    lost = held = 0
    for number, path in enumerate(files):
        shard = _Shard(path)
        rows.extend((number, *row) for row in shard.samples())
        others += shard.others  # drops counts of zero
        lost, held = lost + shard.damaged, held + shard.size
        damage += [f"{shard.damaged:,} bytes of {path.name}"] if shard.damaged else []
    if lost > LOST_SHARE * held:
        raise InputError(
            f"{name}: damaged headers hide {lost:,} of {held:,} bytes, over the limit of {LOST_SHARE:.0%}: "
            f"{listed(damage)}; fetch them again."
        )
    if not rows:
        found = f" but {counted(others)}" if others else ""
        raise InputError(f"{name}: the {len(files)} shards hold no images{found}.")
    numbers, keys, offsets, sizes, labels = zip(*rows, strict=True)
    known = read_labels(labels)
    left_out = (f"what damaged headers hide ({listed(damage)})" if damage else "", counted(others), *known.left_out)
    return Index(
        keys=Names(keys),
        shard=np.array(numbers, np.int64),
        offset=np.array(offsets, np.int64),
        size=np.array(sizes, np.int64),
        labels=known.numbers,
        classes=known.classes,
        left_out=tuple(filter(None, left_out)),
    )


class _Header(tarfile.TarInfo):
    """A member's header; a bad one, which tarfile passes over in silence, is counted in its archive's `damaged`."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.InvalidHeaderError:  # type: ignore[attr-defined]  # the stubs lack it
            tarfile_.damaged = getattr(tarfile_, "damaged", 0) + tarfile.BLOCKSIZE
            raise
        except tarfile.TruncatedHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends within a header") from error


class _Shard:
    """What the headers of one tar file say. Raises InputError for a file that is no plain tar or is cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.others: Counter[str] = Counter()
        self._images: dict[str, tuple[str, int, int]] = {}  # key: the sample's name, offset, size
        self._labels: dict[str, Any] = {}
        try:
            with tarfile.open(path, "r:", tarinfo=_Header) as tar:
                # Go on after a bad header, and after the zeros that end an archive to which another was appended.
                tar.ignore_zeros = True
                end = 0
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # or every header that was read would be kept
                    self._add(tar, member)
                    end = tar.offset
                self.others["shards without an end mark, which may be cut off"] += end >= self.size
                # Bytes that belong to no member: those after a bad header, up to the next good one.
                self.damaged: int = getattr(tar, "damaged", 0)
        except Exception as error:  # damaged extended headers raise nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{path}: is not a whole, uncompressed tar file ({reason}); fetch it again.") from error

    def samples(self) -> list[tuple[str, int, int, Any]]:
        """(key, offset, size, label) of each sample with an image, in the order stored."""
        rows = []
        for key, (stem, offset, size) in self._images.items():
            if key == stem or stem not in self._images:
                label = self._labels.get(key, self._labels.get(stem))
                rows.append((f"{self.path.name}/{key}", offset, size, label))
            else:
                self.others["further images of a sample"] += 1
        return rows

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        stem, middle, suffix = _parts(member.name)
        if not member.isfile():
            self.others["links or devices"] += not member.isdir()
        elif not stem:
            self.others["hidden images"] += suffix_of(member.name) in IMAGE_SUFFIXES
        elif suffix in IMAGE_SUFFIXES:
            repeated = self._images.setdefault(stem + middle, (stem, member.offset_data, member.size))
            self.others["repeated names"] += repeated[1] != member.offset_data
        elif suffix in (".cls", ".json"):
            try:
                label = _label(suffix, _content(tar, member))
            except (ValueError, AttributeError, RecursionError):
                label = None
                self.others[f"{suffix} that cannot be read as labels"] += 1
            self._labels.setdefault(stem + middle, label)
        else:
            self.others[suffix] += 1


def _parts(name: str) -> tuple[str, str, str]:
    """`a/b.seg.PNG` is `a/b`, `.seg` and `.png`; all are empty of a hidden file and of one without a suffix."""
    folder, slash, base = name.rpartition("/")
    stem, dot, rest = base.partition(".")
    middle, _, last = (dot + rest).rpartition(".")
    return (folder + slash + stem, middle, f".{last.lower()}") if stem and dot else ("", "", "")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.size <= LABEL_BYTES else None
    return b"" if file is None else file.read()


def _label(suffix: str, content: bytes) -> Any:
    """A number, text, or None where there is none. Raises what decoding does for content of another form."""
    text = content.decode().strip()
    value = text if suffix == ".cls" else json.loads(text).get("label")
    return int(value) if isinstance(value, str) and fullmatch(r"[+-]?\d{1,18}", value) else value
