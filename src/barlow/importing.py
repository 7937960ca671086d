"""Encoders trained elsewhere, read strictly: the official code, Mixed Barlow Twins, solo-learn, lightly.

What each writes (key names from their repositories):

    official     resnet50.pth: torchvision's names without fc; checkpoint.pth: {"model": module.backbone.*,
                 module.projector.*, module.bn.*}; the ImageNet script of Mixed Barlow Twins writes the same two
    mixed        Mixed Barlow Twins on small images: f.<i>.*, a Sequential of torchvision's children, and the head g.*
    solo-learn   {"state_dict": backbone.* (encoder.* in old versions), projector.*, classifier.*}
    lightly      backbone.* with torchvision's names or as a Sequential of its children, and projection_head.*

Every key is accounted for: the encoder's are all needed, the heads' are known by name, any other is an error.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from barlow.errors import InputError, suggest
from barlow.models import Preprocess, build_encoder, save_encoder

State = dict[str, Tensor]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MIX_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def _rgb(size: int, resize: int, moments: tuple[tuple[float, ...], tuple[float, ...]], how: str) -> Preprocess:
    return Preprocess(size, 3, *moments, resize=resize, interpolation=how)


PREPROCESS: dict[str, dict[str, Preprocess]] = {
    "official": {"imagenet": _rgb(224, 256, IMAGENET, "bilinear")},
    "mixed": {
        "cifar10": _rgb(32, 32, MIX_CIFAR, "bilinear"),
        "cifar100": _rgb(32, 32, MIX_CIFAR, "bilinear"),
        "tiny-imagenet": _rgb(64, 64, ((0.480, 0.448, 0.398), (0.277, 0.269, 0.282)), "bilinear"),
        "stl10": _rgb(64, 70, ((0.43, 0.42, 0.39), (0.27, 0.26, 0.27)), "bicubic"),
    },
    "solo-learn": {
        "cifar10": _rgb(32, 32, CIFAR10, "bilinear"),
        "cifar100": _rgb(32, 32, CIFAR100, "bilinear"),
        "stl10": _rgb(96, 96, ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)), "bilinear"),
        "imagenet": _rgb(224, 256, IMAGENET, "bilinear"),
    },
    "lightly": {
        "imagenet": _rgb(224, 256, IMAGENET, "bilinear"),
        "cifar10": _rgb(32, 32, IMAGENET, "bilinear"),
    },
}
"""By layout and data set: the normalisation of pretraining and the resizing of evaluation in each repository."""


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint keeps what."""

    encoder: tuple[str, ...]
    """prefixes of the encoder's keys, the first that occurs is taken; "" for none"""
    heads: tuple[str, ...]
    """prefixes of parts that are not the encoder"""


LAYOUTS = {
    "official": Layout(("module.backbone.", "backbone.", ""), ("module.projector.", "module.bn.", "projector.", "bn.")),
    "mixed": Layout(("f.", "module.f."), ("g.", "module.g.")),
    "solo-learn": Layout(
        ("backbone.", "encoder."), ("projector.", "classifier.", "momentum_", "knn.", "target_", "prototypes.")
    ),
    "lightly": Layout(
        ("backbone.", "model.backbone."),
        ("projection_head.", "model.projection_head.", "online_classifier.", "criterion.", "model.online_classifier."),
    ),
}
COUNTERS = ("total_ops", "total_params")  # buffers that the FLOP counter thop leaves in Mixed Barlow Twins' files
CLASSIFIER = re.compile(r"fc\.(weight|bias)")

BLOCKS = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
"""(bottleneck?, blocks per stage) -> architecture."""


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    *,
    layout: str = "auto",
    data: str | None = None,
    preprocess: Preprocess | None = None,
    stem: str = "auto",
) -> Path:
    """Turn a checkpoint of another code base into an encoder folder that `load_encoder` and `evaluate` read.

    `layout` is one of `LAYOUTS`, or worked out from the key names. What the encoder is to be shown is not in such
    files: name the `data` it was trained on (a key of `PREPROCESS[layout]`) or give the `preprocess`; the official
    layout means ImageNet. `stem` says how a 3x3 first convolution goes on where the file cannot tell (small,
    small-pooled, small-padded); auto follows the code base. Returns the folder `out`.

    Files are read without running code from them. Raises InputError for a file that is none of the layouts, a key
    that is missing or of no known part, an unknown architecture, or preprocessing that is not known.
    """
    state = read_checkpoint(Path(file))
    chosen = detect_layout(state) if layout == "auto" else layout
    if chosen not in LAYOUTS:
        raise InputError(f"unknown layout '{chosen}'. {suggest(chosen, [*LAYOUTS, 'auto'])}")
    shown = preprocess or _known_preprocess(chosen, data)
    weights, found_stem = encoder_state(state, chosen)
    name = detect_architecture(weights)
    encoder = build_encoder(
        name,
        channels=weights["conv1.weight"].shape[1],
        image_size=shown.image_size,
        stem=found_stem if stem == "auto" else stem,
    )
    _load(encoder.backbone, weights, Path(file))
    save_encoder(encoder, shown, Path(out), imported_from=Path(file).name, layout=chosen, data=data or "unknown")
    return Path(out)


def read_checkpoint(file: Path) -> State:
    """The tensors of a checkpoint by name, without the wrappings `model` and `state_dict`; no code is run."""
    if not file.is_file():
        raise InputError(f"no checkpoint at {file}")
    content = (_read_safetensors if file.suffix == ".safetensors" else _read_torch)(file)
    for wrapping in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
    if not isinstance(content, Mapping):
        raise InputError(f"{file} holds a {type(content).__name__}, not a state dict")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{file} holds no tensors by name: found {list(content)[:5]}")
    return tensors


def _read_safetensors(file: Path) -> State:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is not a readable safetensors file: {error}") from None


class _Inert:
    """Stands for any class that a checkpoint mentions beside its tensors (hyper-parameters); does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _read_torch(file: Path) -> Any:
    """The weights-only reader, with a stand-in for each class it would refuse.

    Lightning files hold hyper-parameters of classes that need not be installed here. Every name in them is mapped
    to `_Inert`, so that nothing of theirs is imported or run.
    """
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        inert: list[Any] = [(type("_Inert", (_Inert,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(inert):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in many ways
        reason = str(error).strip().splitlines()
        raise InputError(f"{file} is not a readable PyTorch checkpoint: {reason[0] if reason else error!r}") from None


def detect_layout(state: Iterable[str]) -> str:
    """Which code base wrote keys like these."""
    keys = [key.removeprefix("module.") for key in state]

    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in keys)

    if has("f.0.", "f.1."):
        return "mixed"
    if has("projection_head.", "model.projection_head.", "online_classifier.") or has("backbone.0.weight"):
        return "lightly"
    if has("encoder.conv1.") or (has("backbone.conv1.") and has("classifier.")):
        return "solo-learn"
    if has("conv1.", "backbone.conv1."):
        return "official"
    raise InputError(f"these keys are of no known layout: {', '.join(keys[:4])}; known: {', '.join(LAYOUTS)}")


def _known_preprocess(layout: str, data: str | None) -> Preprocess:
    known = PREPROCESS[layout]
    if data is None and layout == "official":
        return known["imagenet"]
    if data is None:
        raise InputError(
            f"say what the encoder was trained on (--trained-on; data= in Python): one of {', '.join(known)}"
        )
    if data not in known:
        raise InputError(f"no preprocessing known for {layout} on '{data}'. {suggest(data, known)} Or give preprocess=")
    return known[data]


def encoder_state(state: Mapping[str, Tensor], layout: str) -> tuple[State, str]:
    """The encoder's weights under torchvision's names, and the stem that the code base uses with them.

    Raises InputError for a key that belongs to no part of the layout.
    """
    described = LAYOUTS[layout]
    prefix = next((p for p in described.encoder if any(_inside(key, p) for key in state)), None)
    if prefix is None:
        raise InputError(f"layout '{layout}' keeps its encoder under {described.encoder}, found {list(state)[:4]}")
    weights, unknown = {}, []
    for key, value in state.items():
        if key.rpartition(".")[2] in COUNTERS or key.startswith(described.heads):
            continue
        name = key.removeprefix(prefix)
        if not key.startswith(prefix):
            unknown.append(key)
        elif not CLASSIFIER.fullmatch(name):
            weights[name] = value
    if unknown:
        raise InputError(f"layout '{layout}' has no part for the keys {unknown[:3]}; nothing was imported")
    return _named(weights, layout)


def _inside(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and (prefix != "" or key.startswith("conv1."))


def _named(weights: State, layout: str) -> tuple[State, str]:
    """Names instead of positions where the encoder is a Sequential of torchvision's children."""
    pooled: bool | None = None
    if "0.weight" in weights:
        places = sorted({int(key.partition(".")[0]) for key in weights})
        offset = places[2] - places[1]  # from the normalisation to the first stage: ReLU, and pooling or not
        if len(places) != 6 or offset not in (2, 3):
            raise InputError(
                f"children at positions {places} are not convolution, normalisation, ReLU, (pooling,) four stages; "
                "lightly's own ResNetGenerator leaves the ReLU out and cannot be imported"
            )
        pooled = offset == 3
        names = dict(zip(map(str, places), ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), strict=True))
        weights = {names[key.partition(".")[0]] + key[key.index(".") :]: value for key, value in weights.items()}
    weights = {key.replace(".shortcut.", ".downsample."): value for key, value in weights.items()}
    if "conv1.weight" not in weights:
        raise InputError(f"no first convolution among the encoder's keys {list(weights)[:4]}")
    return weights, _stem(weights["conv1.weight"].shape[-1], layout, pooled)


def _stem(kernel: int, layout: str, pooled: bool | None) -> str:
    """What follows a first convolution of this kernel in that code base; parameters alone do not tell."""
    if kernel != 3:
        return "standard"
    if layout == "mixed" and pooled:
        return "small-pooled"
    return "small-padded" if layout == "solo-learn" else "small"


def detect_architecture(weights: Mapping[str, Tensor]) -> str:
    """The ResNet that has such blocks. Raises InputError for one that is not among `BLOCKS`."""
    stages = [{key.split(".")[1] for key in weights if key.startswith(f"layer{i}.")} for i in range(1, 5)]
    shape = ("layer1.0.conv3.weight" in weights, tuple(len(stage) for stage in stages))
    if shape not in BLOCKS:
        raise InputError(f"no known architecture has stages of {shape[1]} blocks; known: {', '.join(BLOCKS.values())}")
    wide = shape[0] and weights["layer1.0.conv2.weight"].shape[0] == 128
    return f"wide_{BLOCKS[shape]}_2" if wide else BLOCKS[shape]


def _load(backbone: torch.nn.Module, weights: State, file: Path) -> None:
    expected = backbone.state_dict()
    wrong = sorted(expected.keys() ^ weights.keys())
    wrong += [key for key in expected.keys() & weights.keys() if expected[key].shape != weights[key].shape]
    if wrong:
        raise InputError(f"{file.name} does not fit the encoder: missing, unexpected or of another shape: {wrong[:4]}")
    backbone.load_state_dict(weights, strict=True)
