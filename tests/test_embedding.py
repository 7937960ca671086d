"""Features written are the features computed, under their samples' names; the nearest image is the nearest."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from barlow.embedding import embed, embed_table, read_features, search
from barlow.errors import InputError
from barlow.evaluation import Features
from barlow.models import Encoder, Preprocess, build_encoder, load_encoder, save_encoder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with an encoder file whose weights nobody trained."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet10-narrow", channels=3, image_size=16)
    save_encoder(encoder, Preprocess(16, 3, (0.5,) * 3, (0.25,) * 3), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images in two class folders; one more is not an image."""
    rng = np.random.default_rng(0)
    for i in range(12):
        file = tmp_path / "photos" / ("cats" if i % 2 else "dogs") / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
    (tmp_path / "photos" / "cats" / "13.png").write_bytes(b"not an image")
    return tmp_path / "photos"


def direct(encoder: Encoder, file: Path) -> np.ndarray:
    assert encoder.preprocess is not None
    with torch.no_grad():
        return np.asarray(encoder(encoder.preprocess.image(file))[0].numpy())


def test_features_are_the_encoders_under_the_samples_names(run: Path, photos: Path) -> None:
    table, encoder = embed_table(run, photos), load_encoder(run)
    assert len(table.keys) == len(table.features) == 12  # the corrupt one is left out
    for key, row in zip(table.keys, table.features.x, strict=True):
        np.testing.assert_allclose(row, direct(encoder, photos / key), rtol=1e-4, atol=1e-5)
    labels = table.features.labels
    assert [table.classes[label] for label in labels] == [key.split("/")[0] for key in table.keys]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_files_read_back_as_written(suffix: str, run: Path, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "made" / f"features{suffix}"
    features = embed(run, photos, out=file)
    table = read_features(file)
    np.testing.assert_array_equal(table.features.x, features.x)
    np.testing.assert_array_equal(table.features.labels, features.labels)
    np.testing.assert_array_equal(table.features.ids, features.ids)
    assert (table.keys, table.classes) == (embed_table(run, photos).keys, ("cats", "dogs"))
    assert table.encoder == load_encoder(run).facts["sha256"]
    np.testing.assert_array_equal(Features.load(file).x, features.x)  # also for evaluation, which reads no names


def test_parquet_opens_as_a_plain_table(run: Path, photos: Path, tmp_path: Path) -> None:
    embed(run, photos, out=tmp_path / "features.parquet")
    table = pq.read_table(tmp_path / "features.parquet")
    assert table.column_names == ["key", "id", "features", "label"]
    assert len(table["features"][0]) == 256


def test_an_image_finds_itself_and_its_altered_copy_first(run: Path, photos: Path, tmp_path: Path) -> None:
    original = photos / "dogs" / "04.png"
    brighter = np.clip(np.asarray(Image.open(original)).astype(int) + 6, 0, 255).astype(np.uint8)
    Image.fromarray(brighter).save(photos / "cats" / "brighter.png")
    query = tmp_path / "query"
    query.mkdir()
    Image.open(original).save(query / "q.png")
    (found,) = search(run, query, photos, k=3)
    assert [match.key for match in found[:2]] == ["dogs/04.png", "cats/brighter.png"]
    assert found[0].similarity == pytest.approx(1, abs=1e-5)
    assert found[0].label == "dogs"
    assert found[0].similarity > found[1].similarity > found[2].similarity


def test_one_image_file_is_a_query(run: Path, photos: Path) -> None:
    (found,) = search(run, photos / "cats" / "03.png", photos, k=1)
    assert found[0].key == "cats/03.png"


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_search_in_a_feature_file_equals_search_in_the_data(
    suffix: str, run: Path, photos: Path, tmp_path: Path
) -> None:
    embed(run, photos, out=tmp_path / f"features{suffix}")
    query = photos / "cats" / "03.png"
    assert search(run, query, tmp_path / f"features{suffix}") == search(run, query, photos)


def test_a_feature_file_of_other_weights_is_refused(run: Path, photos: Path, tmp_path: Path) -> None:
    embed(run, photos, out=tmp_path / "features.npz")
    torch.manual_seed(1)
    other = build_encoder("resnet10-narrow", channels=3, image_size=16)
    save_encoder(other, Preprocess(16, 3, (0.5,) * 3, (0.25,) * 3), tmp_path / "other")
    with pytest.raises(InputError, match="written with another encoder"):
        search(tmp_path / "other", photos / "cats" / "03.png", tmp_path / "features.npz")


def test_a_data_set_in_an_npz_is_data_not_features(run: Path, photos: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=images)
    (found,) = search(run, photos / "cats" / "03.png", tmp_path / "data.npz", k=9)
    assert sorted(match.id for match in found) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", None, r"written to \.npz or \.parquet"),
        ("x.npz", b"no zip", "does not hold features"),
        ("x.parquet", b"no parquet", "does not hold features"),
        ("missing.npz", None, "no feature file"),
    ],
)
def test_a_file_that_holds_no_features_is_one_clear_line(
    name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    if content is not None or name == "x.csv":
        (tmp_path / name).write_bytes(content or b"")
    with pytest.raises(InputError, match=words):
        read_features(tmp_path / name)


def test_a_wrong_suffix_is_refused_before_anything_is_computed(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"written to \.npz or \.parquet"):
        embed(run, tmp_path / "no such data", out=tmp_path / "x.txt")


def test_features_without_names_are_told_from_broken_ones(tmp_path: Path) -> None:
    Features(np.ones((2, 3), np.float32), None, np.arange(2)).save(tmp_path / "x.npz")
    with pytest.raises(InputError, match="features without names"):
        read_features(tmp_path / "x.npz")
