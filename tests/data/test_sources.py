"""What each kind of data opens as: keys, labels, splits, values; and one clear line for what does not open."""

import gzip
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image

from barlow.data import CorruptSample, open_source
from barlow.data.source import DataWarning, Names
from barlow.errors import InputError
from barlow.evaluation.evaluate import split_data


def write(path: Path, shade: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode in ("L", "P") else (shade,) * len(mode)).save(path)
    return path


def shades(source: Any) -> list[int]:
    return [int(source.read(i)[0, 0, 0]) for i in range(len(source))]


# --- folders -----------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_recursively_in_sorted_order_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    for i, name in enumerate(["b/z.png", "b/a.PNG", "a/deep/er/x.bmp", "top.webp", "c.gif", "d.tiff"]):
        write(tmp_path / name, i)
    write(tmp_path / ".hidden.png")
    write(tmp_path / ".cache" / "x.png")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.warns(DataWarning, match=r"left out: \.cache/ \(1\), \.txt \(1\), hidden images \(1\)$"):
        source = open_source(tmp_path)
    assert list(source.keys) == ["a/deep/er/x.bmp", "b/a.PNG", "b/z.png", "c.gif", "d.tiff", "top.webp"]
    assert source.labels is None
    assert [shades(source)[i] for i in (0, 1, 2, 4)] == [2, 1, 0, 5]


def test_class_subfolders_give_labels_in_name_order(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/1.png", "cat/2.png"):
        write(tmp_path / name)
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("extra", ["top.png", "cat/deeper/x.png"])
def test_an_image_outside_the_class_folders_has_no_label_and_is_named(tmp_path: Path, extra: str) -> None:
    for name in ("dog/1.png", "cat/1.png", extra):
        write(tmp_path / name)
    with pytest.warns(DataWarning, match=rf"labels of images outside the class folders: 1 \({extra}\)"):
        source = open_source(tmp_path)
    assert source.labels is not None
    assert {key: int(label) for key, label in zip(source.keys, source.labels, strict=True)} == {
        "cat/1.png": 0,
        "dog/1.png": 1,
        extra: -1,
    }


def test_folders_that_hold_the_smaller_part_of_the_images_are_no_classes(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/1.png", "1.png", "2.png"):
        write(tmp_path / name)
    source = open_source(tmp_path)
    assert (source.labels, source.note) == (None, "no labels: 2 of 4 images lie outside the 2 subfolders")


def test_one_subfolder_is_no_classification(tmp_path: Path) -> None:
    write(tmp_path / "all" / "1.png")
    assert open_source(tmp_path).classes is None


def test_symlink_loops_end_and_linked_files_count(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    elsewhere = write(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "2.png")
    (tmp_path / "linked").symlink_to(elsewhere.parent)
    with pytest.warns(DataWarning, match=r"files without a suffix \(1\)"):  # the link to itself
        assert list(open_source(tmp_path).keys) == ["a/1.png", "linked/2.png"]


def test_a_dangling_link_is_an_unreadable_sample_not_a_missing_one(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    source = open_source(tmp_path)
    with pytest.raises(CorruptSample, match=r"2\.png: No such file"):
        source.read(1)


def test_train_and_test_subfolders_are_splits_and_train_is_the_default(tmp_path: Path) -> None:
    for i, name in enumerate(["train/a/1.png", "train/b/1.png", "test/a/1.png", "val/c.png"]):
        write(tmp_path / name, i)
    source = open_source(tmp_path)
    assert list(source.keys) == ["a/1.png", "b/1.png"]
    assert source.split_names == ("train", "val", "test")
    assert source.note == "split 'train' of train, val, test; labels from 2 subfolders"
    assert shades(open_source(tmp_path, split="test")) == [2]
    with pytest.raises(InputError, match="no split 'dev'; it has train, val, test"):
        open_source(tmp_path, split="dev")


def test_mixed_modes_and_sizes_come_to_one_form(tmp_path: Path) -> None:
    write(tmp_path / "gray.png", 10, (5, 6), "L")
    write(tmp_path / "colour.png", 20, (7, 8), "RGB")
    write(tmp_path / "alpha.png", 255, (9, 9), "RGBA")
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "deep.png")
    source = open_source(tmp_path)
    assert (source.channels, source.dtype) == (3, torch.float32)
    assert [tuple(source.read(i).shape) for i in range(4)] == [(3, 9, 9), (3, 8, 7), (3, 4, 4), (3, 6, 5)]
    assert [round(float(source.read(i).max()) * 255) for i in range(4)] == [255, 20, 255, 10]


def test_most_samples_decide_the_form_and_the_note_names_the_odd_one(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / f"{i:02}.png", i)
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((5, 8, 8), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "deep.tif", np.full((8, 8, 3), 65535, np.uint16), photometric="rgb")
    source = open_source(tmp_path)
    assert (source.channels, source.dtype) == (3, torch.uint8)
    assert source.note == (
        "2 of 22 samples looked at are unlike the rest: deep.tif (more than 8 bits, read as 8-bit), "
        "scan.tif (5 channels, left out)"
    )
    assert int(source.read(20).min()) == 255
    with pytest.raises(CorruptSample, match="has 5 channels where the data set has 3"):
        source.read(21)


def test_an_rgb_image_among_four_bands_is_not_given_a_fourth(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 4), dtype=np.uint8)
    for i in range(5):
        tifffile.imwrite(tmp_path / f"{i}.tif", bands[i], photometric="rgb", extrasamples=["unspecified"])
    write(tmp_path / "x.png")
    for channels in (None, 4):
        source = open_source(tmp_path, channels=channels)
        assert source.channels == 4
        np.testing.assert_array_equal(source.read(3).numpy(), bands[3].transpose(2, 0, 1))
        with pytest.raises(CorruptSample, match="has 3 channels where the data set has 4"):
            source.read(5)


@pytest.mark.parametrize(("colour", "channels"), [(1, 1), (2, 3), (19, 3)])
def test_gray_and_colour_are_one_form_of_which_a_tenth_decides(tmp_path: Path, colour: int, channels: int) -> None:
    for i in range(20):
        write(tmp_path / f"{i:02}.png", i, mode="RGB" if i < colour else "L")
    source = open_source(tmp_path)
    assert source.channels == channels
    assert shades(source) == list(range(20))
    assert ("00.png (colour, read as gray)" in source.note) == (channels == 1)


def test_channels_can_be_set_by_hand(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "1.png")
    assert set(open_source(tmp_path, channels=1).read(0).flatten().tolist()) == {76}  # 0.299 * 255
    assert open_source(tmp_path, channels=4).read(0)[:, 0, 0].tolist() == [255, 0, 0, 255]


def test_a_corrupt_file_among_good_ones_does_not_stop_the_opening(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    (tmp_path / "0.png").write_bytes(b"")
    source = open_source(tmp_path)
    with pytest.raises(CorruptSample, match=r"0\.png: empty file"):
        source.read(0)


def test_content_hashes_tell_equal_bytes_from_different_ones(tmp_path: Path) -> None:
    for name, shade in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        write(tmp_path / name, shade)
    hashes = [open_source(tmp_path).content_hash(i) for i in range(3)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_changed_file_changes_the_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "1.png", 1)
    before = open_source(tmp_path).fingerprint()
    assert open_source(tmp_path).fingerprint() == before
    os.utime(path, (0, 0))
    assert open_source(tmp_path).fingerprint() != before


def test_names_are_kept_as_they_are_whatever_their_characters() -> None:
    given = ["a/b.png", "", "日本/é.jpg", os.fsdecode(b"latin-\xe9.png"), "line\nbreak"]
    names = pickle.loads(pickle.dumps(Names(given)))  # noqa: S301  our own bytes
    assert list(names) == given
    assert (names[-1], names[np.int64(2)], names[1:3], len(names)) == (given[-1], given[2], given[1:3], 5)
    with pytest.raises(IndexError):
        names[5]


# --- arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind", "read"),
    [
        ((5, 8, 8), "image", (1, 8, 8)),
        ((5, 3, 8, 9), "image", (3, 8, 9)),
        ((5, 8, 9, 3), "image", (3, 8, 9)),
        ((5, 12, 40, 41), "image", (12, 40, 41)),
        ((5, 40, 41, 12), "image", (12, 40, 41)),
        ((5, 11, 11, 30), "image", (30, 11, 11)),
        ((5, 30, 11, 11), "image", (30, 11, 11)),
        ((5, 9, 9, 200), "image", (200, 9, 9)),
        ((5, 32, 32, 50), "image", (50, 32, 32)),
        ((5, 3, 20, 90), "image", (3, 20, 90)),
    ],
)
def test_image_arrays_find_their_layout(shape: tuple[int, ...], kind: str, read: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    source = open_source(array)
    assert source.kind == kind
    assert tuple(source.read(2).shape) == read
    expected = (
        array[2] if array[2].shape == read else array[2].transpose(2, 0, 1) if array.ndim == 4 else array[2][None]
    )
    np.testing.assert_array_equal(source.read(2).numpy(), expected)


def test_the_layout_that_was_inferred_is_noted_and_channels_decide_it(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((12, 11, 11, 30), np.float32)
    assert open_source(array).note == "array [12, 11, 11, 30] read as [N, H, W, C]"
    assert open_source(array[..., :3]).note == ""
    assert open_source(array, channels=11).read(0).shape == (11, 11, 30)
    for i in range(12):
        np.save(tmp_path / f"{i:02}.npy", array[i])
    folder = open_source(tmp_path)
    assert folder.note == "arrays [11, 11, 30] read as [H, W, C]"
    np.testing.assert_array_equal(folder.read(7).numpy(), array[7].transpose(2, 0, 1))
    cube = np.zeros((2, 8, 8, 8), np.uint8)
    assert open_source(cube, channels=8).read(0).shape == (8, 8, 8)
    np.save(tmp_path / "00.npy", cube[0])
    with pytest.raises(CorruptSample, match=r"\[8, 8, 8\] that may be .* --channels 8$"):
        open_source(tmp_path).read(0)


@pytest.mark.parametrize("kind", [None, "signal"])
def test_signals_are_read_with_their_channels_first_or_last(kind: Any) -> None:
    signals = np.random.default_rng(0).random((4, 12, 100), np.float32)
    first, last = open_source(signals, kind=kind), open_source(signals.transpose(0, 2, 1), kind=kind)
    assert (last.kind, last.channels, last.note) == ("signal", 12, "array [4, 100, 12] read as [N, T, C]")
    assert torch.equal(first.read(3), last.read(3))
    assert open_source(signals, kind="signal", channels=100).read(0).shape == (100, 12)


def test_signals_and_tables_are_told_from_images() -> None:
    assert open_source(np.zeros((4, 2, 100), np.float32)).kind == "signal"
    assert open_source(np.zeros((4, 28, 28), np.float32)).kind == "image"
    assert open_source(np.zeros((4, 28, 28), np.float32), kind="signal").channels == 28
    assert open_source(np.zeros((4, 2, 100), np.float32), kind="image").channels == 1
    table = open_source(np.arange(12).reshape(4, 3))
    assert (table.kind, table.channels, table.read(1).tolist()) == ("table", 3, [3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 65535], np.uint16), [0.0, 1.0]),
        (np.array([0, 65535], ">u2"), [0.0, 1.0]),
        (np.array([-2.5, 7.0], ">f4"), [-2.5, 7.0]),
        (np.array([0, 255], np.int64), [0, 255]),
        (np.array([0, 65535], np.int32), [0.0, 1.0]),
        (np.array([False, True]), [0, 255]),
        (np.array([-2.5, 7.0], np.float64), [-2.5, 7.0]),
    ],
)
def test_dtypes_of_image_arrays(values: npt.NDArray[Any], expected: list[float]) -> None:
    source = open_source(np.broadcast_to(values[:, None, None], (2, 4, 4)))
    assert [source.read(i)[0, 1, 1].item() for i in range(2)] == expected


def test_tensors_open_like_arrays() -> None:
    tensor = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    assert torch.equal(open_source(tensor).read(1), tensor[1])


def test_bfloat16_tensors_open_as_floats() -> None:
    assert open_source(torch.full((2, 4, 4), -1.5, dtype=torch.bfloat16)).read(0)[0, 0, 0].item() == -1.5


def test_a_large_npy_stays_on_disk_and_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (6, 5, 4, 3)).astype(np.uint16)
    np.save(tmp_path / "x.npy", array)
    whole = open_source(tmp_path / "x.npy")
    monkeypatch.setattr("barlow.data.arrays.available_memory", lambda: 100)
    mapped = open_source(tmp_path / "x.npy")
    assert isinstance(mapped.array, np.memmap)  # type: ignore[attr-defined]
    for i in range(6):
        assert torch.equal(whole.read(i), mapped.read(i))


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("images", "labels"), ("arr_0", "targets"), ("pictures", "label")])
def test_npz_members_are_found_by_their_usual_names(tmp_path: Path, x: str, y: str) -> None:
    np.savez(tmp_path / "d.npz", **{x: np.zeros((3, 4, 4), np.uint8), y: np.array([2, 0, 1])})  # type: ignore[arg-type]
    source = open_source(tmp_path / "d.npz")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0, 1]


def test_npz_with_split_names_has_splits(tmp_path: Path) -> None:
    members = {
        "train_images": np.full((3, 4, 4), 7, np.uint8),
        "train_labels": np.array([[0], [1], [1]]),
        "test_images": np.full((2, 4, 4), 9, np.uint8),
        "test_labels": np.array([[1], [0]]),
    }
    np.savez(tmp_path / "d.npz", **members)  # type: ignore[arg-type]
    train, test = open_source(tmp_path / "d.npz"), open_source(tmp_path / "d.npz", split="test")
    assert (shades(train), shades(test)) == ([7, 7, 7], [9, 9])
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 1]
    assert train.split_names == ("train", "test")
    assert train.fingerprint() != test.fingerprint()  # what is kept of the one is not taken for the other's


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_stack_holds_one_sample_per_page(tmp_path: Path, dtype: Any) -> None:
    pages = np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(dtype)
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    source = open_source(tmp_path / "stack.tif")
    scale = 65535 if dtype == np.uint16 else 1
    assert len(source) == 5
    np.testing.assert_allclose(source.read(3)[0].numpy(), pages[3].astype(np.float64) / scale, rtol=1e-6)


# --- IDX ---------------------------------------------------------------------------------------------------------


def idx(array: npt.NDArray[Any]) -> bytes:
    code = {np.dtype(np.uint8): 8, np.dtype(np.float32): 0x0D}[array.dtype]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folders_open_by_split_with_labels(tmp_path: Path, zipped: bool) -> None:
    def put(name: str, array: npt.NDArray[Any]) -> None:
        data = idx(array)
        (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)

    train = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    put("train-images-idx3-ubyte", train)
    put("train-labels-idx1-ubyte", np.array([0, 1, 2, 0, 1, 2], np.uint8))
    put("t10k-images-idx3-ubyte", train[:2])
    put("t10k-labels-idx1-ubyte", np.array([2, 2], np.uint8))
    source, test = open_source(tmp_path), open_source(tmp_path, split="test")
    np.testing.assert_array_equal(source.read(4)[0].numpy(), train[4])
    assert source.labels is not None
    assert test.labels is not None
    assert (source.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 0, 1, 2], [2, 2])


def test_idx_floats_are_read_big_endian(tmp_path: Path) -> None:
    array = np.linspace(-1, 1, 3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4)
    (tmp_path / "x.idx").write_bytes(idx(array))
    np.testing.assert_array_equal(open_source(tmp_path / "x.idx").read(2)[0].numpy(), array[2])


# --- names -------------------------------------------------------------------------------------------------------


def test_digits_are_embedded_and_scaled_to_eight_bits() -> None:
    from sklearn.datasets import load_digits

    source = open_source("digits", split="all")
    reference = load_digits().images
    assert (len(source), source.channels, source.dtype, source.kind) == (1797, 1, torch.uint8, "image")
    for i in (0, 700, 1796):
        np.testing.assert_array_equal(source.read(i)[0].numpy(), np.rint(reference[i] * 255 / 16))
    assert source.classes == tuple("0123456789")


def test_the_digits_splits_are_stratified_and_share_no_image() -> None:
    train, test = open_source("digits"), open_source("digits", split="test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.labels is not None and test.labels is not None
    whole = np.bincount(train.labels) + np.bincount(test.labels)
    assert np.abs(np.bincount(test.labels) - 0.2 * whole).max() <= 0.5
    assert not {train.content_hash(i) for i in range(1438)} & {test.content_hash(i) for i in range(359)}


@pytest.mark.parametrize(("name", "shape"), [("iris", (150, 4)), ("wine", (178, 13)), ("breast-cancer", (569, 30))])
def test_embedded_tables(name: str, shape: tuple[int, int]) -> None:
    source = open_source(name)
    assert (source.kind, len(source), source.channels) == ("table", *shape)
    assert source.labels is not None


def test_fashion_mnist_is_read_from_the_data_folder(own_caches: Path) -> None:
    raw = own_caches / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.array([3, 1, 4, 1], np.uint8)))
    source = open_source("fashion-mnist", split="test")
    np.testing.assert_array_equal(source.read(2)[0].numpy(), images[2])
    assert source.labels is not None
    assert source.labels.tolist() == [3, 1, 4, 1]
    assert source.split_names == ("train", "test")


def test_stl10_has_an_unlabelled_split(own_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    root = own_caches / "stl10_binary"
    root.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    (root / "unlabeled_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())  # stored column by column
    (root / "class_names.txt").write_text("airplane\nbird\n")
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    source = open_source("stl10", split="unlabeled")
    np.testing.assert_array_equal(source.read(1).numpy(), images[1])
    assert source.labels is None


def test_file_based_names_keep_their_labels(own_caches: Path) -> None:
    root = own_caches / "eurosat" / "2750"
    for i, name in enumerate(["Forest/1.jpg", "River/1.jpg", "River/2.jpg"]):
        write(root / name, 40 * i, (64, 64))
    source = open_source("eurosat")
    assert list(source.keys) == ["Forest/1.jpg", "River/1.jpg", "River/2.jpg"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 1]
    assert source.classes == ("Forest", "River")


def test_the_split_that_papers_fit_on_is_joined_where_torchvision_has_two(own_caches: Path) -> None:
    root = own_caches / "dtd" / "dtd"
    (root / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{number}.jpg" for kind in ("banded", "woven")]
        (root / "labels" / f"{split}1.txt").write_text("\n".join(names))
        for shade, name in enumerate(names):
            write(root / "images" / name, 80 * shade, (40, 30))
    source = open_source("dtd", split="trainval")
    assert list(source.keys) == ["banded/banded_0.jpg", "woven/woven_0.jpg", "banded/banded_1.jpg", "woven/woven_1.jpg"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert list(open_source("dtd").keys) == list(source.keys)[:2]
    words = split_data("dtd", channels=3, held_out=0.2, seed=0).words
    assert words == "the data's own: fitted on trainval, scored on test"


# --- mistakes ----------------------------------------------------------------------------------------------------


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def lzw(path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(path, compression="tiff_lzw")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "cifr10", "Did you mean 'cifar10'"),
        (lambda p: "cifar10", "BARLOW_OFFLINE forbids a download"),
        (lambda p: p / "missing", "no such file or folder"),
        (lambda p: str(p / "missing.npz"), "no such file or folder"),
        (lambda p: p, "no images found"),
        (lambda p: write(p / "one.png"), "is a single image; give the folder"),
        (lambda p: write(p / "one.tif"), "is a single image; give a stack of pages"),
        (lambda p: lzw(p / "one.tif"), "is a single image; give a stack of pages"),
        (lambda p: put(p / "x.csv", b"1,2"), "not a kind of file that holds a data set"),
        (lambda p: put(p / "x.npz", b"junk"), "cannot be read as a NumPy file"),
        (lambda p: put(p / "x.npy", b""), "cannot be read as a NumPy file"),
        (lambda p: npz(p / "x.npz", y=np.arange(3)), "cannot tell the samples among the arrays y"),
        (lambda p: npz(p / "x.npz", a=np.zeros((2, 4, 4)), b=np.zeros((2, 4, 4))), "among the arrays a, b"),
        (lambda p: npz(p / "x.npz", x=np.array([{}, {}])), "holds Python objects"),
        (lambda p: npz(p / "x.npz", x=np.zeros((3, 4, 4)), y=np.arange(2)), r"3 samples but labels of shape \[2\]"),
        (lambda p: np.zeros(7), r"shape \[7\] holds no samples"),
        (lambda p: np.zeros((2, 3, 4, 5, 6)), r"shape \[2, 3, 4, 5, 6\] holds no samples"),
        (lambda p: np.zeros((0, 4, 4), np.uint8), "holds no samples"),
        (lambda p: np.zeros((2, 40, 40, 40), np.uint8), r"\[40, 40, 40\] that may be .*--channels 40"),
        (lambda p: np.zeros((2, 20, 36, 30)), r"tell which with --channels 20 or --channels 30"),
        (lambda p: np.zeros((2, 600, 9, 9)), "600 channels are more than 512"),
        (lambda p: np.zeros((60, 40, 3), np.uint8), "is a single image"),
        (lambda p: np.zeros((5, 40, 1, 3), np.uint8), "images of 1x40 pixels are too small"),
        (lambda p: np.array(["a", "b"]), "dtype <U1 holds no samples"),
        (lambda p: np.full((2, 4, 4), 70_000), "are not pixels"),
        (lambda p: np.full((2, 4, 4), np.nan), "2 of 2 samples hold NaN or infinity"),
        (lambda p: put(p / "x.idx", b"junk"), "is not an IDX file"),
        (lambda p: put(p / "x.idx", idx(np.zeros((3, 4, 4), np.uint8))[:-1]), "holds 47 bytes of data where"),
    ],
)
def test_a_mistake_gets_one_clear_line(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_source(make(tmp_path))
    assert "\n" not in str(raised.value)


def test_wrong_settings_get_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no split 'test'; it has no splits"):
        open_source("wine", split="test")
    with pytest.raises(InputError, match="no split 'validation'; it has train, test, all"):
        open_source("digits", split="validation")
    with pytest.raises(InputError, match="channels must be at least 1"):
        open_source("digits", channels=0)
    with pytest.raises(InputError, match="has 2 channels where"):
        open_source(np.zeros((2, 2, 9, 9), np.uint8), channels=3)
    with pytest.raises(InputError, match="holds no samples of kind table"):
        open_source(np.zeros((2, 4, 4)), kind="table")
    write(tmp_path / "a.png")
    put(tmp_path / "b.tar", b"")
    with pytest.raises(InputError, match="holds images and tar shards"):
        open_source(tmp_path)
