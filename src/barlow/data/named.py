"""Data sets by name: scikit-learn's embedded ones, which need no network, and torchvision's."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from barlow.errors import InputError
from barlow.files import data_folder

from .arrays import choose_split, from_array, split_note
from .files import from_files
from .source import Source
from .splits import holdout_split

# --- scikit-learn ------------------------------------------------------------------------------------------------

_EMBEDDED = {
    "digits": "load_digits",
    "iris": "load_iris",
    "wine": "load_wine",
    "breast-cancer": "load_breast_cancer",
}


DIGITS_SPLITS = ("train", "test", "all")
TEST_SHARE = 0.2  # of every digit; drawn once for good, so that figures on the digits can be compared


def _open_embedded(name: str, *, split: str | None, channels: int | None) -> Source:
    # scikit-learn takes a second to import, and only these names need it
    bunch = getattr(import_module("sklearn.datasets"), _EMBEDDED[name])()
    classes = tuple(str(c) for c in bunch.target_names)
    if name == "digits":
        return _open_digits(bunch, classes, split=split, channels=channels)
    choose_split(split, (), name)
    return from_array(bunch.data, name=name, labels=bunch.target, classes=classes, channels=channels)


def _open_digits(bunch: Any, classes: tuple[str, ...], *, split: str | None, channels: int | None) -> Source:
    chosen = choose_split(split, DIGITS_SPLITS, "digits")
    train, test = holdout_split(bunch.target, share=TEST_SHARE, seed=0)
    rows = {"train": train, "test": test}.get(str(chosen), np.arange(len(bunch.target)))
    pixels = np.rint(bunch.images[rows] * (255 / 16)).astype(np.uint8)  # stored as 0..16
    source = from_array(pixels, name="digits", labels=bunch.target[rows], classes=classes, channels=channels)
    source.split_names = DIGITS_SPLITS
    source.add_note(split_note(chosen, DIGITS_SPLITS))
    return source


# --- torchvision -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    """How one torchvision class is asked for a split, and where it keeps images and labels."""

    cls: str
    splits: tuple[str, ...]
    flag: str = "split"
    """The constructor's argument that takes the split; "train" takes a boolean."""
    images: str = "data"
    """Attribute with the images: an array, or a list of paths (or of (path, label) pairs)."""
    labels: str = "targets"
    joined: bool = False
    """torchvision has train and val, and trainval, which the papers fit on, is both of them."""


_FILES: dict[str, Any] = {"images": "_image_files", "labels": "_labels"}
_TRAIN_TEST = ("train", "test")
_TRAIN_VAL_TEST = ("train", "val", "trainval", "test")
_TORCHVISION = {
    "cifar10": _Named("CIFAR10", _TRAIN_TEST, flag="train"),
    "cifar100": _Named("CIFAR100", _TRAIN_TEST, flag="train"),
    "mnist": _Named("MNIST", _TRAIN_TEST, flag="train"),
    "fashion-mnist": _Named("FashionMNIST", _TRAIN_TEST, flag="train"),
    "kmnist": _Named("KMNIST", _TRAIN_TEST, flag="train"),
    "svhn": _Named("SVHN", ("train", "test", "extra"), labels="labels"),
    "stl10": _Named("STL10", ("train", "test", "unlabeled", "train+unlabeled"), labels="labels"),
    "dtd": _Named("DTD", _TRAIN_VAL_TEST, joined=True, **_FILES),
    "flowers102": _Named("Flowers102", _TRAIN_VAL_TEST, joined=True, **_FILES),
    "fgvc-aircraft": _Named("FGVCAircraft", _TRAIN_VAL_TEST, **_FILES),
    "food101": _Named("Food101", _TRAIN_TEST, **_FILES),
    "gtsrb": _Named("GTSRB", _TRAIN_TEST, images="_samples", labels=""),
    "oxford-pets": _Named("OxfordIIITPet", ("trainval", "test"), images="_images", labels="_labels"),
    "eurosat": _Named("EuroSAT", (), flag="", images="samples", labels="targets"),
}
NAMES = (*_EMBEDDED, *_TORCHVISION)
"""Every name that `open_named` knows."""


def open_named(name: str, *, split: str | None, channels: int | None) -> Source:
    """A data set by name. torchvision's are downloaded when they are not under BARLOW_DATA (~/.cache/barlow).

    Raises InputError when a split is unknown, or the data is neither there nor to be had.
    """
    if name in _EMBEDDED:
        return _open_embedded(name, split=split, channels=channels)
    spec = _TORCHVISION[name]
    chosen = choose_split(split, spec.splits, name)
    parts = ("train", "val") if spec.joined and chosen == "trainval" else (chosen,)
    source = _as_source([_constructed(name, spec, part) for part in parts], name, spec, channels)
    source.split_names = spec.splits
    source.add_note(split_note(chosen, spec.splits))
    return source


def _constructed(name: str, spec: _Named, split: str | None) -> Any:
    """torchvision's object: from the disk when it is there, else downloaded unless BARLOW_OFFLINE is set."""
    build: Callable[..., Any] = getattr(import_module("torchvision.datasets"), spec.cls)
    chosen = {} if not spec.flag else {spec.flag: split == "train" if spec.flag == "train" else split}
    root = data_folder()
    with contextlib.suppress(RuntimeError, OSError):  # torchvision's way to say: not there, or incomplete
        return build(root, download=False, **chosen)
    if os.environ.get("BARLOW_OFFLINE"):
        raise InputError(f"{name}: is not under {root} and BARLOW_OFFLINE forbids a download; set BARLOW_DATA.")
    try:
        with _patience(seconds=30):
            return build(root, download=True, **chosen)
    except Exception as error:  # network, disk and archive errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: is not under {root} and cannot be downloaded ({reason}); put it there or set BARLOW_DATA."
        ) from error


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """A limit on how long a silent server is waited for; torchvision's downloads have none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _as_source(parts: list[Any], name: str, spec: _Named, channels: int | None) -> Source:
    classes = tuple(str(c) for c in getattr(parts[0], "classes", None) or ()) or None
    if not isinstance(getattr(parts[0], spec.images), list):
        images, labels = (getattr(parts[0], attribute) for attribute in (spec.images, spec.labels))
        return from_array(
            images, name=name, labels=np.asarray(labels), classes=classes, channels=channels, kind="image"
        )
    images = [image for part in parts for image in getattr(part, spec.images)]
    if spec.labels:
        labels = [label for part in parts for label in getattr(part, spec.labels)]
    else:
        labels = [label for _, label in images]
    paths = [Path(item[0] if isinstance(item, tuple) else item) for item in images]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    keys = [path.relative_to(root).as_posix() for path in paths]
    source = from_files(root, keys, name=name, channels=channels, labels=np.asarray(labels, np.int64))
    source.classes = classes
    return source
