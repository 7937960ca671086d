import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from barlow.errors import InputError
from barlow.models import Preprocess, build_encoder, build_projector, load_encoder, save_encoder

PREPROCESS = Preprocess(32, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), resize=32)


def test_the_small_stem_keeps_the_resolution_and_is_chosen_up_to_64_pixels() -> None:
    small, standard = (build_encoder("resnet10-narrow", image_size=size) for size in (64, 65))
    x = torch.zeros(2, 3, 64, 64)
    assert (small.architecture.stem, standard.architecture.stem) == ("small", "standard")
    first = small.backbone.maxpool(small.backbone.conv1(x))  # type: ignore[operator]
    assert first.shape[-1] == 64
    assert standard.backbone.maxpool(standard.backbone.conv1(x)).shape[-1] == 16  # type: ignore[operator]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_standard_encoder_is_the_timm_model_of_that_name(name: str) -> None:
    encoder = build_encoder(name, channels=2, image_size=96, stem="standard").eval()
    options: dict[str, Any] = {"img_size": 96} if name.startswith("vit") else {}
    reference = timm.create_model(name, num_classes=0, in_chans=2, **options).eval()
    reference.load_state_dict(encoder.backbone.state_dict(), strict=True)
    x = torch.randn(2, 2, 96, 96)
    torch.testing.assert_close(encoder(x), reference(x), rtol=0, atol=0)
    assert encoder(x).shape == (2, encoder.feature_dim)


@pytest.mark.parametrize("name", ["resnet10-narrow", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("channels", [1, 5])
def test_what_is_saved_is_what_is_loaded(name: str, channels: int, tmp_path: Path) -> None:
    encoder = build_encoder(name, channels=channels, image_size=32)
    encoder.train()(torch.randn(8, channels, 32, 32))  # running statistics that are not the initial ones
    preprocess = Preprocess(32, channels, (0.5,) * channels, (0.2,) * channels)
    save_encoder(encoder, preprocess, tmp_path, method="barlow-twins")
    loaded = load_encoder(tmp_path)
    images = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8)
    assert loaded.preprocess == preprocess
    assert not loaded.training
    assert loaded.facts["method"] == "barlow-twins"
    expected = encoder.eval()(preprocess(images))
    torch.testing.assert_close(loaded(loaded.preprocess(images)), expected, rtol=0, atol=0)


def test_the_callers_own_module_is_measured_saved_and_loaded_with_the_module(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1))

    encoder = build_encoder(make(), image_size=32)
    assert encoder.feature_dim == 7
    save_encoder(encoder, PREPROCESS, tmp_path)
    with pytest.raises(InputError, match="pass it as load_encoder"):
        load_encoder(tmp_path)
    loaded = load_encoder(tmp_path, module=make())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(x), encoder.eval()(x), rtol=0, atol=0)


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_encoder(build_encoder("resnet10-narrow", image_size=32), PREPROCESS, tmp_path)
    facts = json.loads((tmp_path / "encoder.json").read_text())

    def with_facts(**changed: object) -> None:
        (tmp_path / "encoder.json").write_text(json.dumps({**facts, **changed}))

    with_facts(architecture={**facts["architecture"], "name": "resnet18"})
    with pytest.raises(InputError, match="does not fit the encoder"):
        load_encoder(tmp_path)
    with_facts(architecture={**facts["architecture"], "channels": 4})
    with pytest.raises(InputError, match="an encoder of 4 channels and a preprocessing of 3"):
        load_encoder(tmp_path)
    four = {"channels": 4, "mean": [0.5] * 4, "std": [0.2] * 4}
    with_facts(architecture={**facts["architecture"], "channels": 4}, preprocess={**facts["preprocess"], **four})
    with pytest.raises(InputError, match=r"other shapes for \['conv1.weight'\]"):
        load_encoder(tmp_path)
    with_facts()
    weights = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "encoder.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="SHA-256 differs"):
        load_encoder(tmp_path)
    with pytest.raises(InputError, match="no encoder at"):
        load_encoder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "stem", "message"),
    [
        ("resnt18", "auto", "unknown encoder 'resnt18'. Did you mean 'resnet18'"),
        ("zzzz", "auto", "unknown encoder 'zzzz'. See"),
        ("resnet18", "tiny", "unknown stem 'tiny'"),
        ("efficientnet_b0", "small", "has no small stem"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(name: str, stem: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_encoder(name, stem=stem)


def test_the_projector_normalises_all_layers_but_the_last() -> None:
    kinds = [type(layer).__name__ for layer in build_projector(10, (8, 6, 4))]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    with pytest.raises(InputError, match="2 or more"):
        build_projector(10, (8, 1))
