"""From data to results: splits, baselines, warnings, refusals, and files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from barlow.config import PretrainConfig, config_to_dict
from barlow.data import CorruptSample, Source, holdout_split, identity, open_source
from barlow.data.arrays import ArraySource, from_array
from barlow.errors import InputError
from barlow.evaluation import (
    KNN,
    PROTOCOLS,
    FewShot,
    Retrieval,
    Subset,
    ahead,
    average_precision,
    best_of,
    compare_scores,
    encoder_hash,
    evaluate,
    extract,
    knn_accuracy,
    random_init,
    raw_pixels,
    ridge_predict,
    session,
)
from barlow.evaluation.baselines import calibrate
from barlow.evaluation.evaluate import split_data
from barlow.evaluation.session import Splits, measure
from barlow.files import write_json
from barlow.models import Encoder, Preprocess, build_encoder, save_encoder
from barlow.run import Run

CLASSES = 4


class Oracle(nn.Module):
    """Reads the class from the first pixel, where `patterns` wrote it."""

    def forward(self, x: Tensor) -> Tensor:
        label = (x[:, 0, 0, 0] * 255).round().long() // 50
        return nn.functional.one_hot(label, CLASSES + 1).float()


class Constant(nn.Module):
    """A collapsed encoder."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 5)


class Lot(nn.Module):
    """Features that change wildly with any pixel, and follow the class no more than any other."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 1000
        return torch.sin(x.flatten(1) @ weights)


def patterns(n: int = 200, seed: int = 0, labelled: bool = True) -> Source:
    """Noise images [n, 8, 8] whose class is the first pixel."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
    labels = np.arange(n) % CLASSES
    images[:, 0, 0] = 50 * labels + 10
    return from_array(images, name="patterns", labels=labels if labelled else None)


def wrapped(module: nn.Module) -> Encoder:
    encoder = build_encoder(module, channels=1, image_size=8)
    encoder.preprocess = Preprocess(8, 1, (0.0,), (1.0,))
    return encoder


def learnable() -> Encoder:
    torch.manual_seed(0)
    return wrapped(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16)))


@pytest.mark.parametrize("protocol", ["knn", "linear", "few-shot", "few-shot-ridge", "retrieval"])
def test_a_perfect_encoder_scores_one_and_a_collapsed_one_chance(protocol: str) -> None:
    for result in evaluate(wrapped(Oracle()), patterns(), (protocol,), baselines=()):
        assert result.value == pytest.approx(1.0)
    for result in evaluate(wrapped(Constant()), patterns(), (protocol,), baselines=()):
        assert result.value == pytest.approx(1 / CLASSES, abs=0.02)


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_an_encoder_that_draws_its_features_by_lot_scores_chance(protocol: str) -> None:
    (result,) = evaluate(wrapped(Lot()), patterns(2000), (protocol,), baselines=())
    assert result.interval[0] < 1 / CLASSES < result.interval[1]
    assert result.value == pytest.approx(1 / CLASSES, abs=0.08)  # 3.7 standard errors of 400 images


def test_a_result_states_its_protocol_split_seed_encoder_and_baselines() -> None:
    encoder = learnable()
    (result,) = evaluate(encoder, patterns(), (KNN(5, 0.1),), held_out=0.2, seed=3)
    stated = json.loads(json.dumps(result.to_dict()))
    assert stated["protocol"] == "knn-k5-t0.1"
    assert (stated["data"], stated["n"], stated["n_train"], stated["seed"]) == ("patterns", 40, 160, 3)
    assert stated["split"] == "20% held out of every class, seed 3"
    assert stated["settings"]["k"] == 5
    assert stated["settings"]["temperature"] == 0.1
    assert stated["encoder_hash"] == encoder_hash(encoder)
    assert set(stated["baselines"]) == {"raw-pixels", "random-init"}
    for baseline in stated["baselines"].values():
        assert baseline["interval"][0] <= baseline["value"] <= baseline["interval"][1]
    assert stated["interval"][0] <= stated["value"] <= stated["interval"][1]
    assert stated["wall_s"] >= 0


def test_the_same_seed_gives_the_same_result() -> None:
    first, second = (evaluate(learnable(), patterns(), ("few-shot",), seed=5) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert (a.value, a.interval, a.baselines) == (b.value, b.interval, b.baselines)


def test_a_held_out_split_is_stratified_seeded_and_disjoint() -> None:
    splits = split_data(patterns(), channels=1, held_out=0.2, seed=1)
    assert not set(splits.train.indices) & set(splits.test.indices)
    assert np.bincount(splits.test.labels).tolist() == [10] * CLASSES
    other = split_data(patterns(), channels=1, held_out=0.2, seed=2)
    assert set(other.test.indices) != set(splits.test.indices)


def test_data_with_its_own_test_split_is_scored_on_that(tmp_path: Path) -> None:
    train, test = patterns(80, 0), patterns(40, 1)
    assert train.labels is not None
    assert test.labels is not None
    path = tmp_path / "data.npz"
    pixels = [torch.stack([source.read(i) for i in range(len(source))]).numpy()[:, 0] for source in (train, test)]
    np.savez(path, x_train=pixels[0], y_train=train.labels, x_test=pixels[1], y_test=test.labels)
    (result,) = evaluate(wrapped(Oracle()), path, (KNN(3),), baselines=())
    assert (result.n, result.n_train) == (40, 80)
    assert "the data's own" in result.split


def test_a_class_that_one_split_lacks_does_not_shift_the_numbers_of_the_others(tmp_path: Path) -> None:
    pixels = {"ant": 10, "bee": 60, "cat": 110, "dog": 160}
    for split, names in {"train": ("ant", "bee", "dog"), "test": ("bee", "cat", "dog")}.items():
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(np.full((8, 8), pixels[name], np.uint8)).save(tmp_path / split / name / f"{i}.png")
    splits = split_data(tmp_path, channels=1, held_out=0.2, seed=0)
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits.test.labels.tolist() == [1, 1, 3, 3, 2, 2]
    assert splits.test.source.classes == ("ant", "bee", "dog", "cat")
    (result,) = evaluate(wrapped(Oracle()), tmp_path, (KNN(1),), baselines=(), check_overlap=False)
    assert result.value == pytest.approx(2 / 3)  # cats cannot be known
    assert result.details["mean_per_class"] == pytest.approx(2 / 3)


def folder_of(root: Path, splits: dict[str, str], each: int) -> Path:
    """`splits` maps a split to the letters that name its classes; `each` noise images per class."""
    for number, (split, classes) in enumerate(splits.items()):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                noise = np.random.default_rng([number, ord(name), i]).integers(0, 250, (8, 8), dtype=np.uint8)
                Image.fromarray(noise).save(root / split / name / f"{i}.png")
    return root


def test_classes_that_were_never_trained_on_are_refused_or_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no class of the 6 samples to score \(c, d\) .* to fit on \(a, b\)"):
        evaluate(wrapped(Oracle()), folder_of(tmp_path / "named", {"train": "ab", "test": "cd"}, 3))
    with pytest.raises(InputError, match="two or more samples of each"):
        evaluate(wrapped(Oracle()), folder_of(tmp_path / "one", {".": "abcdefgh"}, 1))
    partly = folder_of(tmp_path / "partly", {"train": "ab", "test": "bc"}, 3)
    (result,) = evaluate(wrapped(Oracle()), partly, (KNN(3),), baselines=())
    assert "3 of 6 evaluation images are of classes that the training split lacks: they count as missed" in (
        result.warnings
    )


def test_a_knn_states_its_settings_and_warns_where_it_outnumbers_the_smallest_class() -> None:
    (few, mixed) = evaluate(wrapped(Oracle()), patterns(), ("knn", "knn-mixed"), baselines=())  # 40 per class
    assert (few.title, few.warnings) == ("k-NN (k 20, T 0.07)", ())
    assert (mixed.protocol, mixed.title) == ("knn-mixed", "k-NN (k 160, T 0.5)")  # no more than there are
    assert any("k is 160, but the smallest class has 40" in warning for warning in mixed.warnings)
    shots = evaluate(wrapped(Oracle()), patterns(), ("few-shot",), baselines=())
    assert [shot.title for shot in shots] == ["1-shot k-NN (k 1, T 0.07)", "5-shot k-NN (k 5, T 0.07)"]


def test_two_encoders_are_compared_on_the_same_images() -> None:
    good, bad = (
        evaluate(wrapped(made), patterns(), ("knn", "few-shot", "retrieval"), baselines=())
        for made in (Oracle(), Lot())
    )
    for first, second in zip(good, bad, strict=True):
        found = compare_scores(first.to_dict(), json.loads(json.dumps(second.to_dict())))
        assert found is not None
        assert found.difference == pytest.approx(first.value - second.value)
        assert found.resolved
        assert (ahead(first.to_dict(), second.to_dict()), ahead(second.to_dict(), first.to_dict())) == (1, -1)
    scores = [first.to_dict() for first in (good[0], bad[0], bad[0])]
    assert best_of(scores) == 0
    assert best_of(scores[1:]) is None  # the same answers
    (other,) = evaluate(wrapped(Oracle()), patterns(), ("knn",), baselines=(), seed=1)
    assert compare_scores(good[0].to_dict(), other.to_dict()) is None  # other images are held out


def test_scores_without_values_per_image_are_told_apart_by_their_intervals() -> None:
    scores = [{"value": value, "interval": [value - 0.02, value + 0.02]} for value in (0.5, 0.53, 0.6)]
    assert ahead(scores[1], scores[0]) == 0
    assert ahead(scores[2], scores[1]) == 1
    assert best_of(scores) == 2


def test_random_init_is_the_mean_of_three_networks_with_their_spread() -> None:
    (result,) = evaluate(_named(), patterns(), ("knn",), baselines=("random-init",))
    random = result.baselines["random-init"]
    assert random["value"] == pytest.approx(np.mean(random["per_seed"]))
    assert random["spread"] == pytest.approx(np.std(random["per_seed"], ddof=1))
    assert len(set(random["per_seed"])) > 1
    source = patterns()
    train, test = holdout_split(np.asarray(source.labels), share=0.2, seed=0)
    network = calibrate(random_init(_named(), seed=1), source, train, seed=1)
    known, asked = (extract(network, source, rows) for rows in (train, test))
    assert random["per_seed"][1] == knn_accuracy(known.x, known.labels, asked.x, asked.labels)


def test_an_untrained_network_gets_the_statistics_of_the_training_images() -> None:
    encoder = wrapped(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)))
    source, rows = patterns(100), np.arange(60)
    weights = {name: value.clone() for name, value in encoder.named_parameters()}
    calibrate(encoder, source, rows, seed=0)
    images = torch.stack([source.read(int(i)) for i in rows]).float() / 255
    convolved = encoder.backbone[0](images)  # type: ignore[index]
    norm = encoder.backbone[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, convolved.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, convolved.var(dim=(0, 2, 3)))
    assert norm.momentum == 0.1
    assert all(torch.equal(value, weights[name]) for name, value in encoder.named_parameters())


@pytest.mark.parametrize(
    "measure_features",
    [
        lambda x, y, queries: knn_accuracy(x, y, queries, y, k=3),
        ridge_predict,
        lambda x, y, queries: average_precision(x, y, queries, y),
    ],
)
def test_plain_functions_refuse_features_that_are_not_finite(measure_features: Callable[..., object]) -> None:
    x, y = np.full((20, 4), np.nan, np.float32), np.arange(20) % 2
    with pytest.raises(InputError, match="NaN"):
        measure_features(x, y, x)


def test_results_of_any_names_have_files_of_their_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8, 8), np.uint8))
    run = run_on(tmp_path / "data.npz", tmp_path / "run", n_held=0)
    names = ["データ", "写真", "a b", "a-b", "a/b", "é" * 300, "é" * 299, "a b"]
    score = {"protocol": "knn", "metric": "accuracy", "interval": [0.0, 1.0], "n": 9}
    files = [run.save_evaluation({**score, "data": name, "value": i / 10}) for i, name in enumerate(names)]
    assert files[:3] == [run.path / "evaluations" / f"knn-{name}.json" for name in ("データ", "写真", "a-b")]
    assert files[-1] == files[2]  # the same names again
    assert {e["data"]: e["value"] for e in run.evaluations()} == {name: i / 10 for i, name in enumerate(names)}


def test_images_in_both_splits_are_counted_in_a_warning() -> None:
    source = patterns(40)
    doubled = np.concatenate([torch.stack([source.read(i) for i in range(40)]).numpy()[:, 0]] * 2)
    data = from_array(doubled, name="doubled", labels=np.arange(80) % CLASSES)
    (result,) = evaluate(wrapped(Oracle()), data, (KNN(3),), baselines=(), held_out=0.5)
    assert any("also in the labelled training split" in warning for warning in result.warnings)
    (clean,) = evaluate(wrapped(Oracle()), patterns(80), (KNN(3),), baselines=())
    assert clean.warnings == ()


def test_without_labels_a_class_score_is_refused_and_the_alternatives_are_named() -> None:
    with pytest.raises(InputError, match=r"no labels.*barlow report.*barlow search"):
        evaluate(wrapped(Oracle()), patterns(labelled=False))


def test_unknown_protocols_and_baselines_get_the_nearest_right_name() -> None:
    with pytest.raises(InputError, match="Did you mean 'linear'"):
        evaluate(wrapped(Oracle()), patterns(), ("liner",))
    with pytest.raises(InputError, match="Did you mean 'raw-pixels'"):
        evaluate(wrapped(Oracle()), patterns(), baselines=("raw-pixel",))
    with pytest.raises(InputError, match="no protocol"):
        evaluate(wrapped(Oracle()), patterns(), ())


def test_a_baseline_that_cannot_be_made_is_left_out_and_said_so() -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight

    (result,) = evaluate(wrapped(Free()), patterns(), (KNN(3),))
    assert set(result.baselines) == {"raw-pixels"}
    assert any("random-init left out" in warning for warning in result.warnings)


def test_labels_of_one_class_are_refused() -> None:
    data = from_array(np.zeros((9, 8, 8), np.uint8), name="same", labels=np.full(9, 3))
    with pytest.raises(InputError, match="one class only"):
        evaluate(wrapped(Oracle()), data, (KNN(3),))


def test_features_that_are_not_finite_are_refused_and_leave_a_baseline_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3), float("nan"))

    with pytest.raises(InputError, match="NaN"):
        evaluate(wrapped(Diverged()), patterns(), (KNN(3),), baselines=())
    monkeypatch.setitem(session.BASELINES, "raw-pixels", lambda encoder, train, seed: wrapped(Diverged()))
    (result,) = evaluate(wrapped(Oracle()), patterns(), (KNN(3),))
    assert (result.value, set(result.baselines)) == (1.0, {"random-init"})
    assert any(warning.startswith("baseline raw-pixels left out: the features hold NaN") for warning in result.warnings)


def test_images_that_cannot_be_read_are_counted_in_a_warning() -> None:
    class Torn(ArraySource):
        def read(self, i: int) -> Tensor:
            if i in (3, 4, 5):
                raise CorruptSample(str(i), "torn")
            return super().read(i)

    source = patterns(40)
    source.__class__ = Torn
    parts = Subset(source, np.arange(4)), Subset(source, np.arange(4, 40))
    (result,) = measure(wrapped(Oracle()), Splits(*parts, "given"), (KNN(1),), seed=0, baselines=())
    assert (result.n, result.n_train) == (34, 3)
    assert "2 of 36 evaluation samples could not be read and are left out" in result.warnings
    assert "1 of 4 training samples could not be read and are left out" in result.warnings


def test_an_encoder_that_drifts_is_an_error() -> None:
    class Drifting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.flatten(1)

    with pytest.raises(RuntimeError, match="changed"):
        evaluate(wrapped(Drifting()), patterns(), (KNN(3),), baselines=())


def test_raw_pixels_are_the_pixels_the_encoder_sees_averaged_to_at_most_32() -> None:
    small = raw_pixels(wrapped(Oracle()))
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(small(x), x.flatten(1))
    large = build_encoder(Constant(), channels=3, image_size=64)
    large.preprocess = Preprocess(64, 3, (0.0,) * 3, (1.0,) * 3)
    y = torch.rand(2, 3, 64, 64)
    averaged = y.view(2, 3, 32, 2, 32, 2).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(raw_pixels(large)(y), averaged)
    assert raw_pixels(large).feature_dim == 3 * 32 * 32


@pytest.mark.parametrize("make", [learnable, lambda: _named()])
def test_random_init_has_the_architecture_but_none_of_the_weights(make: object) -> None:
    encoder: Encoder = make()  # type: ignore[operator]
    state = torch.random.get_rng_state()
    fresh = random_init(encoder, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is not touched
    assert fresh.architecture == encoder.architecture
    shapes = {name: value.shape for name, value in encoder.state_dict().items()}
    assert {name: value.shape for name, value in fresh.state_dict().items()} == shapes
    assert encoder_hash(random_init(encoder, seed=1)) == encoder_hash(fresh)
    weights = dict(encoder.named_parameters())
    assert all(not torch.equal(p, weights[name]) for name, p in fresh.named_parameters() if p.ndim > 1)


def _named() -> Encoder:
    encoder = build_encoder("resnet10-narrow", channels=1, image_size=8)
    encoder.preprocess = Preprocess(8, 1, (0.0,), (1.0,))
    return encoder


def run_on(data: Path, folder: Path, n_held: int) -> Run:
    """A run folder as pretraining leaves it, with the pixels' encoder of `wrapped` replaced by a fresh small one."""
    encoder = _named()
    assert encoder.preprocess is not None
    save_encoder(encoder, encoder.preprocess, folder)
    write_json(folder / "config.json", config_to_dict(PretrainConfig()))
    source = open_source(data)
    facts = {"data_name": str(data), "n": len(source), "n_held": n_held, "channels": 1}
    write_json(folder / "run.json", {**facts, "data": {"location": source.location, **identity(source)}})
    return Run(folder)


def test_a_runs_results_are_saved_and_say_which_images_pretraining_saw(tmp_path: Path) -> None:
    source = patterns(40)
    path = tmp_path / "data.npz"
    pixels = torch.stack([source.read(i) for i in range(40)]).numpy()[:, 0]
    np.savez(path, x=pixels, y=source.labels)  # type: ignore[arg-type]
    run = run_on(path, tmp_path / "all", n_held=0)
    (result,) = evaluate(run, path, (KNN(3),), baselines=())
    assert result.warnings == ("8 of 8 evaluation images were seen, without labels, in pretraining",)
    (saved,) = run.evaluations()
    assert saved == json.loads(json.dumps(result.to_dict()))
    part = run_on(path, tmp_path / "part", n_held=20)
    np.savez(tmp_path / "some.npz", x=pixels[:30], y=np.arange(30) % CLASSES)
    (result,) = evaluate(part.path, tmp_path / "some.npz", (KNN(3),), baselines=(), held_out=0.5)
    assert 0 < int(result.warnings[0].split()[0]) < result.n  # some were held out of pretraining
    (result,) = evaluate(run, patterns(40, seed=9), (KNN(3),), baselines=(), save=False)
    assert result.warnings == ()
    assert len(run.evaluations()) == 1


def test_what_a_later_protocol_stops_on_leaves_the_earlier_results(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8, 8), np.uint8))
    run = run_on(tmp_path / "data.npz", tmp_path / "run", n_held=0)
    with pytest.raises(InputError, match="500-shot"):
        evaluate(run, patterns(40), (KNN(3), FewShot(500)), baselines=(), check_overlap=False)
    (saved,) = run.evaluations()
    assert (saved["protocol"], saved["settings"]["overlap_checked"]) == ("knn-k3-t0.07", False)
    (tmp_path / "data.npz").unlink()
    (result,) = evaluate(run, patterns(40), (KNN(3),), baselines=())
    assert any("is not known: " in warning and "there is no such file" in warning for warning in result.warnings)


def test_of_data_that_changed_or_is_looked_for_from_elsewhere_the_overlap_is_right_or_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = patterns(40)
    pixels = torch.stack([source.read(i) for i in range(40)]).numpy()[:, 0]
    np.savez(tmp_path / "data.npz", x=pixels, y=source.labels)  # type: ignore[arg-type]
    (tmp_path / "elsewhere").mkdir()
    other = {"x": 255 - pixels, "y": source.labels}
    np.savez(tmp_path / "elsewhere" / "data.npz", **other)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    run = run_on(Path("data.npz"), tmp_path / "run", n_held=0)
    monkeypatch.chdir(tmp_path / "elsewhere")  # where another file has the name
    (result,) = evaluate(run, tmp_path / "data.npz", (KNN(3),), baselines=())
    assert result.warnings == ("8 of 8 evaluation images were seen, without labels, in pretraining",)
    np.savez(tmp_path / "data.npz", **other)  # type: ignore[arg-type]
    (result,) = evaluate(run, source, (KNN(3),), baselines=())
    (warning,) = result.warnings
    assert "is not known: " in warning
    assert "any more: as many samples, but their contents differ" in warning


def test_on_the_data_of_pretraining_what_was_held_out_then_is_scored(tmp_path: Path) -> None:
    source = patterns(60)
    pixels = torch.stack([source.read(i) for i in range(60)]).numpy()[:, 0]
    np.savez(tmp_path / "data.npz", x=pixels, y=source.labels)  # type: ignore[arg-type]
    run = run_on(tmp_path / "data.npz", tmp_path / "run", n_held=15)
    (result,) = evaluate(run, tmp_path / "data.npz", (KNN(3),), baselines=(), seed=7)
    assert (result.n, result.n_train, result.warnings) == (15, 45, ())
    assert result.split == "the run's own: fitted on what it was trained on, scored on what it held out, seed 0"
    data = open_source(tmp_path / "data.npz")
    splits = split_data(data, channels=1, held_out=0.2, seed=7, run=run)
    trained, held = holdout_split(60, share=15 / 60, seed=run.config.training.seed)  # as pretraining splits
    assert (splits.train.indices.tolist(), splits.test.indices.tolist()) == (trained.tolist(), held.tolist())
    pixels[0] += 1
    np.savez(tmp_path / "other.npz", x=pixels, y=source.labels)  # type: ignore[arg-type]
    (result,) = evaluate(run, tmp_path / "other.npz", (KNN(3),), baselines=(), seed=7)
    assert result.split == "20% held out of every class, seed 7"


@pytest.mark.parametrize("shape", [(5,), (2, 40)])
def test_tables_and_signals_are_measured_like_images(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    values = rng.standard_normal((80, *shape)) + 3.0 * (2 * labels - 1).reshape(-1, *[1] * len(shape))
    data = from_array(values.astype(np.float32), name="values", labels=labels)
    encoder = build_encoder("mlp" if len(shape) == 1 else "resnet1d", channels=shape[0], image_size=0)
    encoder.preprocess = Preprocess(0, shape[0], (0.0,) * shape[0], (1.0,) * shape[0], scale=1.0)
    (result,) = evaluate(encoder, data, (KNN(5, 0.1),))
    assert result.baselines["raw-pixels"]["value"] > 0.9
    assert result.value > 0.8


def test_a_source_that_is_one_split_already_is_not_its_own_test_set() -> None:
    source = patterns(40)
    source.split_names = ("train", "test")
    splits = split_data(source, channels=1, held_out=0.25, seed=0)
    assert not set(splits.train.indices) & set(splits.test.indices)


def test_protocols_on_annotated_folders_refuse_other_data() -> None:
    with pytest.raises(InputError, match="layout of VOC or COCO, got digits"):
        evaluate(wrapped(Oracle()), "digits", ("voc07-svm",))
    with pytest.raises(InputError, match="Did you mean 'mask-rcnn'"):
        evaluate(wrapped(Oracle()), patterns(), ("mask-rcn",))


def test_every_protocol_name_stands_for_protocols_with_names_of_their_own() -> None:
    names = [protocol.name for group in PROTOCOLS.values() for protocol in group]
    assert len(names) == len(set(names))
    assert Retrieval().name == "retrieval"
