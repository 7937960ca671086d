"""Encoders: timm models by name, three small ones of our own, or the caller's module."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from barlow.errors import InputError, suggest
from barlow.models.preprocess import Preprocess
from barlow.models.small import mlp, resnet1d, resnet10_narrow
from barlow.models.whitenet import WhiteNet, whitenet

STEMS = ("auto", "small", "small-pooled", "small-padded", "standard")
SMALL_IMAGE = 64  # up to this many pixels a side, a stride-4 stem would throw away what there is to see
OWN: dict[str, Callable[[int, int], nn.Module]] = {  # of channels and image size
    "whitenet": whitenet,
    "resnet10-narrow": lambda channels, _: resnet10_narrow(channels),
    "resnet1d": lambda channels, _: resnet1d(channels),
    "mlp": lambda channels, _: mlp(channels),
}


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build the same encoder again."""

    name: str
    """timm model name, `whitenet`, `resnet10-narrow`, `resnet1d`, `mlp`, or `custom` for the caller's own module"""
    channels: int
    """input channels (features, for tables)"""
    image_size: int
    """input side in pixels; 0 for signals and tables"""
    stem: str
    """standard; small (3x3 convolution, no pooling); small-pooled (3x3, then pooling: the released Mixed Barlow Twins
    models of Tiny ImageNet and STL-10); small-padded (3x3 with padding 2, no pooling: solo-learn on CIFAR)"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Encoder(nn.Module):
    """A backbone with what is known of it: `[B, C, h, w]` -> features `[B, feature_dim]`."""

    preprocess: Preprocess | None

    def __init__(self, backbone: nn.Module, architecture: Architecture, feature_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.architecture = architecture
        self.feature_dim = feature_dim
        self.preprocess = None
        self.facts: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone(x)
        return features.flatten(1)

    @property
    def first_layer_fits_data(self) -> bool:
        """Whether the first layer comes from images: `fit_first_layer` before training then."""
        return isinstance(self.backbone, WhiteNet)

    def fit_first_layer(self, images: Tensor) -> None:
        """Set a first layer that comes from the data, from normalised images `[N, C, h, w]`."""
        assert isinstance(self.backbone, WhiteNet)  # see `first_layer_fits_data`
        self.backbone.whiten.fit(images)

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass. Raises InputError where the backbone does not support it."""
        switch = getattr(self.backbone, "set_grad_checkpointing", None)
        if switch is None:
            raise InputError(f"encoder '{self.architecture.name}' does not support activation checkpointing")
        switch()


def build_encoder(encoder: str | nn.Module, *, channels: int = 3, image_size: int = 224, stem: str = "auto") -> Encoder:
    """An encoder with random weights.

    `encoder` is a name (see `Architecture.name`) or a module that maps a batch to `[B, F]`. `stem="auto"` picks
    the small stem for images up to 64 pixels where the architecture has one. Raises InputError for an unknown
    name (with the nearest right one), an unknown stem, or a module whose output is not one row per sample.
    """
    if stem not in STEMS:
        raise InputError(f"unknown stem '{stem}'. {suggest(stem, STEMS)}")
    if isinstance(encoder, nn.Module):
        architecture = Architecture("custom", channels, image_size, "standard")
        return Encoder(encoder, architecture, _probe_width(encoder, channels, image_size))
    chosen = _choose_stem(encoder, image_size, stem)
    architecture = Architecture(encoder, channels, image_size, chosen)
    backbone = _build_backbone(architecture)
    width = getattr(backbone, "num_features", None) or 256
    return Encoder(backbone, architecture, int(width))


def _build_backbone(architecture: Architecture) -> nn.Module:
    name, channels = architecture.name, architecture.channels
    if name in OWN:
        backbone = OWN[name](channels, architecture.image_size)
        if name == "resnet10-narrow" and architecture.stem != "standard":
            _shrink_resnet_stem(backbone, channels, architecture.stem)
        return backbone
    options = timm_options(architecture)
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # each architecture has its own conditions
        raise InputError(
            f"encoder '{name}' cannot be built for {channels} channels and {architecture.image_size} pixels: {error}"
        ) from None
    if architecture.stem != "standard" and _family(name) == "resnet":
        _shrink_resnet_stem(backbone, channels, architecture.stem)
    return backbone


def _family(name: str) -> str:
    """The timm file that defines the model, which is what decides how its stem is changed."""
    if name in OWN:
        return "resnet" if name == "resnet10-narrow" else name
    if not timm.is_model(name):
        known = [*OWN, *timm.list_models()]
        hint = suggest(name, known) if _near(name, known) else "See `timm.list_models()` for the names."
        raise InputError(f"unknown encoder '{name}'. {hint}")
    return timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]


def _near(name: str, known: list[str]) -> bool:
    return suggest(name, known).startswith("Did you mean")


def _choose_stem(name: str, image_size: int, stem: str) -> str:
    has_small = _family(name) in ("resnet", "vision_transformer", "convnext")
    if stem.startswith("small") and not has_small:
        raise InputError(f"encoder '{name}' has no small stem; use --stem standard or a ResNet, ViT or ConvNeXt")
    if stem.startswith("small-") and _family(name) != "resnet":
        raise InputError(f"stem '{stem}' is a ResNet's; encoder '{name}' has small and standard")
    if stem == "auto":
        return "small" if has_small and image_size <= SMALL_IMAGE else "standard"
    return stem


def timm_options(architecture: Architecture) -> dict[str, Any]:
    """Arguments to `timm.create_model` beside the name, channels and number of classes."""
    family, small = _family(architecture.name), architecture.stem == "small"
    if family == "vision_transformer":
        patch = {"patch_size": max(2, 2 ** round(math.log2(architecture.image_size / 8)))} if small else {}
        return {"img_size": architecture.image_size, **patch}
    if family == "convnext" and small:
        return {"patch_size": 1 if architecture.image_size <= 32 else 2}
    return {}


def _shrink_resnet_stem(backbone: nn.Module, channels: int, stem: str) -> None:
    """3x3 convolution of stride 1 and no pooling, as the small-image experiments of both papers' code use."""
    bn: nn.Module = backbone.bn1  # type: ignore[assignment]
    width = int(bn.num_features)  # type: ignore[arg-type]
    conv = nn.Conv2d(channels, width, 3, 1, padding=2 if stem == "small-padded" else 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    backbone.conv1 = conv
    if stem != "small-pooled":
        backbone.maxpool = nn.Identity()


@torch.no_grad()
def _probe_width(module: nn.Module, channels: int, image_size: int) -> int:
    shape = (2, channels, image_size, image_size) if image_size else (2, channels)
    was_training = module.training
    module.eval()
    out = module(torch.zeros(shape))
    module.train(was_training)
    if not isinstance(out, Tensor) or out.shape[0] != 2:
        raise InputError(f"the encoder must map a batch [B, ...] to features [B, F], got {type(out).__name__}")
    return out.flatten(1).shape[1]
