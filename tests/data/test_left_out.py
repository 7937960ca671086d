"""What in the data is not read is counted and named once, and takes nothing else with it."""

import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from barlow.data import DataWarning, open_source
from barlow.data.labels import read_labels
from barlow.errors import InputError
from barlow.evaluation.evaluate import split_data
from barlow.training.pictures import draw_views


def pixels(shade: int, side: int = 16) -> npt.NDArray[np.uint8]:
    return np.full((side, side, 3), shade, np.uint8)


def encoded(shade: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(shade)).save(stream, kind)
    return stream.getvalue()


def photos(folder: Path, *names: str) -> Path:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(shade))
    return folder


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shades(source: Any) -> list[int]:
    return [int(source.read(i)[0, 0, 0]) for i in range(len(source))]


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["ppm", "pgm", "pbm", "pnm", "jp2"])
def test_images_without_loss_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    mode = {"pgm": "L", "pbm": "1"}.get(suffix, "RGB")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    channels = 3 if mode == "RGB" else 1
    expected = np.array(image.convert("RGB" if channels == 3 else "L")).reshape(9, 7, channels)
    source = open_source(tmp_path)
    assert source.channels == channels
    np.testing.assert_array_equal(source.read(0).permute(1, 2, 0).numpy(), expected)


def test_deep_gray_maps_are_scaled_by_their_own_maximum(tmp_path: Path) -> None:
    stored = np.array([[0, 1000], [2000, 4000]], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 4000\n" + stored.tobytes())
    np.testing.assert_allclose(open_source(tmp_path).read(0)[0].numpy(), stored / 4000.0, atol=1e-5)


def test_avif_is_read(tmp_path: Path) -> None:
    Image.fromarray(pixels(90)).save(tmp_path / "a.avif", quality=100)
    assert abs(shades(open_source(tmp_path))[0] - 90) <= 2


# --- folders -----------------------------------------------------------------------------------------------------


def test_kinds_that_are_not_read_are_counted_and_named_once(tmp_path: Path) -> None:
    photos(tmp_path, "1.png", "2.png")
    for i in range(3):
        (tmp_path / f"{i}.psd").write_bytes(b"8BPS")
    (tmp_path / "labels.csv").write_text("a,b")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(2):
            assert len(open_source(tmp_path)) == 2
    assert [str(warning.message) for warning in told] == [f"{tmp_path}: left out: .psd (3), .csv (1)"]


def test_a_folder_of_another_kind_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.psd").write_bytes(b"8BPS")
    with pytest.raises(InputError, match=r"no images found, it holds \.psd \(1\)"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "thumbnail", ["cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.png", "cat/.@__thumb/1.png", "cat/._1.png", "#recycle/1.png"]
)
def test_thumbnails_of_network_storage_are_no_samples_and_leave_the_labels(tmp_path: Path, thumbnail: str) -> None:
    photos(tmp_path, "cat/1.png", "dog/1.png", thumbnail)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"")
    with pytest.warns(DataWarning, match=r"left out: \S+"):
        source = open_source(tmp_path)
    assert (list(source.keys), source.classes) == (["cat/1.png", "dog/1.png"], ("cat", "dog"))


def test_folders_beside_the_splits_are_named(tmp_path: Path) -> None:
    photos(tmp_path, "train/1.png", "test/1.png", "more/1.png")
    with pytest.warns(DataWarning, match=r"beside the splits \(more\)"):
        assert len(open_source(tmp_path)) == 1


def test_runs_features_and_pictures_in_the_data_folder_do_not_change_the_data(tmp_path: Path) -> None:
    photos(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png")
    pq.write_table(pa.table({"key": ["a"], "features": [[1.0, 2.0]]}), tmp_path / "features.parquet")
    photos(tmp_path / "run", "drawn.png")
    for name in ("config.json", "run.json"):
        (tmp_path / "run" / name).write_text("{}")
    with pytest.warns(DataWarning, match=r"\.parquet without images \(1\), run folders \(1\)"):
        source = open_source(tmp_path)
    assert (list(source.keys), source.classes) == (["cat/1.png", "cat/2.png", "dog/1.png"], ("cat", "dog"))
    with (
        pytest.warns(DataWarning, match="left out"),
        pytest.raises(InputError, match=r"would lie among the images .* name another --out"),
    ):
        draw_views(str(tmp_path), tmp_path / "cat" / "drawn.png")
    photos(tmp_path, "views-of-mine.png")  # is an image: it does not carry the mark
    for _ in range(2):  # the second time over its own file
        with pytest.warns(DataWarning, match="left out"):
            draw_views(str(tmp_path), tmp_path / "cat" / "views.png", image_size=16, samples=1)
    with pytest.warns(DataWarning, match=r"pictures of views \(1\)"):
        again = open_source(tmp_path)
    assert list(again.keys) == ["cat/1.png", "cat/2.png", "dog/1.png", "views-of-mine.png"]


# --- shards ------------------------------------------------------------------------------------------------------


def flip_header(path: Path, member: int) -> None:
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[member].offset
    data = bytearray(path.read_bytes())
    data[offset + 150] ^= 1  # within the checksum
    path.write_bytes(data)


def test_samples_after_a_bad_header_are_read_and_what_it_hides_is_told(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {f"{i:03}.png": encoded(i % 251) for i in range(300)})
    flip_header(path, 15)
    with pytest.warns(DataWarning, match=r"what damaged headers hide \([\d,]+ bytes of s\.tar\)"):
        source = open_source(path)
    assert shades(source) == [i % 251 for i in range(300) if i != 15]


def test_shards_that_lost_more_than_one_in_a_hundred_bytes_end_the_run(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {f"{i:03}.png": encoded(i) for i in range(30)})
    flip_header(path, 15)
    with pytest.raises(InputError, match=r"damaged headers hide .* over the limit of 1%: .* bytes of s\.tar"):
        open_source(path)


def test_an_archive_appended_to_another_is_read_to_its_end(tmp_path: Path) -> None:
    first, second = (tar(tmp_path / f"{i}.tar", {f"{i}.png": encoded(i)}) for i in (1, 2))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert shades(open_source(first)) == [1, 2]


def test_a_shard_without_its_end_mark_is_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {"1.png": encoded(1)})
    path.write_bytes(path.read_bytes()[:1024])  # a header and one block of data
    with pytest.warns(DataWarning, match="without an end mark"):
        assert shades(open_source(path)) == [1]


@pytest.mark.parametrize(
    "label",
    [str(10**30).encode(), b"9" * 5000, b"[" * 100_000, json.dumps({"label": 10**400}).encode(), b"\xff\xfe", b""],
)
def test_labels_that_are_none_leave_the_shard_unlabelled(tmp_path: Path, label: bytes) -> None:
    path = tar(tmp_path / "s.tar", {"1.png": encoded(1), "1.json": label})
    with pytest.warns(DataWarning, match="cannot be read as labels|no classes"):
        source = open_source(path)
    assert (shades(source), source.labels) == ([1], None)


@pytest.mark.parametrize("pattern", ["{0..9999999999}.tar", "{0..99999999}-*.tar"])
def test_a_pattern_of_more_files_than_there_are_ends_at_the_first_that_is_missing(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InputError, match=r"there is no .*0\.tar|no file fits .*0-\*\.tar"):
        open_source(str(tmp_path / pattern))


# --- labels of any type ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "numbers", "classes"),
    [
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        ([b"b", "a", None], [1, 0, -1], ("a", "b")),
        ([2.0, float("nan"), 0.0], [2, -1, 0], None),
        ([True, False, True], [1, 0, 1], None),
        ([3, "x", ""], [0, 1, -1], ("3", "x")),
        (np.array(["dog", "cat"]), [1, 0], ("cat", "dog")),
        (np.array([5, 7], np.uint64), [5, 7], None),
    ],
)
def test_labels_become_class_numbers(values: Any, numbers: list[int], classes: tuple[str, ...] | None) -> None:
    labels = read_labels(values)
    assert labels.numbers is not None
    assert (labels.numbers.tolist(), labels.classes) == (numbers, classes)
    assert bool(labels.left_out) == (-1 in numbers)


@pytest.mark.parametrize(
    "values", [[0.5, 1.0], [2**70, 1], [[1], [2]], np.zeros((3, 2)), np.array([2**63], np.uint64), [float("inf")]]
)
def test_labels_that_are_no_classes_are_named(values: Any) -> None:
    labels = read_labels(values)
    assert labels.numbers is None
    assert "no classes" in labels.left_out[0]


def test_labels_of_any_type_do_not_stop_pretraining_and_text_can_be_scored(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (8, 6, 6), dtype=np.uint8)
    text = ["dog", "cat"] * 4
    np.savez(tmp_path / "text.npz", x=x, y=np.array(text))
    np.savez(tmp_path / "objects.npz", x=x, y=np.array(text, object))
    np.savez(tmp_path / "targets.npz", x=x, y=np.linspace(0, 1, 8))
    splits = split_data(str(tmp_path / "text.npz"), channels=1, held_out=0.5, seed=0)
    assert splits.train.source.classes == ("cat", "dog")
    assert splits.train.labels.tolist() == [1 - i % 2 for i in splits.train.indices]
    for name, told in (("objects", r"y \(Python objects\)"), ("targets", "no classes")):
        with pytest.warns(DataWarning, match=told):
            assert open_source(tmp_path / f"{name}.npz").labels is None


def test_text_labels_of_tables_and_shards_are_classes(tmp_path: Path) -> None:
    table = pa.table({"id": [b"x", b"y"], "image": [encoded(1), encoded(2)], "label": ["dog", "cat"]})
    pq.write_table(table, tmp_path / "t.parquet")
    shard = tar(tmp_path / "s.tar", {"1.png": encoded(1), "1.cls": b"dog\n", "2.png": encoded(2), "2.cls": b"cat"})
    for file in (tmp_path / "t.parquet", shard):
        source = open_source(file)
        assert source.labels is not None
        assert (shades(source), source.labels.tolist(), source.classes) == ([1, 2], [1, 0], ("cat", "dog"))


@pytest.mark.parametrize("suffix", ["arrow", "feather"])
def test_arrow_files_in_the_file_format_are_read(tmp_path: Path, suffix: str) -> None:
    table = pa.table({"image": [encoded(i) for i in range(5)]})
    with pa.OSFile(str(tmp_path / f"t.{suffix}"), "wb") as out, pa.ipc.new_file(out, table.schema) as file:
        file.write_table(table, max_chunksize=2)
    assert shades(open_source(tmp_path / f"t.{suffix}")) == list(range(5))


def test_features_beside_the_tables_of_a_data_set_are_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [encoded(3)], "label": [0]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"key": ["x"], "features": [[1.0]]}), tmp_path / "a.parquet")
    with pytest.warns(DataWarning, match=r"tables without images.*\(a\.parquet\)"):
        assert shades(open_source(tmp_path)) == [3]
