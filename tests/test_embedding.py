"""Features written are the features computed, under their samples' names; the nearest image is the nearest."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from barlow.data.arrays import ArraySource
from barlow.embedding import embed, embed_table, read_features, search
from barlow.errors import InputError
from barlow.evaluation import Features
from barlow.evaluation import features as features_module
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


PROLOGUE = """
import sys, time
import torch
import barlow.embedding
from barlow.cli import main
from barlow.data.arrays import ArraySource
from barlow.evaluation import features
torch.set_num_threads(1)
features.CHUNK_BATCHES = 2
run, data, *outs = sys.argv[1:]

def embed(out):
    main(["embed", run, data, "--out", out, "--batch-size", "10", "--device", "cpu"])
"""
SLOWLY = """
read = ArraySource.read
ArraySource.read = lambda self, i: (time.sleep(0.02), read(self, i))[1]
embed(outs[0])
"""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """200 labelled images [16, 16, 3] in an .npz."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "many.npz", x=rng.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8), y=np.arange(200) % 3)
    return tmp_path / "many.npz"


def same(a: Features, b: Features) -> bool:
    return bool((a.x == b.x).all() and (a.ids == b.ids).all() and (a.labels == b.labels).all())


@pytest.mark.slow
def test_after_a_real_kill_the_same_command_goes_on_and_gives_the_undisturbed_result(
    run: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "features.parquet"
    process = subprocess.Popen([sys.executable, "-c", PROLOGUE + SLOWLY, run, many, out])
    while len(done := list(tmp_path.glob(".features*.pieces/features-*.npz"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    read: list[int] = []
    original = ArraySource.read

    def noted(self: ArraySource, i: int) -> Tensor:
        read.append(i)
        return original(self, i)

    monkeypatch.setattr(ArraySource, "read", noted)
    monkeypatch.setattr(features_module, "CHUNK_BATCHES", 2)
    resumed = embed(run, many, out=out, batch_size=10, device="cpu")
    assert min(read) >= 20 * len(done) == 60  # nor is a fourth piece computed again, had it been finished
    assert not list(tmp_path.glob(".features*"))  # nothing is left behind
    undisturbed = embed(run, many, batch_size=10, device="cpu")
    np.testing.assert_allclose(resumed.x, undisturbed.x, rtol=1e-5, atol=1e-6)  # other threads, other roundings
    assert (resumed.ids == undisturbed.ids).all()
    read.clear()
    assert same(embed(run, many, out=out, batch_size=10, device="cpu"), resumed)
    assert read == []  # the file is what was asked for


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as torchrun gives to each of its processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def kill(process: subprocess.Popen[bytes]) -> None:
    """With all it has started, which are in sessions of their own."""
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_torchrun_writes_a_file_per_process_that_together_are_what_one_writes_also_after_a_kill(
    run: Path, tmp_path: Path
) -> None:
    lots, alone, shared = tmp_path / "lots.npz", tmp_path / "alone.parquet", tmp_path / "shared" / "features.parquet"
    x = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 3), dtype=np.uint8)
    np.savez(lots, x=x, y=np.arange(600) % 3)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "barlow"]
    command: list[str | Path] = [*torchrun, "embed", run, lots, "--out", shared, "--batch-size", "1", "--device", "cpu"]
    process = subprocess.Popen(command)
    while not list(shared.parent.glob(".features*/features-*.npz")):
        assert process.poll() is None
        time.sleep(0.005)
    kill(process)
    assert not finished(shared.parent)
    subprocess.run(command, check=True)
    assert finished(shared.parent) == ["features-00000-of-00002.parquet", "features-00001-of-00002.parquet"]
    embed(run, lots, out=alone, batch_size=1, device="cpu")
    one, two = read_features(alone), read_features(shared)
    assert same(one.features, two.features)
    assert (one.keys, one.classes, one.encoder) == (two.keys, two.classes, two.encoder)
    assert same(Features.load(shared.parent), one.features)
    query = tmp_path / "query.npz"
    np.savez(query, x=x[:1])
    assert search(run, query, shared, k=2) == search(run, query, alone, k=2)


def finished(folder: Path) -> list[str]:
    """The finished files."""
    return sorted(path.name for path in folder.glob("*.parquet"))


def test_more_ranks_than_batches_and_a_missing_rank(run: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts" / "features.npz"
    for rank in range(3):
        embed(run, many, out=out, batch_size=100, rank=rank, world_size=3)
    assert same(read_features(out).features, embed(run, many, batch_size=100))
    (out.parent / "features-00001-of-00003.npz").unlink()
    with pytest.raises(InputError, match="not complete"):
        read_features(out)


def test_another_preprocessing_or_other_pixels_are_computed_anew(run: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    encoder = load_encoder(run)
    first = embed(encoder, many, out=out)
    encoder.preprocess = Preprocess(16, 3, (0.4,) * 3, (0.25,) * 3)
    second = embed(encoder, many, out=out)
    assert not same(first, second)
    x = np.load(many)["x"]
    x[0] = 0
    np.savez(many, x=x, y=np.arange(200) % 3)
    third = embed(encoder, many, out=out)
    assert (third.x[1:] == second.x[1:]).all()
    assert (third.x[0] != second.x[0]).any()
    np.testing.assert_array_equal(read_features(out).features.x, third.x)
