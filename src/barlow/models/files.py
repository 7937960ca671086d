"""The encoder on disk: weights in safetensors, everything else in a JSON beside them; strict both ways."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor, nn

from barlow.errors import InputError
from barlow.files import read_json, user_path, write_bytes, write_json
from barlow.models.encoders import Architecture, Encoder, build_encoder
from barlow.models.preprocess import Preprocess
from barlow.records import EncoderRecord, exact, typed

WEIGHTS, FACTS = "encoder.safetensors", "encoder.json"
FORMAT = 1


def save_encoder(encoder: Encoder, preprocess: Preprocess, folder: Path, *, note: str = "", **facts: Any) -> str:
    """Write `encoder.safetensors` and `encoder.json` into `folder`; returns the SHA-256 of the weights file.

    `facts` (method, data set, epochs, ...) are kept in the JSON as they are; `note` says who wrote the files.
    """
    content = serialised(backbone_weights(encoder))
    digest = hashlib.sha256(content).hexdigest()
    described = {
        "format": FORMAT,
        "architecture": encoder.architecture.to_dict(),
        "feature_dim": encoder.feature_dim,
        "preprocess": preprocess.to_dict(),
        "sha256": digest,
        "facts": facts,
        **({"note": note} if note else {}),
    }
    write_bytes(folder / WEIGHTS, content)
    write_json(folder / FACTS, described)
    return digest


def backbone_weights(encoder: Encoder) -> dict[str, Tensor]:
    """The backbone's state under its own key names (timm's, for timm models), contiguous on the CPU."""
    state = encoder.backbone.state_dict()
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def load_encoder(source: str | os.PathLike[str], module: nn.Module | None = None) -> Encoder:
    """An encoder in eval mode with `.feature_dim`, `.preprocess` and `.facts`.

    `source` is a run, a run folder, a folder with the two files, or the `.safetensors` file itself. An encoder
    that was the caller's own module needs that `module` (its weights are overwritten). Loading is strict: any
    missing or unexpected key, or weights that do not match their recorded hash, raise InputError.
    """
    weights = _weights_file(source)
    file = weights.with_name(FACTS) if weights.name == WEIGHTS else weights.with_suffix(".json")
    described = _read_facts(file)
    try:
        architecture = exact(described["architecture"], Architecture, "architecture")
        preprocess = Preprocess.from_dict(described["preprocess"])
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    if architecture.channels != preprocess.channels:  # or a wrong number of them could ask for all memory there is
        channels = f"{architecture.channels} channels and a preprocessing of {preprocess.channels}"
        raise InputError(f"{file} is damaged: an encoder of {channels}")
    encoder = _rebuild(architecture, described, module)
    _load_strictly(encoder.backbone, _read_weights(weights, described["sha256"]), weights)
    encoder.preprocess = preprocess
    encoder.facts = {**described["facts"], "sha256": described["sha256"]}
    return encoder.eval()


def _weights_file(source: str | os.PathLike[str]) -> Path:
    path = user_path(source)
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise InputError(f"no encoder at {path}: expected a run folder or a .safetensors file")
    return weights


def _read_facts(path: Path) -> EncoderRecord:
    if not path.exists():
        raise InputError(f"{path.name} is missing beside the weights in {path.parent}; keep the two together")
    described = read_json(path, dict[str, Any])
    if described.get("format") != FORMAT:
        raise InputError(f"{path} has format {described.get('format')}, this version reads {FORMAT}")
    return typed(described, EncoderRecord, path)


def _read_weights(path: Path, expected: str) -> Mapping[str, Tensor]:
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise InputError(f"{path} is not the file its JSON describes (SHA-256 differs); copy both again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from None


def _rebuild(architecture: Architecture, described: EncoderRecord, module: nn.Module | None) -> Encoder:
    if architecture.name == "custom":
        if module is None:
            raise InputError("this encoder was the caller's own module; pass it as load_encoder(..., module=...)")
        return Encoder(module, architecture, described["feature_dim"])
    if module is not None:
        raise InputError(f"this encoder is '{architecture.name}', built by name; leave out `module`")
    return build_encoder(
        architecture.name,
        channels=architecture.channels,
        image_size=architecture.image_size,
        stem=architecture.stem,
    )


def _load_strictly(backbone: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    expected = backbone.state_dict()
    missing, unexpected = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unexpected:
        raise InputError(f"{path} does not fit the encoder: missing {missing[:3]}, unexpected {unexpected[:3]}")
    wrong = [key for key, value in weights.items() if value.shape != expected[key].shape]
    if wrong:
        raise InputError(f"{path} does not fit the encoder: other shapes for {wrong[:3]}")
    backbone.load_state_dict(weights, strict=True)
