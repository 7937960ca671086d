"""Checkpoints of other code bases, rebuilt here with torch and torchvision in their layouts, give the same features."""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from barlow.errors import InputError
from barlow.importing import detect_layout, import_checkpoint, read_checkpoint
from barlow.models import Preprocess, load_encoder

State = dict[str, Tensor]


def resnet(name: str = "resnet18", stem: str = "standard") -> nn.Module:
    """A torchvision ResNet without classifier, with running statistics that are not the initial ones."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name)
    model.fc = nn.Identity()
    if stem != "standard":
        model.conv1 = nn.Conv2d(3, 64, 3, 1, padding=2 if stem == "small-padded" else 1, bias=False)
    if stem in ("small", "small-padded"):
        model.maxpool = nn.Identity()
    for key, value in model.state_dict().items():
        if "running_" in key:
            value.copy_(torch.rand_like(value) + 0.5)
    return model.eval()


def prefixed(model: nn.Module, prefix: str) -> State:
    return {prefix + key: value for key, value in model.state_dict().items()}


def numbered(model: nn.Module, prefix: str, *, drop_pooling: bool = False) -> State:
    """The state of Sequential(*children) without the classifier, as two of the code bases build their encoder."""
    kept = [m for name, m in model.named_children() if name != "fc" and not (drop_pooling and name == "maxpool")]
    return prefixed(nn.Sequential(*kept), prefix)


def head(prefix: str) -> State:
    return prefixed(nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)), prefix)


def official_file(model: nn.Module) -> Any:
    return model.state_dict()


def official_checkpoint(model: nn.Module) -> Any:
    inside = prefixed(model, "module.backbone.") | head("module.projector.") | prefixed(nn.BatchNorm1d(4), "module.bn.")
    return {"epoch": 7, "model": inside, "optimizer": {"state": {}, "param_groups": [{"lr": 0.2}]}}


def mixed_cifar(model: nn.Module) -> Any:
    counters = {"f.0.total_ops": torch.zeros(1), "f.3.0.conv1.total_params": torch.zeros(1)}
    return numbered(model, "f.", drop_pooling=True) | head("g.") | counters


def mixed_tiny(model: nn.Module) -> Any:
    return numbered(model, "f.") | head("g.")


def solo_learn(model: nn.Module) -> Any:
    inside = prefixed(model, "backbone.") | head("projector.") | prefixed(nn.Linear(512, 10), "classifier.")
    return {"epoch": 3, "state_dict": inside, "hyper_parameters": {"lr": 0.3}}


def old_solo_learn(model: nn.Module) -> Any:
    return {"state_dict": prefixed(model, "encoder.") | prefixed(nn.Linear(512, 10), "classifier.")}


def lightly_numbered(model: nn.Module) -> Any:
    return {"state_dict": numbered(model, "backbone.") | head("projection_head.layers.")}


def lightly_named(model: nn.Module) -> Any:
    classifier = prefixed(nn.Linear(512, 10), "online_classifier.linear.")
    return {"state_dict": prefixed(model, "backbone.") | head("projection_head.layers.") | classifier}


CASES: list[tuple[Callable[[nn.Module], Any], str, str, str | None]] = [
    (official_file, "official", "standard", None),
    (official_checkpoint, "official", "standard", None),
    (mixed_cifar, "mixed", "small", "cifar10"),
    (mixed_tiny, "mixed", "small-pooled", "tiny-imagenet"),
    (solo_learn, "solo-learn", "small-padded", "cifar10"),
    (solo_learn, "solo-learn", "standard", "imagenet"),
    (old_solo_learn, "solo-learn", "small-padded", "cifar100"),
    (lightly_numbered, "lightly", "standard", "imagenet"),
    (lightly_named, "lightly", "small", "cifar10"),
]


@torch.no_grad()
@pytest.mark.parametrize(("layout_of", "layout", "stem", "data"), CASES)
def test_imported_encoder_gives_the_features_of_the_original(
    layout_of: Callable[[nn.Module], Any], layout: str, stem: str, data: str | None, tmp_path: Path
) -> None:
    original = resnet(stem=stem)
    torch.save(layout_of(original), tmp_path / "theirs.pth")
    encoder = load_encoder(import_checkpoint(tmp_path / "theirs.pth", tmp_path / "ours", data=data))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(encoder(x), original(x), rtol=1e-5, atol=1e-5)
    assert encoder.architecture.stem == stem
    assert encoder.facts["layout"] == layout


@torch.no_grad()
@pytest.mark.slow
def test_the_official_resnet50_imports_with_the_preprocessing_of_its_evaluation(tmp_path: Path) -> None:
    original = resnet("resnet50")
    torch.save(official_checkpoint(original), tmp_path / "checkpoint.pth")
    encoder = load_encoder(import_checkpoint(tmp_path / "checkpoint.pth", tmp_path / "ours"))
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(encoder(x), original(x), rtol=1e-4, atol=1e-4)
    assert encoder.architecture.name == "resnet50"
    shown = Preprocess(224, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256, interpolation="bilinear")
    assert encoder.preprocess == shown


def test_a_key_of_no_known_part_is_an_error(tmp_path: Path) -> None:
    torch.save(official_checkpoint(resnet())["model"] | {"module.extra.weight": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="no part for the keys"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_missing_weight_is_an_error(tmp_path: Path) -> None:
    state = resnet().state_dict()
    del state["layer3.1.bn2.running_mean"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"layer3\.1\.bn2\.running_mean"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours")


def test_a_weight_of_another_shape_is_an_error(tmp_path: Path) -> None:
    torch.save(resnet().state_dict() | {"bn1.bias": torch.zeros(65)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"bn1\.bias"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours")


def test_preprocessing_that_the_file_cannot_tell_must_be_named(tmp_path: Path) -> None:
    torch.save(mixed_cifar(resnet(stem="small")), tmp_path / "x.pth")
    with pytest.raises(InputError, match="say what the encoder was trained on"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours", data="cifar-10")


def test_hyper_parameters_of_unknown_classes_are_read_over_without_running_anything(tmp_path: Path) -> None:
    model = resnet(stem="small-padded")
    torch.save({**solo_learn(model), "hyper_parameters": {"cfg": argparse.Namespace(lr=0.3)}}, tmp_path / "x.ckpt")
    state = read_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(state["backbone.conv1.weight"], model.state_dict()["conv1.weight"])


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def test_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}, "x": _Bomb(marker)}, tmp_path / "evil.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"x": _Bomb(marker)}))
    for name in ("evil.pth", "old.pth"):
        with pytest.raises(InputError):
            import_checkpoint(tmp_path / name, tmp_path / "ours")
    assert not marker.exists()


def test_a_text_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("not a checkpoint")
    with pytest.raises(InputError, match="not a readable PyTorch checkpoint") as caught:
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    assert "\n" not in str(caught.value)
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        import_checkpoint(tmp_path / "x.safetensors", tmp_path / "ours")


def test_keys_of_nobody_are_named() -> None:
    with pytest.raises(InputError, match=r"no known layout: blocks\.0\.attn"):
        detect_layout(["blocks.0.attn"])


def test_a_generator_without_relu_in_its_stem_is_refused(tmp_path: Path) -> None:
    model = resnet(stem="small")
    skipped = ("fc", "relu", "maxpool")
    kept = [m for name, m in model.named_children() if name not in skipped]
    torch.save({"state_dict": prefixed(nn.Sequential(*kept), "backbone.")}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="ResNetGenerator leaves the ReLU out"):
        import_checkpoint(tmp_path / "x.ckpt", tmp_path / "ours", data="cifar10")


@torch.no_grad()
@pytest.mark.parametrize(("layout_of", "layout", "stem", "data"), CASES)
def test_names_that_ddp_and_compile_add_anywhere_are_taken_out(
    layout_of: Callable[[nn.Module], Any], layout: str, stem: str, data: str | None, tmp_path: Path
) -> None:
    original = resnet(stem=stem)
    content = layout_of(original)
    inside = next((content[name] for name in ("state_dict", "model") if name in content), content)
    plain = {key.removeprefix("module."): value for key, value in inside.items()}
    wrapped = {f"module.{key}".replace(".", "._orig_mod.", 2): value for key, value in plain.items()}
    torch.save({"model": wrapped}, tmp_path / "theirs.pth")
    encoder = load_encoder(import_checkpoint(tmp_path / "theirs.pth", tmp_path / "ours", data=data))
    assert encoder.facts["layout"] == layout
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(encoder(x), original(x), rtol=1e-5, atol=1e-5)


def test_weights_under_two_names_are_refused(tmp_path: Path) -> None:
    state = resnet().state_dict()
    torch.save(state | {"module.conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="with and without module or _orig_mod"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours")


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m}, lambda m: {"state_dict": m, "epoch": 3}])
def test_a_whole_pickled_module_is_told_to_be_saved_as_weights(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.save(wrap(resnet()), tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"pickled ResNet.*torch\.save\(model\.state_dict\(\)") as caught:
        import_checkpoint(tmp_path / "whole.pth", tmp_path / "ours")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer1.0.bn1.bias": torch.full((64,), float("nan"))}, "layer1.0.bn1.bias holds NaN or infinity"),
        ({"layer1.0.bn1.bias": torch.full((64,), float("inf"))}, "layer1.0.bn1.bias holds NaN or infinity"),
        ({"layer1.0.bn1.bias": torch.zeros(64, dtype=torch.int64)}, "holds torch.int64, expected floating-point"),
        ({"bn1.weight": torch.ones(64).to_sparse()}, "bn1.weight is not a dense tensor"),
        ({"conv1.weight": torch.zeros(64)}, r"has the shape \[64\], expected \[out, in, height, width\]"),
        ({"conv1.weight": torch.tensor(1.0)}, r"has the shape \[\]"),
        ({"layer1.0.conv3.weight": torch.zeros(64)}, "no known architecture"),
        ({"layer9": torch.zeros(64)}, "missing, unexpected or of another shape"),
    ],
)
def test_weights_that_cannot_be_an_encoders_are_one_line(changed: State, message: str, tmp_path: Path) -> None:
    torch.save(resnet().state_dict() | changed, tmp_path / "x.pth")
    with pytest.raises(InputError, match=message) as caught:
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "children", [("0",), ("0", "1"), ("0", "x", "4", "5", "6", "7"), ("0", "1", "4", "5", "6", "²")]
)
def test_a_sequential_of_other_children_is_one_line(children: tuple[str, ...], tmp_path: Path) -> None:
    torch.save({f"f.{child}.weight": torch.zeros(64, 3, 3, 3) for child in children}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="children at positions"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "ours", data="cifar10")
