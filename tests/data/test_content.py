"""Whether data are the same: by names, sizes and contents, not by where they lie."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from barlow.data import difference, identity, open_source
from barlow.data.content import MOST_SAMPLES


def folder(path: Path, count: int = 12) -> Path:
    """Images that all have the same size in bytes."""
    path.mkdir()
    for i in range(count):
        Image.new("L", (8, 8), i).save(path / f"{i:02}.bmp")
    return path


def repaint(path: Path) -> None:
    before = (path / "07.bmp").stat()
    Image.new("L", (8, 8), 200).save(path / "07.bmp")
    os.utime(path / "07.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "contents": repaint,
    "sizes and contents": lambda path: Image.new("L", (9, 9), 7).save(path / "07.bmp"),
    "names": lambda path: (path / "07.bmp").rename(path / "07b.bmp"),
    "11 samples now and 12 then": lambda path: (path / "07.bmp").unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_named(tmp_path: Path, what: str) -> None:
    path = folder(tmp_path / "data")
    then = identity(open_source(path))
    CHANGES[what](path)
    assert what in difference(then, identity(open_source(path)))


def test_a_copy_and_another_spelling_are_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "data")
    then = identity(open_source(path))
    shutil.copytree(path, tmp_path / "copy")
    monkeypatch.chdir(path)
    for spelling in (tmp_path / "copy", "../data", ".", str(path) + "//"):
        assert difference(then, identity(open_source(spelling))) == ""


@pytest.mark.parametrize("suffix", ["npy", "npz", "memory"])
def test_every_value_of_an_array_counts(tmp_path: Path, suffix: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (9000, 8, 8), dtype=np.uint8)
    assert len(x) > 2 * MOST_SAMPLES  # fewer than that would be looked at one by one

    def told(array: np.ndarray) -> dict[str, object]:
        if suffix == "memory":
            return identity(open_source(array))
        path = tmp_path / f"x.{suffix}"
        np.save(path, array) if suffix == "npy" else np.savez(path, x=array)
        return identity(open_source(path))

    then = told(x)
    assert difference(then, told(x.copy())) == ""
    x[6789, 3, 2] += 1
    assert "contents" in difference(then, told(x))


def test_where_only_a_part_is_read_a_tenth_of_other_content_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "data", count=100)
    monkeypatch.setattr("barlow.data.content.MOST_SAMPLES", 60)
    then = identity(open_source(path))
    for i in range(0, 100, 10):
        Image.new("L", (8, 8), 200).save(path / f"{i:02}.bmp")
    assert "contents" in difference(then, identity(open_source(path)))
