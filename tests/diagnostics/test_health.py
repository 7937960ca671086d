"""Verdicts on encoders built to be healthy or ill in one known way."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from barlow.diagnostics import Evidence, distinct_share, expected_initial_loss, health, overfitting_evidence, verdict
from barlow.errors import InputError
from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss

WIDTH = 16
LAMBD = 1 / 128


def views(n: int, seed: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Two views [n, 2 WIDTH, 1, 1]: WIDTH values that they share, up to noise, and WIDTH that are each one's own."""
    generator = torch.Generator().manual_seed(seed)
    content = torch.randn(n, WIDTH, generator=generator)

    def one() -> Tensor:
        kept = content + noise * torch.randn(n, WIDTH, generator=generator)
        return torch.cat([kept, torch.randn(n, WIDTH, generator=generator)], dim=1)[..., None, None]

    return one(), one()


class Content(nn.Module):
    """A good encoder: what the views share."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :WIDTH]


class Nuisance(nn.Module):
    """An encoder that has learnt nothing yet: what is different in every view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, WIDTH:]


class Constant(nn.Module):
    """The same output for every image, up to a millionth."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 + 1e-6 * x.flatten(1)[:, :WIDTH]


class OneDirection(nn.Module):
    """One shared value, written into every feature."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :1].repeat(1, WIDTH)


class Memory(nn.Module):
    """Knows its training images by heart, and sees nuisance in any other image."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("known", images.flatten(1)[:, :WIDTH])

    def forward(self, x: Tensor) -> Tensor:
        content = x.flatten(1)[:, :WIDTH]
        distance, row = torch.cdist(content, self.known).min(dim=1)  # type: ignore[arg-type]
        trust = (distance < 1.0).float()[:, None]
        return trust * self.known[row] + (1 - trust) * x.flatten(1)[:, WIDTH:]  # type: ignore[index]


HELD, TRAIN = views(400, 1), views(400, 2)


def examine(encoder: nn.Module, **more: object) -> dict[str, object]:
    arguments = {"train_pairs": TRAIN, "n_train": 50_000, "step": 1000, "initial_loss": 20.0, **more}
    return health(encoder, nn.Identity(), HELD, BarlowTwinsLoss(LAMBD), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("encoder", "more", "state"),
    [
        (Content(), {}, "healthy"),
        (Constant(), {}, "collapsed-constant"),
        (OneDirection(), {}, "collapsed-dimensional"),
        (Nuisance(), {"initial_loss": 16.5}, "not-learning-yet"),
        (Nuisance(), {"initial_loss": None, "train_pairs": None}, "not-learning-yet"),
        (Content(), {"step": 0}, "not-learning-yet"),
        (Memory(TRAIN[0]), {}, "overfitting"),
        (Memory(TRAIN[0]), {"initial_loss": 16.5}, "overfitting"),
        (Content(), {"n_train": 60}, "too-little-data"),
    ],
)
def test_each_encoder_gets_the_verdict_it_was_built_for(
    encoder: nn.Module, more: dict[str, object], state: str
) -> None:
    found = examine(encoder, **more)["verdict"]
    assert isinstance(found, dict)
    assert found["state"] == state
    assert found["text"].endswith(".")
    assert found["evidence"]["n"] == 400


# Digits in a resnet10-narrow with D = 256, after 20 epochs with the usual settings.
USUAL = Evidence(
    n=143, width=256, dead_share=0.0, relative_spread=0.56, effective_rank=8.18, diagonal=0.665, off_diagonal=0.25,
    heldout_loss=74.95, train_loss=73.75, initial_loss=196.5, best_heldout_loss=75.14, n_train=1295, step=200,
)  # fmt: skip


@pytest.mark.parametrize(
    ("evidence", "state"),
    [
        (USUAL, "healthy"),
        (  # learning rate 0
            replace(
                USUAL, effective_rank=35.0, diagonal=0.124, off_diagonal=0.083, heldout_loss=203.8, train_loss=219.0
            ),
            "not-learning-yet",
        ),
        (  # lambda 0, after 20 epochs
            replace(USUAL, effective_rank=1.18, diagonal=0.86, off_diagonal=0.849, heldout_loss=5.07, train_loss=2.80),
            "collapsed-dimensional",
        ),
        (  # lambda 0, after 4 epochs
            replace(
                USUAL,
                effective_rank=2.61,
                diagonal=0.48,
                off_diagonal=0.40,
                heldout_loss=70.3,
                train_loss=61.2,
                step=40,
            ),
            "collapsed-dimensional",
        ),
        (  # lambda 1e-4, after 15 epochs: the views agree, and 256 features say one thing
            replace(USUAL, effective_rank=1.24, diagonal=0.955, off_diagonal=0.91, heldout_loss=6.04, train_loss=5.96),
            "collapsed-dimensional",
        ),
        (  # the default lambda in its second epoch
            replace(
                USUAL,
                effective_rank=3.55,
                diagonal=0.399,
                off_diagonal=0.225,
                heldout_loss=128.2,
                train_loss=126.4,
                best_heldout_loss=165.7,
                step=10,
            ),
            "healthy",
        ),
        (  # BYOL does not lower the loss of Barlow Twins, but its views come to agree
            replace(USUAL, heldout_loss=240.0, train_loss=240.0, initial_diagonal=0.13),
            "healthy",
        ),
        (replace(USUAL, heldout_loss=240.0, train_loss=240.0, initial_diagonal=0.65), "not-learning-yet"),
        (  # 54 images to train on, 6 held out: correlations of 6 samples are mostly noise
            replace(
                USUAL,
                n=6,
                effective_rank=3.75,
                diagonal=0.275,
                off_diagonal=0.411,
                heldout_loss=299.1,
                train_loss=240.7,
                initial_loss=210.2,
                n_train=54,
            ),
            "too-little-data",
        ),
        (
            replace(USUAL, n=512, width=1024, effective_rank=9.0),
            "healthy",
        ),  # few directions of many, but different ones
    ],
)
def test_figures_of_real_runs_get_the_verdict_of_what_was_done_to_them(evidence: Evidence, state: str) -> None:
    assert verdict(evidence).state == state


def test_a_held_out_loss_that_rises_again_is_overfitting_before_the_gap_is_wide() -> None:
    evidence = Evidence(
        n=500, width=128, dead_share=0.0, relative_spread=1.0, effective_rank=60.0, diagonal=0.9, off_diagonal=0.05,
        heldout_loss=30.0, train_loss=20.0, initial_loss=100.0, best_heldout_loss=30.0,
    )  # fmt: skip
    assert verdict(evidence).state == "healthy"
    risen = Evidence(**{**_fields(evidence), "best_heldout_loss": 25.0})  # type: ignore[arg-type]
    assert verdict(risen).state == "overfitting"
    assert "whose lowest was 25" in verdict(risen).text


def test_a_falling_knn_score_is_overfitting_even_without_a_gap() -> None:
    found = examine(Content(), knn=0.85, best_knn=0.91)["verdict"]
    assert isinstance(found, dict)
    assert found["state"] == "overfitting"
    assert "from 91.0% to 85.0%" in found["text"]
    steady = examine(Content(), knn=0.90, best_knn=0.91)["verdict"]
    assert isinstance(steady, dict)
    assert steady["state"] == "healthy"


def test_how_far_knn_must_fall_depends_on_the_images_it_is_measured_on() -> None:
    few, many = (examine(Content(), knn=0.87, best_knn=0.90, knn_images=n)["verdict"] for n in (300, 2000))
    assert isinstance(few, dict)
    assert isinstance(many, dict)
    assert (few["state"], many["state"]) == ("healthy", "overfitting")


WIDE = 256


class Embedding(nn.Module):
    """`rank` shared values, spread over 256 features by a fixed random matrix; of views that agree or do not."""

    def __init__(self, rank: int, agree: bool) -> None:
        super().__init__()
        self.rank, self.first = rank, 0 if agree else 32
        self.mix = torch.randn(rank, WIDE, generator=torch.Generator().manual_seed(rank))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.first : self.first + self.rank] @ self.mix


def of_64_values(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two views [n, 64, 1, 1]: 32 values that they share up to noise, and 32 that are each one's own."""
    generator = torch.Generator().manual_seed(seed)
    content = torch.randn(n, 32, generator=generator)
    first, second = (
        torch.cat(
            [content + 0.1 * torch.randn(n, 32, generator=generator), torch.randn(n, 32, generator=generator)], dim=1
        )[..., None, None]
        for _ in range(2)
    )
    return first, second


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    ("rank", "agree", "state"),
    [
        *((rank, True, "collapsed-dimensional") for rank in (1, 2)),
        *((rank, True, "healthy") for rank in (6, 32)),
        *((rank, False, "not-learning-yet") for rank in (1, 2, 6, 32)),
    ],
)
@pytest.mark.parametrize("initial_loss", [1e9, None])
def test_what_the_rank_and_the_agreement_of_an_embedding_say(
    rank: int, agree: bool, state: str, initial_loss: float | None, scale: float
) -> None:
    """Whatever the loss was before training, and in whatever units the embedding is."""
    held, encoder = of_64_values(256, 1), Embedding(rank, agree)
    encoder.mix *= scale
    found = health(
        encoder, nn.Identity(), held, BarlowTwinsLoss(LAMBD), n_train=50_000, step=100, initial_loss=initial_loss
    )
    assert found["verdict"]["state"] == state
    if rank == 6 and agree:
        assert "These are few" in found["verdict"]["text"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_features_that_overflowed_are_a_diverged_run_and_not_an_overfitted_one(value: float) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)[:, :WIDTH].clone()
            z[3, 5] = value
            return z * (1 if not np.isfinite(value) else value)

    found = examine(Broken())
    assert found["verdict"]["state"] == "diverged"  # type: ignore[index]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("name", ["heldout_loss", "train_loss", "effective_rank", "diagonal", "dead_share"])
def test_a_figure_that_is_not_finite_is_named(name: str) -> None:
    found = verdict(replace(USUAL, **{name: float("nan")}))  # type: ignore[arg-type]
    assert found.state == "diverged"
    assert name.replace("_", " ") in found.text
    assert name not in found.evidence


@pytest.mark.parametrize("name", ["initial_loss", "best_heldout_loss", "knn", "best_knn", "initial_diagonal"])
def test_an_earlier_figure_that_is_not_finite_counts_as_not_measured(name: str) -> None:
    known = replace(USUAL, knn=0.9, best_knn=0.9, initial_diagonal=0.1)
    assert verdict(replace(known, **{name: float("nan")})).state == "healthy"  # type: ignore[arg-type]


def pictures(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("samples", "share"),
    [
        (torch.zeros(40, 3, 8, 8, dtype=torch.uint8), 1 / 40),
        (torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 8, 8), 1 / 40),  # one colour each
        (200 + pictures(40) % 4, 1 / 40),  # blank but for the noise of a camera
        (pictures(1).expand(40, 3, 8, 8), 1 / 40),
        (pictures(20).repeat(2, 1, 1, 1), 0.5),
        (pictures(40), 1.0),
        (1e-6 * pictures(40).double(), 1.0),  # floats in small units are not blank
        (torch.ones(40, 2, 100), 1 / 40),  # signals
        (torch.eye(40), 1.0),  # rows of a table
    ],
)
def test_blank_constant_and_duplicated_inputs_are_counted_once(samples: Tensor, share: float) -> None:
    assert distinct_share(samples) == pytest.approx(share)
    found = examine(OneDirection(), distinct_share=distinct_share(samples))["verdict"]
    assert isinstance(found, dict)
    assert found["state"] == ("too-little-data" if share < 0.5 else "collapsed-dimensional")
    assert "lambda" not in found["text"] or share >= 0.5


def _fields(evidence: Evidence) -> dict[str, object]:
    return {name: getattr(evidence, name) for name in evidence.__dataclass_fields__}


def test_the_text_names_the_figures_it_rests_on() -> None:
    found = examine(Memory(TRAIN[0]))
    text = found["verdict"]["text"]  # type: ignore[index]
    assert f"{found['heldout_loss']:.4g}" in text
    assert f"{found['train_loss']:.4g}" in text


def test_losses_are_the_objective_on_both_slices_alike() -> None:
    objective = BarlowTwinsLoss(LAMBD)
    found = overfitting_evidence(Content(), nn.Identity(), TRAIN, HELD, objective)
    expected = [float(objective(*(Content()(view) for view in pair))) for pair in (TRAIN, HELD)]
    assert [found["train_loss"], found["heldout_loss"]] == pytest.approx(expected, rel=1e-4)
    assert found["loss_gap"] == pytest.approx((expected[1] - expected[0]) / expected[1], rel=1e-3)
    with pytest.raises(InputError, match="equal size"):
        overfitting_evidence(Content(), nn.Identity(), views(10, 3), HELD, objective)


def test_the_report_is_json_and_the_networks_are_as_before() -> None:
    encoder, projector = nn.Sequential(Content(), nn.BatchNorm1d(WIDTH)), nn.Sequential(nn.Linear(WIDTH, 32))
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    labels = np.arange(400) % 3
    found = health(encoder, projector, HELD, BarlowTwinsLoss(LAMBD), labels=labels)
    assert json.loads(json.dumps(found)) == found
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert found["class_distances"]["ratio"] == pytest.approx(1.0, abs=0.05)
    assert (found["n"], found["feature_dim"], found["width"]) == (400, WIDTH, 32)


def test_figures_of_a_known_encoder() -> None:
    found = health(Content(), nn.Identity(), HELD, BarlowTwinsLoss(LAMBD))
    assert found["effective_rank"] == pytest.approx(WIDTH, rel=0.05)
    assert found["diagonal"] == pytest.approx(1 / 1.01, abs=0.005)  # noise variance 0.01 beside a content of 1
    assert found["off_diagonal"] == pytest.approx(np.sqrt(2 / np.pi / 400), rel=0.2)  # sampling noise alone
    assert found["dead_share"] == 0.0


@pytest.mark.parametrize(("width", "batch"), [(8, 32), (64, 16)])
def test_the_expected_loss_is_the_mean_loss_of_unrelated_embeddings(width: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    objective, plain = MixedBarlowTwinsLoss(LAMBD, 4.0), BarlowTwinsLoss(LAMBD)
    sums: dict[str, list[float]] = {"mix": [], "invariance": [], "redundancy": []}
    for _ in range(400):
        z_a, z_b, z_m = (torch.randn(batch, width, generator=generator, dtype=torch.float64) for _ in range(3))
        mix = torch.rand((), generator=generator, dtype=torch.float64)
        permutation = torch.randperm(batch, generator=generator)
        terms = objective.terms(z_a, z_b, z_m, mix, permutation)
        assert plain.terms(z_a, z_b)["redundancy"] == pytest.approx(float(terms["redundancy"]))
        for name, values in sums.items():
            values.append(float(terms[name]))
    expected = expected_initial_loss(width, batch, LAMBD, 4.0)
    for name, values in sums.items():
        assert expected[name] == pytest.approx(np.mean(values), rel=0.02), name
    assert expected["loss"] == pytest.approx(sum(expected[name] for name in sums))
    assert "mix" not in expected_initial_loss(width, batch, LAMBD)


def test_an_expected_loss_without_a_batch_is_refused() -> None:
    with pytest.raises(InputError, match="a batch of 3"):
        expected_initial_loss(64, 2, LAMBD)
