"""Statistics and held-out splits, against plain definitions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from barlow.data import describe, holdout_split, open_source
from barlow.errors import InputError


def test_statistics_are_those_of_all_pixels_on_the_unit_scale() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 7, 3), dtype=np.uint8)
    found = describe(open_source(images))
    np.testing.assert_allclose(found.mean, images.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(found.std, images.std((0, 1, 2)) / 255, rtol=1e-9)
    assert (found.n, found.channels, found.dtype, found.height, found.width) == (40, 3, "uint8", 6, 7)
    assert (found.fixed_size, found.kind) == (True, "image")


def test_sixteen_bit_images_are_on_the_unit_scale_and_floats_on_their_own() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 5, 5)).astype(np.uint16)
    np.testing.assert_allclose(describe(open_source(deep)).mean, [deep.mean() / 65535], rtol=1e-6)
    floats = np.random.default_rng(0).normal(-40, 7, (9, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(describe(open_source(floats)).std, [floats.astype(np.float64).std()], rtol=1e-6)


def test_signals_and_tables_are_described_per_channel_and_feature() -> None:
    signals = np.random.default_rng(0).normal(size=(9, 2, 60)).astype(np.float32)
    found = describe(open_source(signals))
    np.testing.assert_allclose(found.mean, signals.astype(np.float64).mean((0, 2)), atol=1e-9)
    assert (found.kind, found.width) == ("signal", 60)
    table = np.random.default_rng(0).normal(size=(30, 4))
    np.testing.assert_allclose(describe(open_source(table)).std, table.std(0), rtol=1e-6)


def test_a_sample_stands_for_a_large_set_and_the_seed_draws_it() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3000, 4, 4), dtype=np.uint8)
    found = describe(open_source(images), sample=500)
    assert abs(found.mean[0] - images.mean() / 255) < 0.01
    assert found == describe(open_source(images), sample=500)
    assert found.mean != describe(open_source(images), sample=500, seed=1).mean


def test_sizes_are_medians_and_corrupt_files_do_not_count(tmp_path: Path) -> None:
    for i, side in enumerate((10, 20, 90)):
        Image.new("L", (side, 2 * side)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"")
    found = describe(open_source(tmp_path))
    assert (found.height, found.width, found.fixed_size) == (40, 20, False)


def test_nothing_readable_is_one_line_naming_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the sampled items can be read; the first is a\.png: empty file"):
        describe(open_source(tmp_path))


# --- splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_every_class_gives_its_share(share: float) -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 20])
    train, held = holdout_split(labels, share=share, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(160))
    assert np.bincount(labels[held]).tolist() == [round(share * n) for n in (100, 40, 20)]


def test_small_classes_stand_on_both_sides_and_single_samples_in_train() -> None:
    labels = np.array([0] * 50 + [1, 1, 2])
    train, held = holdout_split(labels, share=0.1, seed=3)
    assert set(labels[train].tolist()) == {0, 1, 2}
    assert set(labels[held].tolist()) == {0, 1}


def test_the_seed_decides_the_split() -> None:
    splits = [holdout_split(1000, share=0.2, seed=seed)[1] for seed in (0, 0, 1)]
    assert splits[0].tolist() == splits[1].tolist() != splits[2].tolist()
    assert len(splits[0]) == 200


def test_all_single_classes_are_split_as_a_whole() -> None:
    assert len(holdout_split(np.arange(10), share=0.3, seed=0)[1]) == 3


@pytest.mark.parametrize(
    ("labels", "share"), [(10, 0.0), (10, 1.0), (10, -1.0), (1, 0.5), (np.zeros(0, np.int64), 0.5)]
)
def test_impossible_splits_are_one_line(labels: int, share: float) -> None:
    with pytest.raises(InputError):
        holdout_split(labels, share=share, seed=0)
