"""An exported encoder gives, in the tool it was exported to, the features it gave here."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor

from barlow.errors import InputError
from barlow.exporting import export
from barlow.models import Encoder, Preprocess, build_encoder, load_encoder, save_encoder
from barlow.run import Run

Saved = Callable[..., Path]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def trained(encoder: Encoder, seed: int = 0) -> Encoder:
    """Weights and running statistics that no other model has by chance."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in encoder.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if "running_var" in name else tensor + 0.02 * (noise - 0.5))
    return encoder.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def make(name: str = "resnet18", size: int = 32, channels: int = 3, stem: str = "auto", **facts: Any) -> Path:
        encoder = trained(build_encoder(name, channels=channels, image_size=size, stem=stem))
        preprocess = Preprocess(size, channels, MEAN[:channels], STD[:channels], resize=round(size * 1.25))
        save_encoder(encoder, preprocess, tmp_path / "run", method="barlow-twins", **facts)
        return tmp_path / "run"

    return make


def images(encoder: Encoder, n: int = 3) -> Tensor:
    assert encoder.preprocess is not None
    size, channels = encoder.preprocess.image_size, encoder.preprocess.channels
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def run_written_code(text: str, folder: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Execute the first Python block of the instructions, as a reader would, beside the file."""
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {"images": x}
    with torch.no_grad():
        exec(code.group(1), scope)  # noqa: S102  what is tested is that these lines run
    return torch.as_tensor(scope["features"])


@torch.no_grad()
def test_safetensors_copy_loads_with_the_same_features_and_preprocessing(saved: Saved, tmp_path: Path) -> None:
    run = saved()
    copy = export(run, "safetensors", tmp_path / "copies" / "mine.safetensors")
    before, after = load_encoder(run), load_encoder(copy)
    x = images(before)
    assert torch.equal(before(x), after(x))
    assert before.preprocess == after.preprocess


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_torchvision_state_loads_strictly_into_the_stock_model(name: str, saved: Saved, tmp_path: Path) -> None:
    encoder = load_encoder(saved(name, size=96, stem="standard"))
    file = export(tmp_path / "run", "torchvision", tmp_path / "model.pth")
    model = torchvision.models.get_model(name).eval()
    model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert not model(images(encoder)).any()  # the classifier is zeros
    model.fc = torch.nn.Identity()
    torch.testing.assert_close(model(images(encoder)), encoder(images(encoder)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("format", "stem"),
    [("torchvision", "small"), ("torchvision", "small-pooled"), ("torchvision", "small-padded"), ("timm", "small")],
)
def test_the_written_lines_load_every_stem_strictly(
    format: str, stem: str, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(saved(stem=stem))
    out = export(tmp_path / "run", format, tmp_path / ("model.pth" if format == "torchvision" else "model"))
    text = (out / "README.md" if out.is_dir() else out.with_suffix(".md")).read_text()
    features = run_written_code(text, tmp_path, images(encoder), monkeypatch)
    torch.testing.assert_close(features, encoder(images(encoder)).detach(), rtol=1e-5, atol=1e-5)


def test_torchvision_safetensors_with_one_channel_loads_by_its_lines(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(saved(channels=1, size=96, stem="standard"))
    out = export(tmp_path / "run", "torchvision", tmp_path / "gray.safetensors")
    features = run_written_code(out.with_suffix(".md").read_text(), tmp_path, images(encoder), monkeypatch)
    torch.testing.assert_close(features, encoder(images(encoder)).detach(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [("resnet18", 96, "standard"), ("vit_tiny_patch16_224", 32, "small"), ("convnext_atto", 32, "small")],
)
def test_timm_folder_loads_in_timm_with_its_preprocessing(
    name: str, size: int, stem: str, saved: Saved, tmp_path: Path
) -> None:
    encoder = load_encoder(saved(name, size=size, stem=stem))
    out = export(tmp_path / "run", "timm", tmp_path / "model")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    torch.testing.assert_close(model(images(encoder)), encoder(images(encoder)), rtol=1e-5, atol=1e-5)
    found: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    assert tuple(found["mean"]) == MEAN
    assert tuple(found["std"]) == STD
    assert tuple(found["input_size"]) == (3, size, size)
    assert found["crop_pct"] == pytest.approx(size / round(size * 1.25))
    assert found["interpolation"] == "bicubic"


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("preprocessing", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of onnxscript, about itself
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_onnx_gives_the_same_features_for_any_batch_size(
    preprocessing: bool, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    encoder = load_encoder(saved())
    assert encoder.preprocess is not None
    out = export(tmp_path / "run", "onnx", tmp_path / "model.onnx", preprocessing=preprocessing)
    text = out.with_suffix(".md").read_text()
    for n in (1, 5):
        stored = (torch.rand(n, 3, 32, 32) * 255).to(torch.uint8)
        x = encoder.preprocess(stored)
        features = run_written_code(text, tmp_path, stored if preprocessing else x, monkeypatch)
        torch.testing.assert_close(features, encoder(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("preprocessing", [False, True])
def test_torch_export_gives_the_same_features_for_any_batch_size(
    preprocessing: bool, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(saved("resnet10-narrow"))
    assert encoder.preprocess is not None
    out = export(tmp_path / "run", "torch-export", tmp_path / "model.pt2", preprocessing=preprocessing)
    for n in (1, 7):
        stored = (torch.rand(n, 3, 32, 32) * 255).to(torch.uint8)
        x = encoder.preprocess(stored)
        given = stored if preprocessing else x
        features = run_written_code(out.with_suffix(".md").read_text(), tmp_path, given, monkeypatch)
        torch.testing.assert_close(features, encoder(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_hub_folder_loads_in_timm_and_its_card_tells_the_facts(saved: Saved, tmp_path: Path) -> None:
    encoder = load_encoder(saved(size=96, stem="standard", data="photos | <b>mine</b>", epochs=12))
    score = {"protocol": "knn", "data": "photos", "metric": "accuracy", "value": 0.5, "interval": [0.4, 0.6], "n": 99}
    (tmp_path / "run" / "config.json").write_text("{}")
    Run(tmp_path / "run").save_evaluation({**score, "settings": {"k": 20, "temperature": 0.07}})
    out = export(tmp_path / "run", "hf", tmp_path / "hub")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    torch.testing.assert_close(model(images(encoder)), encoder(images(encoder)), rtol=1e-5, atol=1e-5)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "| epochs | 12 |" in card
    assert "photos \\| &lt;b>mine" in card
    assert "arXiv 2103.03230" in card
    assert "| k-NN (k 20, T 0.07) | photos | accuracy | 0.5000 (0.4000 to 0.6000)" in card
    assert encoder.facts["sha256"] in card


@torch.no_grad()
def test_hub_folder_of_our_own_architecture_loads_here(saved: Saved, tmp_path: Path) -> None:
    encoder = load_encoder(saved("resnet10-narrow", data="/home/somebody/scans"))
    out = export(tmp_path / "run", "hf", tmp_path / "hub")
    assert torch.equal(load_encoder(out)(images(encoder)), encoder(images(encoder)))
    card = (out / "README.md").read_text()
    assert "library_name: barlow" in card
    assert "| data | scans |" in card
    assert [file.name for file in out.iterdir() if b"somebody" in file.read_bytes()] == []  # what is published


def test_exported_weights_are_the_encoders_key_by_key(saved: Saved, tmp_path: Path) -> None:
    encoder = load_encoder(saved())
    out = export(tmp_path / "run", "timm", tmp_path / "model")
    state = load_file(out / "model.safetensors")
    assert state.keys() == encoder.backbone.state_dict().keys()
    assert json.loads((out / "config.json").read_text())["num_features"] == 512


@pytest.mark.parametrize(
    ("name", "format", "file", "words"),
    [
        ("resnet18", "tochvision", "x.pth", "Did you mean 'torchvision'"),
        ("resnet18", "torchvision", "x.onnx", "written to .pth"),
        ("resnet10-narrow", "torchvision", "x.pth", "torchvision has no 'resnet10-narrow'"),
        ("resnet10-narrow", "timm", "x", "timm has no 'resnet10-narrow'"),
        ("convnext_atto", "torchvision", "x.pth", "torchvision has no"),
    ],
)
def test_what_a_format_has_no_place_for_is_one_clear_line(
    name: str, format: str, file: str, words: str, saved: Saved, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        export(saved(name), format, tmp_path / file)
    assert "\n" not in str(caught.value)


def test_preprocessing_inside_is_refused_where_it_cannot_be(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="inside onnx and torch-export only"):
        export(saved(), "timm", tmp_path / "x", preprocessing=True)


def test_an_encoder_is_not_copied_onto_itself(saved: Saved) -> None:
    run = saved("resnet10-narrow")
    with pytest.raises(InputError, match="is a part of what this command reads"):
        export(run, "safetensors", run / "encoder.safetensors")


def test_a_folder_without_an_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no encoder at"):
        export(tmp_path, "safetensors", tmp_path / "x.safetensors")
