"""Heads and networks trained on images: against a literal loop, and what must not change."""

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from barlow.data import Source
from barlow.data.arrays import from_array
from barlow.errors import InputError
from barlow.evaluation import Subset, Task, encoder_hash, evaluate
from barlow.evaluation.paper_linear import OFFICIAL, RELEASED_MIXED, PaperLinear
from barlow.evaluation.semi_supervised import SemiSupervised, fine_tuning, label_rows
from barlow.evaluation.supervised import Optimisation, fit_classifier
from barlow.models import Encoder, Preprocess, build_encoder
from barlow.views import ViewRecipe

AS_IT_IS = ViewRecipe(crop_scale=None, flip=0.0)


def stripes(n: int = 64, seed: int = 0) -> Source:
    """Images [n, 16, 16] of horizontal (0) or vertical (1) stripes of random brightness and phase."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = np.zeros((n, 16, 16))
    for i, label in enumerate(labels):
        wave = 1 + np.sin(np.arange(16) * 1.6 + rng.uniform(0, 6))
        images[i] = (wave[:, None] if label == 0 else wave[None]) * rng.uniform(60, 120)
    noisy = images + rng.normal(0, 10, images.shape)
    return from_array(noisy.clip(0, 255).astype(np.uint8), name="stripes", labels=labels)


def encoder(seed: int = 0, norm: bool = False) -> Encoder:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 8, 5), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    built = build_encoder(nn.Sequential(*layers, nn.Flatten()), channels=1, image_size=16)
    built.preprocess = Preprocess(16, 1, (0.4,), (0.3,))
    return built


def task(built: Encoder, n: int = 64) -> Task:
    source = stripes(n)
    rows = np.arange(n)
    return Task(built, Subset(source, rows[: n // 2]), Subset(source, rows[n // 2 :]))


def test_a_head_on_a_frozen_encoder_is_the_official_loop() -> None:
    built = encoder(norm=True)
    how = replace(OFFICIAL, epochs=7, view=AS_IT_IS)
    given = task(built)
    found = fit_classifier(given, given.train_set, how, seed=3)
    head = nn.Linear(32, 2)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(3))
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    x, y = torch.from_numpy(given.train.x), torch.from_numpy(given.train.labels)
    for _ in range(7):  # 32 images are one batch
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(found.head.weight, head.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.head.bias, head.bias, rtol=1e-4, atol=1e-5)


def test_the_schedules_are_the_papers() -> None:
    assert [OFFICIAL.factor(epoch / 100) for epoch in (0, 50)] == pytest.approx([1.0, 0.5])
    rates = [RELEASED_MIXED.lr_head * RELEASED_MIXED.factor(share) for share in (0, 0.5, 1)]
    assert rates == pytest.approx([1e-2, 1e-4, 1e-6])


def test_few_images_get_more_epochs_and_a_smaller_batch() -> None:
    how = replace(OFFICIAL, epochs=20, least_steps=1000)
    assert (how.batch_of(500), how.epochs_of(500)) == (256, 1000)
    assert (how.batch_of(30), how.epochs_of(30)) == (30, 1000)
    assert how.epochs_of(256 * 50) == 20


def test_a_frozen_encoder_keeps_weights_buffers_and_mode() -> None:
    built = encoder(norm=True).train()
    before = encoder_hash(built)
    given = task(built)
    fit_classifier(given, given.train_set, replace(OFFICIAL, epochs=2), seed=0)
    assert encoder_hash(built) == before
    assert built.training


def test_the_drifting_flag_moves_the_statistics_of_a_copy_and_no_weight() -> None:
    built = encoder(norm=True)
    before = encoder_hash(built)
    given = task(built)
    found = fit_classifier(given, given.train_set, replace(RELEASED_MIXED, epochs=2), seed=0, drifting=True)
    assert encoder_hash(built) == before
    old, new = built.state_dict(), found.encoder.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert not found.encoder.training


def test_fine_tuning_trains_a_copy_of_the_encoder_too() -> None:
    built = encoder()
    before = encoder_hash(built)
    given = task(built)
    how = Optimisation(3, 16, "sgd", lr_head=0.5, lr_encoder=0.05, weight_decay=0.0, decay="cosine")
    found = fit_classifier(given, given.train_set, how, seed=0)
    assert encoder_hash(built) == before
    assert encoder_hash(found.encoder) != before
    assert all(p.requires_grad for p in found.encoder.parameters())


@pytest.mark.parametrize("seed", [0, 5])
def test_a_fraction_of_labels_is_stratified_seeded_and_nested_in_the_training_split(seed: int) -> None:
    y = np.repeat([0, 1, 7], [100, 50, 3])
    rows = label_rows(y, fraction=0.1, per_class=None, seed=seed)
    assert np.bincount(y[rows])[[0, 1, 7]].tolist() == [10, 5, 1]  # at least one of the rarest
    assert (rows == label_rows(y, fraction=0.1, per_class=None, seed=seed)).all()
    assert set(rows) != set(label_rows(y, fraction=0.1, per_class=None, seed=seed + 1))
    assert np.bincount(y[label_rows(y, fraction=None, per_class=2, seed=seed)])[[0, 1, 7]].tolist() == [2, 2, 2]
    assert len(label_rows(y, fraction=1.0, per_class=None, seed=seed)) == len(y)


@pytest.mark.parametrize(("fraction", "per_class"), list(product([None, 0.5], [None, 3]))[::3])
def test_both_or_neither_of_fraction_and_count_are_refused(fraction: float | None, per_class: int | None) -> None:
    with pytest.raises(InputError, match="a fraction of the labels or a number"):
        label_rows(np.arange(4), fraction=fraction, per_class=per_class, seed=0)
    with pytest.raises(InputError, match="above 0"):
        label_rows(np.arange(4), fraction=1.5, per_class=None, seed=0)


QUICK = Optimisation(
    30, 16, "adam", lr_head=3e-2, lr_encoder=3e-3, weight_decay=0.0, decay="cosine", view=replace(AS_IT_IS, flip=0.5)
)


def test_semi_supervised_learns_from_few_labels_and_states_how_beside_random_init() -> None:
    protocol = SemiSupervised(per_class=8, repeats=2, how=QUICK)
    (result,) = evaluate(encoder(), stripes(160), (protocol,))
    assert result.protocol == "semi-supervised-8-per-class"
    assert result.value > 0.9
    assert (result.n_train, result.settings["repeats"], result.settings["lr_encoder"]) == (16, 2, 3e-3)
    assert set(result.baselines) == {"random-init"}
    assert result.details["per_repeat"] != []
    assert result.value == pytest.approx(np.mean(result.details["per_repeat"]))
    assert result.value == pytest.approx(result.details["mean_per_class"])  # stripes come in equal numbers


def test_linear_on_images_separates_what_the_features_separate() -> None:
    (result,) = evaluate(encoder(), stripes(160), (PaperLinear(how=replace(OFFICIAL, epochs=20)),))
    assert result.protocol == "linear-paper"
    assert result.value > 0.9
    assert set(result.baselines) == {"raw-pixels", "random-init"}
    assert result.settings["view"]["crop_scale"] == (0.08, 1.0)
    assert result.settings["encoder_mode"] == "eval"


def test_results_repeat_with_the_seed_and_differ_without() -> None:
    protocol = fine_tuning(QUICK, epochs=2)
    given = task(encoder())
    first, again, other = (
        fit_classifier(given, given.train_set, protocol.how, seed=seed).head.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_head_that_diverges_is_an_error() -> None:
    class Loud(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1e30 * x.flatten(1)

    built = build_encoder(Loud(), channels=1, image_size=16)
    built.preprocess = Preprocess(16, 1, (0.4,), (0.3,))
    protocol = PaperLinear(how=replace(OFFICIAL, epochs=2, lr_head=1e30))
    with pytest.raises(InputError, match=r"diverged at learning rate 1e\+30"):
        evaluate(built, stripes(), (protocol,))


def test_tables_and_signals_are_refused_by_protocols_on_images() -> None:
    table = from_array(np.random.default_rng(0).random((20, 3)), name="table", labels=np.arange(20) % 2)
    built = build_encoder(nn.Linear(3, 2), channels=3, image_size=0)
    built.preprocess = Preprocess(0, 3, (0.0,) * 3, (1.0,) * 3, scale=1.0)
    with pytest.raises(InputError, match="kind table"):
        evaluate(built, table, ("linear-paper",))
    assert copy.deepcopy(built).feature_dim == 2
