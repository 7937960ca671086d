"""Encoders trained elsewhere, read strictly: the official code, Mixed Barlow Twins, solo-learn, lightly.

What each writes (key names from their repositories):

    official     resnet50.pth: torchvision's names without fc; checkpoint.pth: {"model": backbone.*, projector.*,
                 bn.*}; the ImageNet script of Mixed Barlow Twins writes the same two
    mixed        Mixed Barlow Twins on small images: f.<i>.*, a Sequential of torchvision's children, and the head g.*
    solo-learn   {"state_dict": backbone.* (encoder.* in old versions), projector.*, classifier.*}
    lightly      backbone.* with torchvision's names or as a Sequential of its children, and projection_head.*

DistributedDataParallel and torch.compile add `module.` and `_orig_mod.` wherever they wrap a part; both are taken out.
Every key is accounted for: the encoder's are all needed, the heads' are known by name, any other is an error.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from barlow.errors import InputError, suggest
from barlow.files import MARK, check_outputs
from barlow.models import Preprocess, build_encoder, save_encoder
from barlow.models.files import FACTS, WEIGHTS

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
    """Where a checkpoint keeps what; the table of these both recognises a file and reads it."""

    encoder: tuple[str, ...]
    """prefixes of the encoder's keys, the first that occurs is taken; "" for none"""
    first: tuple[str, ...]
    """the encoder's first convolution: conv1.weight by torchvision's names, 0.weight in a Sequential of its children"""
    heads: tuple[str, ...]
    """prefixes of parts that are not the encoder"""

    def prefix(self, state: Iterable[str]) -> str | None:
        """The prefix of the encoder's keys; None where the layout's encoder is not among the keys."""
        return next((p for p in self.encoder if any(p + first in state for first in self.first)), None)

    def unknown(self, state: Iterable[str], prefix: str) -> list[str]:
        """Keys that belong to no part of the layout."""
        return [key for key in state if not key.startswith((prefix, *self.heads)) and not _is_counter(key)]


LAYOUTS = {
    "official": Layout(("backbone.", ""), ("conv1.weight",), ("projector.", "bn.")),
    "mixed": Layout(("f.",), ("0.weight",), ("g.",)),
    "solo-learn": Layout(
        ("backbone.", "encoder."),
        ("conv1.weight",),
        ("projector.", "classifier.", "momentum_", "knn.", "target_", "prototypes."),
    ),
    "lightly": Layout(
        ("backbone.", "model.backbone."),
        ("conv1.weight", "0.weight"),
        ("projection_head.", "model.projection_head.", "online_classifier.", "criterion.", "model.online_classifier."),
    ),
}
"""A file that several of these fit is of the first."""
WRAPPERS = ("module", "_orig_mod")
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
    overwrite: bool = False,
) -> Path:
    """Turn a checkpoint of another code base into an encoder folder that `load_encoder` and `evaluate` read.

    `layout` is one of `LAYOUTS`, or worked out from the key names. What the encoder is to be shown is not in such
    files: name the `data` it was trained on (a key of `PREPROCESS[layout]`) or give the `preprocess`; the official
    layout means ImageNet. `stem` says how a 3x3 first convolution goes on where the file cannot tell (small,
    small-pooled, small-padded); auto follows the code base. Returns the folder `out`.

    Files are read without running code from them. Raises InputError for a file that is none of the layouts, a key
    that is missing or of no known part, an unknown architecture, preprocessing that is not known, and an encoder in
    `out` that was not imported, unless `overwrite`.
    """
    check_outputs([Path(out) / WEIGHTS, Path(out) / FACTS], inputs=[file], overwrite=overwrite)
    state = read_checkpoint(Path(file))
    chosen = detect_layout(state) if layout == "auto" else layout
    if chosen not in LAYOUTS:
        raise InputError(f"unknown layout '{chosen}'. {suggest(chosen, [*LAYOUTS, 'auto'])}")
    shown = preprocess or _known_preprocess(chosen, data)
    weights, found_stem = encoder_state(state, chosen)
    _check_weights(weights, Path(file))
    name = detect_architecture(weights)
    encoder = build_encoder(
        name,
        channels=weights["conv1.weight"].shape[1],
        image_size=shown.image_size,
        stem=found_stem if stem == "auto" else stem,
    )
    _load(encoder.backbone, weights, Path(file))
    facts = {"imported_from": Path(file).name, "layout": chosen, "data": data or "unknown"}
    save_encoder(encoder, shown, Path(out), note=MARK, **facts)
    return Path(out)


def read_checkpoint(file: Path) -> State:
    """The tensors of a checkpoint by name, without the wrappings of dictionaries and modules; no code is run."""
    if not file.is_file():
        raise InputError(f"no checkpoint at {file}")
    content = (_read_safetensors if file.suffix == ".safetensors" else _read_torch)(file)
    for wrapping in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping | _Inert):
            content = content[wrapping]
    if isinstance(content, _Inert):
        raise InputError(
            f"{file} holds a pickled {type(content).__name__}, which only its own code can read; "
            "save its weights instead: torch.save(model.state_dict(), FILE)"
        )
    if not isinstance(content, Mapping):
        raise InputError(f"{file} holds a {type(content).__name__}, not a state dict")
    named = [(_unwrapped(str(key)), value) for key, value in content.items() if isinstance(value, Tensor)]
    tensors = dict(named)
    if not tensors:
        raise InputError(f"{file} holds no tensors by name: found {list(content)[:5]}")
    if len(tensors) < len(named):
        raise InputError(f"{file} holds the same weights with and without {' or '.join(WRAPPERS)} in their names")
    return tensors


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


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
        inert: list[Any] = [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sparse tensors are slow to check; they are refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in many ways
        reason = str(error).strip().splitlines()
        raise InputError(f"{file} is not a readable PyTorch checkpoint: {reason[0] if reason else error!r}") from None


def detect_layout(state: Iterable[str]) -> str:
    """Which code base wrote keys like these: the layout that leaves the fewest of them without a part."""
    keys = list(state)
    found = {
        name: len(layout.unknown(keys, prefix))
        for name, layout in LAYOUTS.items()
        if (prefix := layout.prefix(keys)) is not None
    }
    if not found:
        raise InputError(f"these keys are of no known layout: {', '.join(keys[:4])}; known: {', '.join(LAYOUTS)}")
    return min(found, key=lambda name: found[name])


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
    prefix = described.prefix(state)
    if prefix is None:
        raise InputError(f"layout '{layout}' keeps its encoder under {described.encoder}, found {list(state)[:4]}")
    unknown = described.unknown(state, prefix)
    if unknown:
        raise InputError(f"layout '{layout}' has no part for the keys {unknown[:3]}; nothing was imported")
    own = {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if not key.startswith(described.heads) and not _is_counter(key)
    }
    return _named({name: value for name, value in own.items() if not CLASSIFIER.fullmatch(name)}, layout)


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


def _named(weights: State, layout: str) -> tuple[State, str]:
    """Names instead of positions where the encoder is a Sequential of torchvision's children."""
    pooled: bool | None = None
    if "0.weight" in weights:
        children = {key.partition(".")[0] for key in weights}
        places = sorted(int(child) for child in children if child.isdecimal())
        # from the normalisation to the first stage: ReLU, and pooling or not
        offset = places[2] - places[1] if len(places) == len(children) == 6 else 0
        if offset not in (2, 3):
            raise InputError(
                f"children at positions {sorted(children)} are not convolution, normalisation, ReLU, (pooling,) four "
                "stages; lightly's own ResNetGenerator leaves the ReLU out and cannot be imported"
            )
        pooled = offset == 3
        names = dict(zip(map(str, places), ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), strict=True))
        weights = {names[key.partition(".")[0]] + key[key.find(".") :]: value for key, value in weights.items()}
    weights = {key.replace(".shortcut.", ".downsample."): value for key, value in weights.items()}
    if weights["conv1.weight"].ndim != 4:
        shape = list(weights["conv1.weight"].shape)
        raise InputError(f"the first convolution's weight has the shape {shape}, expected [out, in, height, width]")
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
    wide = shape[0] and weights.get("layer1.0.conv2.weight", torch.empty(0)).shape[:1] == (128,)
    return f"wide_{BLOCKS[shape]}_2" if wide else BLOCKS[shape]


def _check_weights(weights: State, file: Path) -> None:
    """Every weight is dense, of floating point and finite; the count of batches that normalisations keep is whole."""
    for key, value in weights.items():
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            raise InputError(f"{file.name}: {key} is not a dense tensor; save the state dict of the dense model")
        if key.endswith("num_batches_tracked"):
            continue
        if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise InputError(f"{file.name}: {key} holds {value.dtype}, expected floating-point weights")
        if not value.isfinite().all():
            raise InputError(f"{file.name}: {key} holds NaN or infinity; take a checkpoint from before training failed")


def _load(backbone: torch.nn.Module, weights: State, file: Path) -> None:
    expected = backbone.state_dict()
    wrong = sorted(expected.keys() ^ weights.keys())
    wrong += [key for key in expected.keys() & weights.keys() if expected[key].shape != weights[key].shape]
    if wrong:
        raise InputError(f"{file.name} does not fit the encoder: missing, unexpected or of another shape: {wrong[:4]}")
    backbone.load_state_dict(weights, strict=True)
