"""The encoder in the formats of other tools, each with the lines that load it."""

import importlib.util
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import save as serialised
from torch import Tensor, nn

from barlow.errors import InputError, suggest
from barlow.files import MARK, check_outputs, mark_zip, read_json, write_bytes, write_json, write_text, written
from barlow.model_card import data_name, loading_code, model_card
from barlow.models import Encoder, Preprocess, backbone_weights, load_encoder
from barlow.models.encoders import timm_options
from barlow.models.files import FACTS, WEIGHTS
from barlow.records import EncoderRecord
from barlow.run import Run

IMAGENET_CLASSES = 1000  # a plain torchvision model's classifier; ours is filled with zeros


def export(
    run: Run | str | Path, format: str, out: str | Path, *, preprocessing: bool = False, overwrite: bool = False
) -> Path:
    """Write the encoder of `run` (a run or an encoder file) to `out` and return its path.

    safetensors   `out.safetensors` with `out.json`: what `load_encoder` reads
    torchvision   `out.pth`: loads with strict=True into torchvision's model; its classifier is zeros, to be replaced
    timm          folder: `timm.create_model("local-dir:out", pretrained=True)`, with mean, std and size
    onnx          `out.onnx`: features of a batch of any size
    torch-export  `out.pt2`: the same for `torch.export.load`
    hf            folder for the Hugging Face Hub: timm's files (else our own) and a model card

    Files without a place for instructions get `out.md` with the lines that load them. With `preprocessing`, onnx and
    torch-export take stored pixel values of the encoder's size and normalise them inside; otherwise normalised ones.
    Raises InputError for an unknown format, an encoder the format has no place for, a missing optional package, and a
    file in the way that barlow did not write, unless `overwrite`.
    """
    write = WRITERS.get(format)
    if write is None:
        raise InputError(f"unknown format '{format}'. {suggest(format, WRITERS)}")
    if preprocessing and format not in ("onnx", "torch-export"):
        raise InputError(f"preprocessing goes inside onnx and torch-export only, not {format}")
    target = Path(out)
    check_outputs(_outputs(format, target), inputs=[getattr(run, "path", run)], overwrite=overwrite)
    write(run, target, preprocessing)
    return target


def _outputs(format: str, out: Path) -> list[Path]:
    """Every file that the format may write."""
    if format in ("timm", "hf"):
        if out.is_file():
            raise InputError(f"{out} is a file; {format} is written to a folder")
        names = ("config.json", "model.safetensors", "README.md", *((WEIGHTS, FACTS) if format == "hf" else ()))
        return [out / name for name in names]
    return [out, _beside(out) if format == "safetensors" else out.with_suffix(".md")]


def _beside(weights: Path) -> Path:
    """The JSON that belongs to a safetensors file."""
    return weights.with_name(FACTS) if weights.name == WEIGHTS else weights.with_suffix(".json")


def _expect_suffix(out: Path, *suffixes: str) -> None:
    if out.suffix not in suffixes:
        raise InputError(f"this format is written to {' or '.join(suffixes)}, got '{out.name}'")


def _preprocess(encoder: Encoder) -> Preprocess:
    if encoder.preprocess is None:
        raise InputError("the encoder has no preprocessing; export a run or an encoder that was saved with it")
    return encoder.preprocess


def _write_safetensors(run: Run | str | Path, out: Path, _: bool) -> None:
    """Copies of the two files: also for a caller's own module, which cannot be rebuilt here."""
    _expect_suffix(out, ".safetensors")
    path = run.path if isinstance(run, Run) else Path(run)
    weights = path / WEIGHTS if path.is_dir() else path
    facts = _beside(weights)
    if not (weights.is_file() and facts.is_file()):
        raise InputError(f"no encoder at {path}: expected a run folder or a .safetensors file with its JSON")
    described = read_json(facts, EncoderRecord)
    if "data" in described["facts"]:
        described["facts"]["data"] = data_name(str(described["facts"]["data"]))
    write_bytes(out, weights.read_bytes())
    write_json(_beside(out), {**described, "note": MARK})


def _write_torchvision(run: Run | str | Path, out: Path, _: bool) -> None:
    _expect_suffix(out, ".pth", ".pt", ".safetensors")
    encoder = load_encoder(run)
    state = torchvision_state(encoder)
    if out.suffix == ".safetensors":
        write_bytes(out, serialised(state, metadata={"format": "pt", "note": MARK}))
    else:
        _write_zip(out, lambda stream: torch.save(state, stream))
    _write_loading("torchvision", encoder, out)


def torchvision_state(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's weights under torchvision's key names, with a classifier of zeros.

    Key by key and shape by shape the state of torchvision's model of that name (with the encoder's own first
    convolution). Raises InputError for architectures that torchvision does not have.
    """
    name = encoder.architecture.name
    state = backbone_weights(encoder)
    if name not in torchvision.models.list_models(torchvision.models) or not name.startswith(("resnet", "wide_resnet")):
        raise InputError(f"torchvision has no '{name}' with these weights; export to timm, onnx or safetensors")
    state["fc.weight"] = torch.zeros(IMAGENET_CLASSES, encoder.feature_dim)
    state["fc.bias"] = torch.zeros(IMAGENET_CLASSES)
    with torch.device("meta"):
        expected = torchvision.models.get_model(name).state_dict()
    differing = {key for key in expected.keys() | state.keys() if _shape(expected, key) != _shape(state, key)}
    if differing - {"conv1.weight"}:
        raise InputError(f"'{name}' differs between timm and torchvision in {sorted(differing)[:3]}; export to timm")
    return state


def _shape(state: Mapping[str, Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None


def _write_timm(run: Run | str | Path, out: Path, _: bool) -> None:
    encoder = load_encoder(run)
    if not timm.is_model(encoder.architecture.name):
        raise InputError(f"timm has no '{encoder.architecture.name}'; export to safetensors, onnx or torch-export")
    _timm_folder(encoder, out)
    _write_loading("timm", encoder, out)


def _timm_folder(encoder: Encoder, out: Path) -> None:
    """`config.json` and `model.safetensors` as timm writes them for the Hub."""
    weights = serialised(backbone_weights(encoder), metadata={"format": "pt", "note": MARK})
    write_bytes(out / "model.safetensors", weights)
    write_json(out / "config.json", {**timm_config(encoder), "note": MARK})


def timm_config(encoder: Encoder) -> dict[str, Any]:
    """timm's description of a model: architecture, arguments, and `pretrained_cfg` with the preprocessing."""
    architecture, preprocess = encoder.architecture, _preprocess(encoder)
    size = preprocess.image_size
    return {
        "architecture": architecture.name,
        "num_classes": 0,
        "num_features": encoder.feature_dim,
        "model_args": {"in_chans": architecture.channels, **timm_options(architecture)},
        "pretrained_cfg": {
            "tag": "barlow",
            "input_size": [preprocess.channels, size, size],
            "fixed_input_size": "img_size" in timm_options(architecture),
            "interpolation": preprocess.interpolation,
            "crop_pct": size / (preprocess.resize or size),
            "crop_mode": "center",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "num_classes": 0,
            **_first_and_last(architecture.name),
        },
    }


def _first_and_last(name: str) -> dict[str, str]:
    """The names of the first convolution and of the classifier, which timm wants to know."""
    defaults = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {key: value for key in ("first_conv", "classifier") if (value := getattr(defaults, key, None))}


class _WithPreprocessing(nn.Module):
    """Stored pixel values `[B, C, size, size]` -> features: the normalisation is part of the network."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, preprocess: Preprocess) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale = preprocess.scale
        shape = (1, preprocess.channels) + (1, 1) * (preprocess.image_size > 0)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(shape))
        self.register_buffer("std", torch.tensor(preprocess.std).view(shape))

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.encoder((pixels.float() / self.scale - self.mean) / self.std)
        return features


def _traceable(run: Run | str | Path, preprocessing: bool) -> tuple[nn.Module, Tensor, Encoder]:
    """A network in eval mode and two samples of what it reads."""
    encoder = load_encoder(run)
    preprocess = _preprocess(encoder)
    if preprocess.image_size == 0:
        raise InputError("onnx and torch-export need images; signals and tables export to safetensors")
    sample = torch.rand(2, preprocess.channels, preprocess.image_size, preprocess.image_size)
    if not preprocessing:
        return encoder, sample, encoder
    stored = (sample * 255).to(torch.uint8) if preprocess.scale == 255.0 else sample
    return _WithPreprocessing(encoder, preprocess).eval(), stored, encoder


def _write_torch_export(run: Run | str | Path, out: Path, preprocessing: bool) -> None:
    _expect_suffix(out, ".pt2")
    network, sample, encoder = _traceable(run, preprocessing)
    program = torch.export.export(network, (sample,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    _write_zip(out, lambda stream: torch.export.save(program, stream))
    _write_loading("torch-export", encoder, out, preprocessing)


def _write_zip(out: Path, save: Callable[[io.BytesIO], None]) -> None:
    """In memory first: torch's own writer ends the process when the disk is full."""
    stream = io.BytesIO()
    save(stream)
    mark_zip(stream)
    write_bytes(out, stream.getvalue())


def _write_onnx(run: Run | str | Path, out: Path, preprocessing: bool) -> None:
    _expect_suffix(out, ".onnx")
    if importlib.util.find_spec("onnxscript") is None:
        raise InputError("export to onnx needs the package onnxscript: pip install onnx onnxscript")
    network, sample, encoder = _traceable(run, preprocessing)
    program = torch.onnx.export(
        network,
        (sample,),
        input_names=["pixels" if preprocessing else "images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # the dynamo exporter returns it
    program.model.doc_string = MARK
    with written(out) as temporary:
        program.save(temporary, external_data=False)
    _write_loading("onnx", encoder, out, preprocessing)


def _write_hub(run: Run | str | Path, out: Path, _: bool) -> None:
    """A folder that `huggingface_hub.upload_folder` takes as it is."""
    encoder = load_encoder(run)
    native = timm.is_model(encoder.architecture.name)
    if native:
        _timm_folder(encoder, out)
    else:
        _write_safetensors(run, out / WEIGHTS, False)
    write_text(out / "README.md", model_card(run, encoder, out.name, "timm" if native else "safetensors"))


def _write_loading(format: str, encoder: Encoder, out: Path, preprocessing: bool = False) -> None:
    """The lines that load the file, in `README.md` inside a folder and in a `.md` beside a file."""
    target = out / "README.md" if out.is_dir() else out.with_suffix(".md")
    write_text(target, loading_code(format, encoder, out.name, preprocessing))


WRITERS: Mapping[str, Callable[[Run | str | Path, Path, bool], None]] = {
    "safetensors": _write_safetensors,
    "torchvision": _write_torchvision,
    "timm": _write_timm,
    "onnx": _write_onnx,
    "torch-export": _write_torch_export,
    "hf": _write_hub,
}
