"""Extraction: order, ranks, resuming, files, and an encoder that stays as it was."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from barlow.data import CorruptSample, Source, open_source
from barlow.data.arrays import ArraySource, from_array
from barlow.data.source import LazyImage
from barlow.errors import InputError
from barlow.evaluation import Features, encoder_hash, extract, frozen, join
from barlow.evaluation import features as features_module
from barlow.models import Encoder, Preprocess, build_encoder


def digits_like(n: int = 50, seed: int = 0) -> Source:
    rng = np.random.default_rng(seed)
    return from_array(rng.integers(0, 256, (n, 8, 8), dtype=np.uint8), name="small", labels=rng.integers(3, size=n))


def small_encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    encoder = build_encoder(module, channels=1, image_size=8)
    encoder.preprocess = Preprocess(8, 1, (0.5,), (0.25,))
    return encoder


def test_rows_are_the_encoder_in_eval_mode_on_its_preprocessing_in_the_order_asked_for() -> None:
    source, encoder = digits_like(), small_encoder()
    wanted = [7, 3, 11]
    found = extract(encoder, source, wanted, batch_size=2)
    assert found.ids.tolist() == wanted
    assert source.labels is not None
    assert found.labels.tolist() == source.labels[wanted].tolist()
    assert encoder.preprocess is not None
    for row, index in zip(found.x, wanted, strict=True):
        expected = copy.deepcopy(encoder).eval()(encoder.preprocess(source.read(index)[None]))
        np.testing.assert_allclose(row, expected.detach().numpy()[0], rtol=1e-5, atol=1e-6)


def test_images_of_any_size_and_shape_are_brought_to_the_encoders_size() -> None:
    class Mixed(ArraySource):
        def read(self, i: int) -> Tensor:
            return torch.full((1, 8 + i, 20 - i), i, dtype=torch.uint8)

    source = digits_like()
    source.__class__ = Mixed
    found = extract(small_encoder(), source, range(5))
    assert found.x.shape == (5, 4 * 36)


def test_training_modes_and_statistics_are_as_before() -> None:
    encoder = small_encoder().train()
    encoder.backbone[2].eval()  # type: ignore[index]
    before = copy.deepcopy(encoder.state_dict())
    extract(encoder, digits_like())
    assert encoder.training
    assert not encoder.backbone[2].training  # type: ignore[index]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class Drifting(nn.Module):
    """Counts its calls in a buffer that is not even part of the state dict."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1)


def test_an_encoder_that_changes_while_it_is_measured_is_caught() -> None:
    encoder = build_encoder(Drifting(), channels=1, image_size=8)
    encoder.preprocess = Preprocess(8, 1, (0.5,), (0.25,))
    with pytest.raises(RuntimeError, match="changed while it was being evaluated"):
        extract(encoder, digits_like())


def test_the_hash_sees_weights_buffers_and_nothing_else() -> None:
    encoder = small_encoder()
    first = encoder_hash(encoder)
    assert encoder_hash(copy.deepcopy(encoder).eval()) == first
    with torch.no_grad():
        encoder.backbone[1].running_mean += 1  # type: ignore[index]
    assert encoder_hash(encoder) != first
    with frozen(encoder) as during:
        assert during == encoder_hash(encoder)


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 8), (3, 8), (7, 8), (16, 8), (3, 50)])
def test_ranks_together_give_bit_for_bit_what_one_process_gives(world_size: int, batch_size: int) -> None:
    source, encoder = digits_like(), small_encoder()
    order = np.random.default_rng(0).permutation(50)
    alone = extract(encoder, source, order, batch_size=batch_size)
    parts = [
        extract(encoder, source, order, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    together = join([part for part in parts if len(part)])
    assert (together.x == alone.x).all()
    assert (together.ids == alone.ids).all()
    assert (together.labels == alone.labels).all()


def test_one_parquet_shard_per_rank_reads_back_as_one_extraction(tmp_path: Path) -> None:
    source, encoder = digits_like(), small_encoder()
    for rank in (1, 0):  # whichever rank is first
        part = extract(encoder, source, batch_size=8, rank=rank, world_size=2)
        part.save(tmp_path / f"part-{rank:05d}.parquet")
    alone, found = extract(encoder, source, batch_size=8), Features.load(tmp_path)
    assert (found.x == alone.x).all()
    assert (found.ids == alone.ids).all()


def test_a_killed_extraction_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "CHUNK_BATCHES", 2)
    source, encoder = digits_like(), small_encoder()
    read: list[int] = []

    class Killed(ArraySource):
        limit = 30

        def read(self, i: int) -> Tensor:
            read.append(i)
            if len(read) > self.limit:
                raise KeyboardInterrupt
            return super().read(i)

    source.__class__ = Killed
    with pytest.raises(KeyboardInterrupt):
        extract(encoder, source, batch_size=5, cache=tmp_path / "cache")
    Killed.limit = 1000
    read.clear()
    found = extract(encoder, source, batch_size=5, cache=tmp_path / "cache")
    assert min(read) == 30  # three chunks of ten were finished
    source.__class__ = ArraySource
    assert (found.x == extract(encoder, source, batch_size=5).x).all()


@pytest.mark.parametrize("torn", ["features-0000000000.npz", features_module.MANIFEST])
def test_a_damaged_part_of_a_cache_is_made_again(torn: str, tmp_path: Path) -> None:
    whole = extract(small_encoder(0), digits_like(), batch_size=5, cache=tmp_path)
    content = (tmp_path / torn).read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:-200] + bytes(200)):
        (tmp_path / torn).write_bytes(damaged)
        again = extract(small_encoder(0), digits_like(), batch_size=5, cache=tmp_path)
        np.testing.assert_array_equal(again.x, whole.x)
        assert (tmp_path / torn).read_bytes() == content


def test_a_cache_of_another_encoder_is_refused_by_name(tmp_path: Path) -> None:
    extract(small_encoder(0), digits_like(), cache=tmp_path)
    with pytest.raises(InputError, match="differs in encoder"):
        extract(small_encoder(1), digits_like(), cache=tmp_path)


def test_a_corrupt_sample_is_left_out_and_all_corrupt_is_an_error() -> None:
    class Broken(ArraySource):
        bad: tuple[int, ...] = (3,)

        def read(self, i: int) -> Tensor:
            if i in self.bad:
                raise CorruptSample(str(i), "torn")
            return super().read(i)

    source = digits_like(6)
    source.__class__ = Broken
    assert extract(small_encoder(), source).ids.tolist() == [0, 1, 2, 4, 5]
    assert extract(small_encoder(), source, batch_size=1).ids.tolist() == [0, 1, 2, 4, 5]  # one batch is empty
    Broken.bad = tuple(range(6))
    with pytest.raises(InputError, match="none of 6 samples"):
        extract(small_encoder(), source)


@pytest.mark.parametrize("name", ["features.npz", "features.parquet"])
@pytest.mark.parametrize("labelled", [True, False])
def test_files_give_back_what_was_saved(name: str, labelled: bool, tmp_path: Path) -> None:
    found = extract(small_encoder(), digits_like())
    saved = found if labelled else Features(found.x, None, found.ids)
    saved.save(tmp_path / name)
    back = Features.load(tmp_path / name)
    assert back.x.dtype == np.float32
    assert (back.x == saved.x).all()
    assert (back.ids == saved.ids).all()
    assert (back.y == saved.y).all() if labelled and back.y is not None else back.y is None


def test_files_that_hold_no_features_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    for name in ("text.npz", "other.npz", "missing.npz", "features.csv"):
        with pytest.raises(InputError) as error:
            Features.load(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"\.npz or \.parquet"):
        extract(small_encoder(), digits_like()).save(tmp_path / "features.csv")


def test_labels_where_there_are_none_no_preprocessing_and_no_samples_are_refused() -> None:
    found = extract(small_encoder(), digits_like())
    with pytest.raises(InputError, match="no labels"):
        _ = Features(found.x, None, found.ids).labels
    with pytest.raises(InputError, match="no samples"):
        extract(small_encoder(), digits_like(), [])
    encoder = small_encoder()
    encoder.preprocess = None
    with pytest.raises(InputError, match="no preprocessing"):
        extract(encoder, digits_like())
    with pytest.raises(InputError, match="N labels"):
        Features(found.x, found.labels[:3], found.ids)


def test_a_large_jpeg_is_read_reduced_and_gives_the_pixels_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, side in enumerate((600, 120)):
        yy, xx = np.mgrid[0:side, 0 : side + 40] / side
        pixels = np.stack([127 + 90 * np.sin(9 * xx + 5 * yy), 200 * yy, 255 - 180 * yy], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg", quality=95)
    source = open_source(tmp_path)
    preprocess = Preprocess(image_size=64, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    used = []

    @dataclass
    class Noting:
        image: LazyImage

        def decode(self, reduction: int = 1) -> tuple[Tensor, int]:
            used.append(reduction)
            return self.image.decode(reduction)

        @property
        def height(self) -> int:
            return self.image.height

        @property
        def width(self) -> int:
            return self.image.width

    stored = source.image
    monkeypatch.setattr(source, "image", lambda i: Noting(stored(i)))
    images, kept = features_module.read_images(source, [0, 1], preprocess)
    assert (kept, used) == ([0, 1], [4, 1])
    monkeypatch.undo()
    for image, i in zip(images, kept, strict=True):
        assert (image.float() - preprocess.fit(source.read(i)[None]).float()).abs().mean() < 1.0
