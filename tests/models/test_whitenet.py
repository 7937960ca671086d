"""The whitening first layer, and the encoder around it from training to export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from barlow import load_encoder, pretrain
from barlow.data import open_source
from barlow.exporting import export
from barlow.models import build_encoder
from barlow.models.network import _SmallMapConv
from barlow.models.whitenet import WhiteningConv

SETTINGS: dict[str, Any] = {
    "encoder": "whitenet",
    "batch_size": 16,
    "epochs": 1,
    "projector": (16, 16),
    "device": "cpu",
}


def waves(count: int, channels: int, side: int = 16) -> torch.Tensor:
    """Smooth random images, whose neighbouring pixels and channels are correlated as those of photographs are."""
    noise = torch.randn(count, channels + 1, side + 4, side + 4, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1)
    return smooth[:, 1:] + smooth[:, :1]


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_fitted_to_images_the_first_layer_makes_their_patches_uncorrelated(channels: int) -> None:
    images, layer = 20 * waves(300, channels), WhiteningConv(channels)
    layer.fit(images)
    out = layer(images)[:, :, :-1, :-1]  # without the padded edge
    positive, negative = out.transpose(0, 1).flatten(1).chunk(2)
    assert torch.equal(positive, -negative)
    # Directions of small variance are damped by the floor, never blown up; the strong ones have variance 1.
    covariance = torch.cov(positive.double())
    torch.testing.assert_close(covariance, torch.eye(len(covariance), dtype=torch.float64), rtol=0, atol=2e-3)


def test_the_first_layer_is_a_function_of_the_images_and_not_of_their_order() -> None:
    images = waves(100, 3)
    one, other = WhiteningConv(3), WhiteningConv(3)
    one.fit(images)
    other.fit(images.flip(0))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4, 32])
@pytest.mark.parametrize(("side", "places"), [(32, 4), (64, 4), (224, 7)])
def test_features_come_from_few_places_whatever_the_side(side: int, places: int, channels: int) -> None:
    encoder = build_encoder("whitenet", channels=channels, image_size=side).eval()
    x = torch.zeros(1, channels, side, side)
    assert encoder(x).shape == (1, encoder.feature_dim)
    backbone = encoder.backbone
    assert backbone.stages(backbone.act(backbone.whiten(x))).shape[-2:] == (places, places)  # type: ignore[operator]


def test_pretraining_fits_the_first_layer_to_training_images_and_leaves_it_alone(tmp_path: Path) -> None:
    images = (waves(80, 3) * 60 + 128).clamp(0, 255).to(torch.uint8)
    np.save(tmp_path / "images.npy", images.numpy())
    run = pretrain(tmp_path / "images.npy", tmp_path / "run", quiet=True, optimizer="muon", ema=0.5, **SETTINGS)
    encoder = load_encoder(run)
    assert encoder.preprocess is not None
    source = open_source(tmp_path / "images.npy")
    expected = WhiteningConv(3)
    expected.fit(torch.cat([encoder.preprocess(source.read(i)[None]) for i in range(80)]))
    found = encoder.backbone.get_parameter("whiten.weight")
    # Fitted on the 72 images that are not held out, so close to the fit on all of them and far from the random start.
    similarity = nn.functional.cosine_similarity(found.flatten(1), expected.weight.flatten(1))
    assert similarity[:6].abs().min() > 0.9  # a sign may flip where the two largest entries tie
    again = pretrain(tmp_path / "images.npy", tmp_path / "again", quiet=True, optimizer="muon", **SETTINGS)
    torch.testing.assert_close(load_encoder(again).backbone.get_parameter("whiten.weight"), found, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "onnx", "torch-export"])
def test_it_is_exported(form: str, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", (waves(40, 3) * 60 + 128).clamp(0, 255).to(torch.uint8).numpy())
    run = pretrain(tmp_path / "images.npy", tmp_path / "run", quiet=True, **SETTINGS)
    out = tmp_path / f"encoder.{ {'torch-export': 'pt2'}.get(form, form) }"
    export(run, format=form, out=out, preprocessing=form != "safetensors")
    images = torch.from_numpy(np.load(tmp_path / "images.npy"))[:3]
    encoder = load_encoder(run)
    assert encoder.preprocess is not None
    with torch.no_grad():
        expected = encoder(encoder.preprocess(images))
    if form == "safetensors":
        torch.testing.assert_close(load_encoder(out)(encoder.preprocess(images)), expected)
    elif form == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(out)
        (features,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        np.testing.assert_allclose(features, expected.numpy(), rtol=1e-3, atol=1e-4)
    else:
        loaded = torch.export.load(out).module()
        torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "outputs", "side", "stride"), [(5, 7, 3, 1), (5, 7, 4, 2), (5, 7, 5, 2), (8, 4, 6, 1)]
)
def test_the_convolution_of_small_maps_has_the_gradients_of_a_convolution(
    inputs: int, outputs: int, side: int, stride: int
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, inputs, side, side, generator=g).bfloat16().requires_grad_()
    weight = torch.randn(outputs, inputs, 3, 3, generator=g).bfloat16().float().requires_grad_()
    y = _SmallMapConv.apply(x, weight, stride)
    upstream = torch.randn(y.shape, generator=g).bfloat16()
    ours = torch.autograd.grad(y, (x, weight), upstream)
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    exact = nn.functional.conv2d(exact_x, exact_weight, padding=1, stride=stride)
    theirs = torch.autograd.grad(exact, (exact_x, exact_weight), upstream.double())
    for got, want in zip((y, *ours), (exact, *theirs), strict=True):
        assert (got.double() - want).norm() < 5e-3 * want.norm()  # bfloat16 keeps 8 bits
