"""The transformer behaves as scikit-learn expects, and learns."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from barlow.errors import InputError
from barlow.estimator import BarlowTwinsEncoder

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "random_state": 0, "settings": {"projector": (16, 16)}}


@pytest.mark.slow
@parametrize_with_checks([BarlowTwinsEncoder(**QUICK)])  # type: ignore[untyped-decorator]
def test_scikit_learns_own_checks_pass(estimator: Any, check: Any) -> None:
    check(estimator)


def images(n: int = 24, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, side, side, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "photos" / f"{i:02d}.png" for i in range(24)]
    paths[0].parent.mkdir()
    for path, image in zip(paths, images(), strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_an_array_a_list_of_files_and_a_folder_give_the_same_features(files: list[Path]) -> None:
    encoder = BarlowTwinsEncoder(encoder="resnet10-narrow", **QUICK).fit(images())
    from_array = encoder.transform(images())
    assert from_array.shape == (24, 256)
    np.testing.assert_allclose(encoder.transform(files), from_array, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(encoder.transform([str(file) for file in files]), from_array, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(encoder.transform(files[0].parent), from_array, rtol=1e-5, atol=1e-5)


def test_it_fits_on_files_as_on_a_folder(files: list[Path]) -> None:
    by_list, by_folder = (
        BarlowTwinsEncoder(encoder="resnet10-narrow", **QUICK).fit(data).transform(images())
        for data in (files, files[0].parent)
    )
    np.testing.assert_array_equal(by_list, by_folder)


def test_a_pickled_transformer_gives_the_same_features() -> None:
    encoder = BarlowTwinsEncoder(encoder="resnet10-narrow", **QUICK).fit(images())
    again = pickle.loads(pickle.dumps(encoder))  # noqa: S301  our own bytes
    np.testing.assert_array_equal(again.transform(images()), encoder.transform(images()))


def test_the_seed_decides_the_features() -> None:
    first, same, other = (
        BarlowTwinsEncoder(encoder="resnet10-narrow", **{**QUICK, "random_state": seed}).fit_transform(images())
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)


@pytest.mark.slow
def test_a_grid_over_epochs_in_a_pipeline_classifies_digits_far_above_chance() -> None:
    x, y = load_digits(n_class=3, return_X_y=True)
    x, y = x[:240] / 16, y[:240]
    encoder = BarlowTwinsEncoder(
        encoder="resnet10-narrow", image_shape=(8, 8), batch_size=80, random_state=0, settings={"projector": (64, 64)}
    )
    pipeline = make_pipeline(encoder, LogisticRegression(max_iter=500))
    search = GridSearchCV(pipeline, {"barlowtwinsencoder__epochs": [1, 2]}, cv=2).fit(x, y)
    assert search.best_score_ > 0.8


def test_a_run_folder_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    encoder = BarlowTwinsEncoder(encoder="resnet10-narrow", out=tmp_path / "run", **QUICK).fit(images())
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    assert encoder.get_feature_names_out()[:2].tolist() == ["barlowtwinsencoder0", "barlowtwinsencoder1"]


def test_an_unreadable_file_is_named_and_no_row_goes_missing(files: list[Path]) -> None:
    encoder = BarlowTwinsEncoder(encoder="resnet10-narrow", **QUICK).fit(images())
    files[3].write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"1 samples cannot be read, the first is .*03\.png"):
        encoder.transform(files)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"image_shape": (3, 5)}, "does not make images"), ({"method": "barlow-twin"}, "Did you mean 'barlow-twins'")],
)
def test_wrong_parameters_are_one_clear_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BarlowTwinsEncoder(**{**QUICK, **options}).fit(np.random.default_rng(0).normal(size=(20, 16)))
