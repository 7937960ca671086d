"""Sources whose samples are stored as encoded bytes; the first of them: a folder of image files."""

import errno
import hashlib
import os
from abc import abstractmethod
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

from .decode import Form, common_form, loss, natural_form, open_image
from .order import SAMPLE, hashed
from .source import CorruptSample, IntArray, LazyImage, Names, Source, digest

PROBED = 256
"""Files whose headers decide the channels and the depth of a source."""
_STAT = 1000  # files that a thread looks at in one go
_NAMED = 3  # samples named in one line


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
            named = ", ".join(odd[:_NAMED]) + (", ..." if len(odd) > _NAMED else "")
            self.add_note(f"{len(odd)} of {len(natural)} samples looked at are unlike the rest: {named}")

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
    source.labels, source.classes = _class_folders(keys)
    source.add_note(f"labels from {len(source.classes)} subfolders" if source.classes else "")
    return source


def _class_folders(keys: Sequence[str]) -> tuple[IntArray | None, tuple[str, ...] | None]:
    """Labels when every file lies in `<class>/` directly and there are at least two classes."""
    classes = tuple(sorted({key.rpartition("/")[0] for key in keys}))
    if len(classes) < 2 or any(not name or "/" in name for name in classes):
        return None, None
    number = {name: i for i, name in enumerate(classes)}
    return np.fromiter((number[key.rpartition("/")[0]] for key in keys), np.int64, len(keys)), classes


def scan(root: Path, suffixes: frozenset[str]) -> Iterator[str]:
    """Relative POSIX paths of the files with these suffixes, in all subfolders.

    Hidden entries are skipped; links are followed, but every real folder is entered once, so loops end. A dangling
    link is listed: whoever reads it learns that the file is gone.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        stat = (root / folder).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for entry in _entries(root / folder):
            path = f"{folder}{entry.name}"
            if _is_folder(entry):
                waiting.append(path + "/")
            elif suffix_of(entry.name) in suffixes and (entry.is_file() or entry.is_symlink()):
                yield path


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


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    """Visible entries, last name first: the caller works from the end of its list."""
    with listable(folder), os.scandir(folder) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: entry.name, reverse=True)


@contextmanager
def listable(folder: Path) -> Iterator[None]:
    """Raise InputError where the folder cannot be listed."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: cannot list this folder ({error.strerror}).") from error
