"""What a source of samples is, whatever it is stored in."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]
Kind = Literal["image", "signal", "table"]


class CorruptSample(Exception):  # noqa: N818  the sample is corrupt, not the program
    """A stored sample that cannot be read: its key and the reason. Loaders skip, count and name it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)  # both, so that the exception survives pickling out of a worker
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class DataWarning(UserWarning):
    """Something in the data is left out; said once, when the data are opened."""


class Names(Sequence[str]):
    """The keys of many samples in one block of bytes: half the memory of a list, and forked workers share it, where
    each would come to own a copy of every string whose reference count it touches."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode(errors="surrogatepass") for name in names]  # file names need not be valid text
        self._text = b"".join(encoded)
        self._ends = np.fromiter(accumulate(map(len, encoded), initial=0), np.int64, len(encoded) + 1)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: Any) -> Any:
        chosen = range(len(self))[i]  # raises IndexError; counts negative numbers from the end
        return [self._name(j) for j in chosen] if isinstance(i, slice) else self._name(chosen)

    def _name(self, i: int) -> str:
        return self._text[self._ends[i] : self._ends[i + 1]].decode(errors="surrogatepass")


REDUCING_GAP = 2
"""A JPEG is decoded reduced only to this many times the side it is resized to: Pillow's value for a result like that
of the whole image."""


def jpeg_reduction(sides: float) -> int:
    """The most (1, 2, 4 or 8) that a JPEG of `sides` times the side asked for may be reduced by on decoding."""
    return max(r for r in (1, 2, 4, 8) if r == 1 or r * REDUCING_GAP <= sides)


class LazyImage(Protocol):
    """An image whose size is known before its pixels are decoded."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def decode(self, reduction: int = 1) -> tuple[Tensor, int]:
        """Pixels [C, H/r, W/r] and the r used: `reduction` is the most the caller allows (1, 2, 4 or 8)."""


@dataclass(frozen=True)
class DecodedImage:
    """The lazy image of a source that holds pixels already: [C, H, W]."""

    pixels: Tensor

    @property
    def height(self) -> int:
        return self.pixels.shape[-2]

    @property
    def width(self) -> int:
        return self.pixels.shape[-1]

    def decode(self, reduction: int = 1) -> tuple[Tensor, int]:
        return self.pixels, 1


@dataclass(kw_only=True, eq=False)
class Source(ABC):
    """N samples with keys, of one kind, one channel count and one dtype; labels are metadata and may be absent."""

    name: str
    """What the person called it: a path, or the name of a data set."""
    keys: Sequence[str]
    """[N] one name per sample, unique: relative paths for files."""
    channels: int
    """Channels of an image or a signal; features of a table."""
    dtype: torch.dtype
    """torch.uint8, or torch.float32 (16-bit pixels divided by 65535, float sources as they are)."""
    kind: Kind = "image"
    labels: IntArray | None = None
    """[N] class numbers, or None."""
    classes: tuple[str, ...] | None = None
    """Name of each class number, or None."""
    groups: IntArray | None = None
    """[N] number of the shard or row group that stores the sample, where reading by group is faster; or None."""
    split_names: tuple[str, ...] = ()
    """Splits that `open_source(..., split=)` knows here."""
    location: str = ""
    """Where it is found again from any folder: an absolute path or pattern, or the name of a data set; else empty."""
    note: str = ""
    """What was decided on opening and a person may want to know: the split taken, where labels come from."""
    left_out: tuple[str, ...] = ()
    """What in the data is not read, counted and named; `open_source` warns of it."""

    def __len__(self) -> int:
        return len(self.keys)

    def add_note(self, words: str) -> None:
        self.note = "; ".join(filter(None, (self.note, words)))

    @abstractmethod
    def read(self, i: int) -> Tensor:
        """Sample i: uint8 or float32 [C, H, W] (signal: [C, T], table: [F]). Raises CorruptSample."""

    @abstractmethod
    def content_hash(self, i: int) -> str:
        """sha256 of the stored bytes of sample i (of the decoded array, where nothing is stored per sample)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the stored data may have changed: the key of caches made from this source."""

    def stored_sizes(self) -> IntArray:
        """[N] bytes that each sample takes where it is stored; zeros where that is not known."""
        return np.zeros(len(self), np.int64)

    def image(self, i: int) -> LazyImage:
        """Sample i with its size known before its pixels are decoded. Raises CorruptSample."""
        return DecodedImage(self.read(i))


def digest(*parts: object) -> str:
    """sha256 over the text of the parts: a short way to name a cache file."""
    text = hashlib.sha256()
    for part in parts:
        text.update(repr(part).encode("utf-8", "surrogateescape"))
    return text.hexdigest()
