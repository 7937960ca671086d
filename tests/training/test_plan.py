"""What a run chooses for itself where the settings leave it open."""

from typing import Any

import numpy as np
import pytest
import torch

from barlow.config import config_from_settings
from barlow.data import open_source
from barlow.errors import InputError
from barlow.plan import choose_lambd, make_plan, resolve_recipe
from barlow.views import view_maker


@pytest.mark.parametrize(
    ("width", "batch", "lambd"),
    [
        (8192, 2048, 0.0051),  # the official code
        (1024, 256, 1 / 128),  # the released Mixed Barlow Twins
        (16, 64, 1 / 128),
        (512, 64, 1 / 256),
        (4096, 256, 1 / 512),
        (65_536, 256, 1 / 8192),
    ],
)
def test_lambda_is_the_papers_at_their_width_and_batch_and_never_drowns_the_diagonal(
    width: int, batch: int, lambd: float
) -> None:
    config = config_from_settings({"projector": (512, width), "batch_size": batch})
    assert choose_lambd(config) == pytest.approx(lambd, rel=1e-12)


SAMPLES = {
    "gray": (24, 1, 20, 20),
    "colour": (24, 3, 20, 20),
    "multispectral": (24, 5, 20, 20),
    "signal": (24, 2, 90),
    "table": (24, 6),
}


def samples(kind: str) -> np.ndarray:
    """Float32 samples, of which the channels have units of their own and the last does not change."""
    x = np.random.default_rng(3).random(SAMPLES[kind], dtype=np.float32) ** 2
    if kind in ("signal", "table"):
        x = (x - 0.3) * np.logspace(-1, 1, x.shape[1], dtype=np.float32).reshape(-1, *[1] * (x.ndim - 2))
    x[:, -1] = x[0, -1].flat[0] if x.shape[1] > 1 else x[:, -1]
    return x


def first_views(x: np.ndarray, **settings: object) -> list[torch.Tensor]:
    """The views of the first epoch, with what a run works out from the data alone."""
    plan = make_plan(config_from_settings({"batch_size": 8, "holdout": 0.0, **settings}), open_source(x))
    make = view_maker(
        resolve_recipe(plan.recipe),
        image_size=plan.image_size,
        mean=plan.mean,
        std=plan.std,
        seed=1,
        reference=torch.from_numpy(x) if plan.kind == "table" else None,
        value_range=plan.value_range,
    )
    return make(torch.from_numpy(x), torch.arange(len(x)), 0)


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e-3, 7.3, 1e6])
@pytest.mark.parametrize("kind", SAMPLES)
def test_the_unit_of_the_data_does_not_change_the_views(kind: str, factor: float) -> None:
    x = samples(kind)
    recipe = {"gray": "digits", "colour": "imagenet"}.get(kind, "auto")  # with noise, solarize and blur
    ours, theirs = first_views(x, recipe=recipe), first_views(x * np.float32(factor), recipe=recipe)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all()
        assert a.std() > 0.3
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_far_from_zero_the_deviation_is_still_that_of_the_data() -> None:
    x = np.random.default_rng(0).normal(0, 1e-3, (40, 2, 60)).astype(np.float32) + np.float32(8)
    wide = x.astype(np.float64)
    plan = make_plan(config_from_settings({"batch_size": 8}), open_source(x))
    np.testing.assert_allclose(plan.std, wide.std(axis=(0, 2)), rtol=1e-6)


def test_eight_bit_pictures_stored_as_floats_have_the_range_of_eight_bits() -> None:
    dim = np.random.default_rng(0).integers(0, 90, (30, 3, 8, 8), dtype=np.uint8)
    config = config_from_settings({"batch_size": 8})
    stored, floats = (make_plan(config, open_source(x)) for x in (dim, dim.astype(np.float32) / 255))
    assert stored.value_range == floats.value_range == (0.0, 1.0)
    np.testing.assert_allclose(floats.std, stored.std, rtol=1e-6)


def test_a_given_deviation_is_taken_as_it_is() -> None:
    config = config_from_settings({"batch_size": 8, "std": (1e-9, 3e-5), "mean": (0.0, 1e-7)})
    plan = make_plan(config, open_source(samples("signal")))
    assert (plan.std, plan.mean) == ((1e-9, 3e-5), (0.0, 1e-7))


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(name: str, value: float) -> None:
    x = samples("signal")
    with pytest.raises(InputError, match=f"--{name} must be .*, got {value}"):
        config_from_settings({"batch_size": 8, name: (1.0, value)})
    x[3, 1, 5] = value
    with pytest.raises(InputError, match="array: .*hold NaN or infinity"):
        make_plan(config_from_settings({"batch_size": 8}), open_source(x))


@pytest.mark.parametrize(
    ("settings", "side", "encoder", "rates"),
    [
        ({}, 32, "whitenet", (0.06, 0.006)),
        ({"batch_size": 64}, 32, "whitenet", (0.03, 0.003)),  # the root of a quarter of 256
        ({}, 64, "resnet18", (0.01, 0.01)),
        ({"encoder": "resnet18"}, 32, "resnet18", (0.01, 0.01)),
        ({"optimizer": "muon", "lr": 0.02}, 64, "resnet18", (0.02, 0.002)),
    ],
)
def test_small_images_on_a_cpu_get_the_quick_encoder_and_its_optimizer(
    settings: dict[str, Any], side: int, encoder: str, rates: tuple[float, float]
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (300, side, side, 3), dtype=np.uint8)
    config = config_from_settings({"device": "cpu", "holdout": 0.0, **settings})
    plan = make_plan(config, open_source(images))
    assert plan.encoder == encoder
    assert (plan.lr, plan.lr_biases) == pytest.approx(rates)
    assert make_plan(config, open_source(images), encoder="resnet50").encoder == "resnet50"  # of a run to resume
