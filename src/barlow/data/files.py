"""Sources whose samples are stored as encoded bytes; the first of them: a folder of image files."""

import errno
import hashlib
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.files import is_output

from .decode import HAS_HEIF, HEIF_SUFFIXES, IMAGE_SUFFIXES, Form, common_form, loss, natural_form, open_image
from .order import SAMPLE, hashed
from .source import CorruptSample, IntArray, LazyImage, Names, Source, digest

PROBED = 256
"""Files whose headers decide the channels and the depth of a source."""
_STAT = 1000  # files that a thread looks at in one go

_SYSTEM = frozenset(
    ("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "lost+found")
) | {"$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
"""Lower-case names that network storage (its thumbnails above all), macOS and Windows give to files of their own."""
_RUN_FILES = {"config.json", "run.json"}
_NAMED = 5
"""Kinds or files that one line names; the rest are counted."""


@dataclass(kw_only=True, eq=False)
class EncodedSource(Source):
    """Samples stored as the bytes of an image file each."""

    rgba: bool = False
    """The four channels are RGB and opacity, not four bands."""

    @abstractmethod
    def stored(self, i: int) -> bytes:
        """The stored bytes of sample i. Raises CorruptSample or OSError."""

    def image(self, i: int) -> LazyImage:
        return open_image(self._bytes(i), Form(self.channels, self.dtype, self.rgba), self.keys[i])

    def read(self, i: int) -> Tensor:
        return self.image(i).decode()[0].contiguous()

    def content_hash(self, i: int) -> str:
        return hashlib.sha256(self._bytes(i)).hexdigest()

    def settle_form(self, channels: int | None) -> None:
        """Set channels and dtype to what most of up to PROBED samples have; `channels` overrides their count.

        The note names the samples that lose by it, and the layout that arrays were taken to have.
        """
        natural: dict[str, Form] = {}
        for i in map(int, sample_indices(len(self), PROBED, seed=0)):
            try:
                natural[self.keys[i]] = natural_form(self._bytes(i), self.keys[i], channels)
            except CorruptSample:
                continue  # the loader counts and names it
        form = common_form(list(natural.values()), channels)
        self.channels, self.dtype, self.rgba = form.channels, form.dtype, form.rgba
        losses = [(key, loss(stored, form, asked=channels is not None)) for key, stored in natural.items()]
        odd = [f"{key} ({reason})" for key, reason in losses if reason]
        self.add_note(next((stored.layout for stored in natural.values() if stored.layout), ""))
        if odd:
            self.add_note(f"{len(odd)} of {len(natural)} samples looked at are unlike the rest: {listed(odd)}")

    def _bytes(self, i: int) -> bytes:
        try:
            return self.stored(i)
        except OSError as error:
            raise CorruptSample(self.keys[i], error.strerror or str(error)) from error


def sample_indices(n: int, count: int, *, seed: int) -> IntArray:
    """Up to `count` different numbers below n, ascending."""
    return np.sort(np.argsort(hashed(SAMPLE, seed, np.arange(n)), kind="stable")[:count])


@dataclass(kw_only=True, eq=False)
class FolderSource(EncodedSource):
    """Image files under one folder (or given one by one); keys are paths relative to it."""

    root: Path

    def stored(self, i: int) -> bytes:
        return (self.root / self.keys[i]).read_bytes()

    def fingerprint(self) -> str:
        return digest([file_stamp(self.root / key) for key in self.keys])

    def stored_sizes(self) -> IntArray:
        root = str(self.root)

        def sizes(start: int) -> list[int]:
            return [file_stamp(os.path.join(root, key))[1] for key in self.keys[start : start + _STAT]]  # noqa: PTH118

        with ThreadPoolExecutor(16) as threads:  # on a network disk each look waits for its answer
            parts = threads.map(sizes, range(0, len(self), _STAT))
        return np.fromiter(chain.from_iterable(parts), np.int64, len(self))


def file_stamp(path: str | Path) -> tuple[str, int, int, int]:
    """Absolute path, size, and times of a file (-1 when it is gone): changes whenever its content does.

    The time of modification can be set, and tools that copy or unpack set it; that of the last change of the file's
    record cannot, except on Windows, where it tells when the file was made.
    """
    place = os.path.abspath(path)  # noqa: PTH100  a Path for each of millions of files would take minutes
    try:
        stat = os.stat(place)  # noqa: PTH116
    except OSError:
        return place, -1, -1, -1
    return place, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def from_files(
    root: Path, keys: Iterable[str], *, name: str, channels: int | None, labels: IntArray | None = None
) -> FolderSource:
    """A source over known files, in the order given."""
    source = FolderSource(name=name, keys=Names(keys), channels=3, dtype=torch.uint8, labels=labels, root=root)
    source.settle_form(channels)
    return source


def open_folder(root: Path, keys: Sequence[str], *, name: str, channels: int | None) -> FolderSource:
    """The image files `keys` under `root`; class subfolders, where there are any, give labels."""
    source = from_files(root, keys, name=name, channels=channels)
    folders = Counter(key.rpartition("/")[0] for key in keys)
    classes = sorted(folder for folder in folders if folder and "/" not in folder)
    inside = sum(folders[name] for name in classes)
    if len(classes) < 2:
        return source
    if 2 * inside <= len(keys):
        share = f"{len(keys) - inside} of {len(keys)}"
        source.add_note(f"no labels: {share} images lie outside the {len(classes)} subfolders")
        return source
    number = {name: i for i, name in enumerate(classes)}
    labels = np.fromiter((number.get(key.rpartition("/")[0], -1) for key in keys), np.int64, len(keys))
    source.labels, source.classes = labels, tuple(classes)
    source.add_note(f"labels from {len(classes)} subfolders")
    if outside := [keys[int(i)] for i in np.flatnonzero(labels < 0)]:
        source.left_out += (f"labels of images outside the class folders: {len(outside)} ({listed(outside)})",)
    return source


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def counted(kinds: Counter[str]) -> str:
    """The commonest kinds with their counts: `.heic (30), .txt (2)`; empty for none."""
    told = [f"{kind} ({n:,})" for kind, n in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))]
    hint = not HAS_HEIF and not HEIF_SUFFIXES.isdisjoint(kinds)
    return listed(told) + ("; pip install pillow-heif to read HEIC" if hint else "")


def scan(root: Path, suffixes: frozenset[str], others: Counter[str]) -> Iterator[str]:
    """Relative POSIX paths of the files with these suffixes, in all subfolders; `others` counts what else lies there.

    Hidden entries, those of the operating system and the runs of this library are skipped; hidden images and skipped
    folders are counted too. Links are followed, but every real folder is entered once, so loops end. A dangling link
    is listed: whoever reads it learns that the file is gone.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        stat = (root / folder).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        with listable(root / folder), os.scandir(root / folder) as found:
            entries = sorted(found, key=lambda entry: entry.name, reverse=True)  # `waiting` is worked from its end
        if {entry.name for entry in entries} >= _RUN_FILES:
            others["run folders"] += 1
            continue
        for entry in entries:
            path, suffix = f"{folder}{entry.name}", suffix_of(entry.name)
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                if _is_folder(entry):
                    others[f"{entry.name}/"] += 1
                elif suffix in IMAGE_SUFFIXES:
                    others["hidden images"] += 1
            elif _is_folder(entry):
                waiting.append(path + "/")
            elif is_picture_name(entry.name) and is_output(root / path):
                others["pictures of views"] += 1
            elif suffix in suffixes and (entry.is_file() or entry.is_symlink()):
                yield path
            else:
                others[suffix or "files without a suffix"] += 1


def is_picture_name(name: str) -> bool:
    """Whether `barlow views` may write this name among images: to look for its mark in every image would read all."""
    return name.startswith("views") and name.endswith(".png")


def suffix_of(name: str) -> str:
    """Lower case, with its dot; a Path for each of millions of files would take minutes and gigabytes."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that points at itself
            return False
        raise


@contextmanager
def listable(folder: Path) -> Iterator[None]:
    """Raise InputError where the folder cannot be listed."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: cannot list this folder ({error.strerror}).") from error
