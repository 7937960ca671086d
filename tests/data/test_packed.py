"""Tar shards, Parquet and Arrow: the same samples as the files they were made from."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from barlow.data import CorruptSample, Loader, open_source
from barlow.data.packed import Index, read_or_build
from barlow.data.source import DataWarning
from barlow.errors import InputError


def png(shade: int, side: int = 4) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side), shade).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shards(folder: Path, count: int, each: int, *, prefix: str = "") -> None:
    for shard in range(count):
        members: dict[str, bytes] = {}
        for i in range(each):
            number = shard * each + i
            members[f"{number:06d}.png"] = png(number)
            members[f"{number:06d}.cls"] = str(number % 3).encode()
        tar(folder / f"{prefix}{shard:03d}.tar", members)


def shades(source: Any) -> list[int]:
    return [int(source.read(i)[0, 0, 0]) for i in range(len(source))]


def labels(source: Any) -> list[int]:
    return [int(label) for label in source.labels]


@pytest.mark.parametrize("pattern", ["{000..003}.tar", "00{0,1,2,3}.tar", "*.tar", "00[0-3].tar", ""])
def test_shards_are_named_by_braces_globs_or_their_folder(tmp_path: Path, pattern: str) -> None:
    shards(tmp_path, 4, 5)
    source = open_source(str(tmp_path / pattern))
    assert shades(source) == list(range(20))
    assert labels(source) == [i % 3 for i in range(20)]
    assert source.keys[7] == "001.tar/000007"
    assert source.groups is not None
    assert source.groups.tolist() == [i // 5 for i in range(20)]


def test_the_index_is_stored_beside_the_shards_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path, 2, 3)
    first = open_source(tmp_path)
    assert len(list(tmp_path.glob(".barlow-index-*.npz"))) == 1
    monkeypatch.setattr(tarfile, "open", None)  # headers are not read again
    again = open_source(tmp_path)
    assert (shades(again), labels(again), list(again.keys)) == (shades(first), labels(first), list(first.keys))


def test_a_damaged_or_outdated_index_is_built_again(tmp_path: Path) -> None:
    shards(tmp_path, 2, 3)
    open_source(tmp_path)
    index = next(tmp_path.glob(".barlow-index-*.npz"))
    for damaged in (b"junk", b"", index.read_bytes()[:300]):
        index.write_bytes(damaged)
        assert shades(open_source(tmp_path)) == list(range(6))
    shards(tmp_path, 2, 4)
    assert shades(open_source(tmp_path)) == list(range(8))


def test_an_index_goes_to_the_next_place_where_the_first_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    places = (tmp_path / "file" / "i.npz", tmp_path / "cache" / "i.npz")
    one = np.ones(1, np.int64)
    built = [read_or_build(places, lambda: Index(["a"], one, one, one, classes=("x",))) for _ in range(2)]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["i.npz"]
    assert list(built[1].keys) == list(built[0].keys) == ["a"]
    assert built[1].classes == ("x",)


def test_json_labels_and_foreign_members(tmp_path: Path) -> None:
    members = {
        "a/x.jpg.txt": b"caption",
        "a/x.png": png(1),
        "a/x.json": json.dumps({"label": 4}).encode(),
        "a/x.seg.png": png(99),
        "._a.png": b"",
        "b/y.json": json.dumps({"label": 2}).encode(),
        "b/y.png": png(2),
    }
    kinds = r"\.txt \(1\), further images of a sample \(1\), hidden images \(1\)$"
    with pytest.warns(DataWarning, match=kinds):
        source = open_source(tar(tmp_path / "s.tar", members))
    assert (shades(source), labels(source)) == ([1, 2], [4, 2])
    assert list(source.keys) == ["s.tar/a/x", "s.tar/b/y"]


def test_names_with_several_dots_are_samples_where_no_other_image_is(tmp_path: Path) -> None:
    members = {
        "IMG.2020.01.PNG": png(1),
        "IMG.2020.01.cls": b"5",
        "IMG.2020.02.PNG": png(2),
        "IMG.2020.02.cls": b"6",
        "x.left.png": png(3),
        "x.cls": b"7",
        "y.png": png(4),
        "y.mask.png": png(5),
        "y.cls": b"8",
        "z.": b"",
        "z": b"",
    }
    with pytest.warns(DataWarning, match="further images of a sample"):
        source = open_source(tar(tmp_path / "s.tar", members))
    assert list(source.keys) == [f"s.tar/{key}" for key in ("IMG.2020.01", "IMG.2020.02", "x.left", "y")]
    assert (shades(source), labels(source)) == ([1, 2, 3, 4], [5, 6, 7, 8])


def test_a_sample_without_a_label_leaves_the_others_theirs(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {"1.png": png(1), "1.cls": b"0", "2.png": png(2)})
    for _ in range(2):  # the stored index tells it too
        with pytest.warns(DataWarning, match="1 of 2 samples have none"):
            assert labels(open_source(path)) == [0, -1]


def test_shards_in_split_folders(tmp_path: Path) -> None:
    shards(tmp_path / "train", 2, 2)
    shards(tmp_path / "test", 1, 3)
    assert len(open_source(tmp_path)) == 4
    assert len(open_source(tmp_path, split="test")) == 3


def test_a_corrupt_member_is_named_with_its_shard(tmp_path: Path) -> None:
    source = open_source(tar(tmp_path / "s.tar", {"1.png": png(1), "2.png": b"text"}))
    with pytest.raises(CorruptSample, match=r"s\.tar/2: not an image"):
        source.read(1)


def test_a_shard_cut_off_after_indexing_is_a_corrupt_sample(tmp_path: Path) -> None:
    shards(tmp_path, 1, 3)
    source = open_source(tmp_path)
    path = tmp_path / "000.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(CorruptSample, match="its shard ends after"):
        source.read(2)


@pytest.mark.parametrize("cut", [700, 100])
def test_a_shard_that_is_cut_off_gets_one_line_with_its_name(tmp_path: Path, cut: int) -> None:
    shards(tmp_path, 2, 3)
    path = tmp_path / "001.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"001\.tar: is not a whole, uncompressed tar file"):
        open_source(tmp_path)


def test_missing_shards_and_empty_ones_get_one_line(tmp_path: Path) -> None:
    shards(tmp_path, 2, 2)
    with pytest.raises(InputError, match=r"there is no .*002\.tar"):
        open_source(str(tmp_path / "{000..002}.tar"))
    with pytest.raises(InputError, match="no file fits"):
        open_source(str(tmp_path / "*.tgz"))
    with pytest.raises(InputError, match="hold no images"):
        open_source(tar(tmp_path / "other" / "e.tar", {"a.txt": b"x"}))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_loading_shards_reads_every_sample_once_per_epoch_in_any_world(tmp_path: Path, world_size: int) -> None:
    shards(tmp_path, 6, 4)
    source = open_source(tmp_path)
    ranks = [Loader(source, np.arange(24), 6 // world_size, rank=r, world_size=world_size) for r in range(world_size)]
    assert sorted(int(i) for loader in ranks for batch in loader.epoch(1) for i in batch.ids) == list(range(24))


# --- Parquet and Arrow -------------------------------------------------------------------------------------------


FEATURES = {
    "info": {
        "features": {
            "thumbnail": {"dtype": "binary", "_type": "Value"},
            "img": {"_type": "Image"},
            "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
        }
    }
}


def table(first: int, count: int) -> pa.Table:
    rows = range(first, first + count)
    return pa.table(
        {
            "thumbnail": [b"no image"] * count,
            "img": [{"bytes": png(i), "path": f"{i}.png"} for i in rows],
            "label": [i % 2 for i in rows],
        }
    ).replace_schema_metadata({"huggingface": json.dumps(FEATURES)})


def write_hub_folder(folder: Path) -> None:
    (folder / "data").mkdir()
    for part in range(2):
        pq.write_table(table(part * 5, 5), folder / "data" / f"train-{part:05d}-of-00002.parquet", row_group_size=2)
    pq.write_table(table(50, 3), folder / "data" / "test-00000-of-00001.parquet")


def test_a_hub_folder_opens_by_split_with_class_names(tmp_path: Path) -> None:
    write_hub_folder(tmp_path)
    train, test = open_source(tmp_path), open_source(tmp_path, split="test")
    assert (shades(train), shades(test)) == (list(range(10)), [50, 51, 52])
    assert labels(train) == [i % 2 for i in range(10)]
    assert train.classes == ("cat", "dog")
    assert train.split_names == ("test", "train")


def test_parquet_is_unpacked_once(tmp_path: Path, own_caches: Path) -> None:
    write_hub_folder(tmp_path)
    open_source(tmp_path)
    (blob,) = own_caches.glob("unpacked/*.bin")
    before = blob.stat().st_mtime_ns
    assert shades(open_source(tmp_path)) == list(range(10))
    assert blob.stat().st_mtime_ns == before


def test_saved_arrow_datasets_open_by_their_split_folders(tmp_path: Path) -> None:
    files = ("train/data-00000-of-00001", "train/cache-0a1b", "test/data-00000-of-00001")  # one is of a `map`
    for name, first in zip(files, (0, 10, 20), strict=True):
        path = tmp_path / f"{name}.arrow"
        path.parent.mkdir(exist_ok=True)
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table(first, 4).schema) as stream:
            stream.write_table(table(first, 4), max_chunksize=3)
    with pytest.warns(DataWarning, match=r"of a cache: 1 \(cache-0a1b\.arrow\)"):
        assert shades(open_source(tmp_path)) == [0, 1, 2, 3]
    assert shades(open_source(tmp_path, split="test")) == [20, 21, 22, 23]


def test_a_plain_binary_column_is_enough(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "jpg": [png(8), png(9)]}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert (shades(source), source.labels) == ([8, 9], None)


def test_rows_without_bytes_are_corrupt_samples(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([png(8), None], pa.large_binary())}), tmp_path / "x.parquet")
    with pytest.raises(CorruptSample, match="row 1: empty file"):
        open_source(tmp_path / "x.parquet").read(1)


def test_tables_without_images_and_broken_ones_get_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no column holds image bytes; it has a, b"):
        open_source(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"PAR1 junk")
    with pytest.raises(InputError, match="cannot be read"):
        open_source(tmp_path / "y.parquet")
