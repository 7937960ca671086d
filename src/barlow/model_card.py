"""What travels with an exported encoder in words: how to load it, what it was trained on, how good it is."""

from pathlib import Path
from typing import Any

from barlow.errors import InputError
from barlow.files import COMMENT
from barlow.methods import METHODS, method_class
from barlow.models import Encoder, Preprocess
from barlow.models.encoders import timm_options
from barlow.records import Evaluation
from barlow.run import Run


def loading_code(format: str, encoder: Encoder, name: str, preprocessing: bool = False) -> str:
    """Markdown with the lines that load the file or folder `name`; run where it lies, they leave `features [B, F]`."""
    lines = _LINES[format](encoder, name)
    text = f"# {name}\n\n```python\n" + "\n".join(lines) + "\n```\n"
    return text + "\n" + _reading(encoder.preprocess, encoder.feature_dim, preprocessing) + "\n" + COMMENT


def _torchvision(encoder: Encoder, name: str) -> list[str]:
    load = f'torch.load("{name}", weights_only=True)'
    if name.endswith(".safetensors"):
        load = f'load_file("{name}")'
    return [
        "import torch",
        "import torchvision",
        *(["from safetensors.torch import load_file"] if name.endswith(".safetensors") else []),
        "",
        f'model = torchvision.models.get_model("{encoder.architecture.name}")',
        *_stem(encoder),
        f"model.load_state_dict({load}, strict=True)",
        "model.fc = torch.nn.Identity()  # the classifier in the file is zeros",
        "features = model.eval()(images)",
    ]


def _timm(encoder: Encoder, name: str) -> list[str]:
    if encoder.architecture.stem == "standard" or not hasattr(encoder.backbone, "conv1"):
        model = [f'model = timm.create_model("local-dir:{name}", pretrained=True)']
        return ["import timm", "", *model, "features = model.eval()(images)"]
    options = {"in_chans": encoder.architecture.channels, **timm_options(encoder.architecture)}
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    return [
        "import timm",
        "import torch",
        "from safetensors.torch import load_file",
        "",
        f'model = timm.create_model("{encoder.architecture.name}", num_classes=0{arguments})',
        *_stem(encoder),
        f'model.load_state_dict(load_file("{name}/model.safetensors"), strict=True)',
        "features = model.eval()(images)",
    ]


def _stem(encoder: Encoder) -> list[str]:
    """The lines that give a stock ResNet the stem for small images, or other channels."""
    conv: Any = getattr(encoder.backbone, "conv1", None)
    stem = encoder.architecture.stem
    if conv is None or (stem == "standard" and conv.in_channels == 3):
        return []
    sizes = f"kernel_size={conv.kernel_size[0]}, stride={conv.stride[0]}, padding={conv.padding[0]}"
    lines = [f"model.conv1 = torch.nn.Conv2d({conv.in_channels}, {conv.out_channels}, {sizes}, bias=False)"]
    if stem in ("small", "small-padded"):
        lines.append("model.maxpool = torch.nn.Identity()  # trained on small images: no pooling in the stem")
    return lines


def _onnx(encoder: Encoder, name: str) -> list[str]:
    return [
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{name}", providers=["CPUExecutionProvider"])',
        "features = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]",
    ]


def _torch_export(encoder: Encoder, name: str) -> list[str]:
    return ["import torch", "", f'model = torch.export.load("{name}").module()', "features = model(images)"]


def _own(encoder: Encoder, name: str) -> list[str]:
    return ["import barlow", "", f'model = barlow.load_encoder("{name}")', "features = model(images)"]


_LINES = {"torchvision": _torchvision, "timm": _timm, "onnx": _onnx, "torch-export": _torch_export, "safetensors": _own}


def _reading(preprocess: Preprocess | None, width: int, inside: bool) -> str:
    """What `images` must be."""
    if preprocess is None:
        return f"Features: {width} values a sample.\n"
    size, channels = preprocess.image_size, preprocess.channels
    shape = f"[B, {channels}, {size}, {size}]" if size else f"[B, {channels}, ...]"
    if inside:
        kind = "uint8" if preprocess.scale == 255.0 else "float32"
        return f"`images` is {kind} {shape}, stored pixel values; normalisation is inside. Features: [B, {width}].\n"
    shorter = preprocess.resize or size
    fit = f"resize the shorter side to {shorter} ({preprocess.interpolation}), crop the centre, " if size else ""
    scaled = f"divide by {preprocess.scale:g}, " if preprocess.scale != 1 else ""
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (preprocess.mean, preprocess.std))
    return (
        f"`images` is float32 {shape}: {fit}{scaled}subtract the mean ({mean}), divide by the standard deviation "
        f"({std}). Features: [B, {width}].\n"
    )


def model_card(run: Run | str | Path, encoder: Encoder, name: str, format: str) -> str:
    """A model card for the Hugging Face Hub: facts and figures of the run, and the lines that load it."""
    method = str(encoder.facts.get("method", "barlow-twins"))
    library = "timm" if format == "timm" else "barlow"
    front = ["---", f"library_name: {library}", "pipeline_tag: image-feature-extraction", "tags:"]
    front += [f"- {tag}" for tag in ("barlow", method, "self-supervised", "feature-extraction")] + ["---", ""]
    facts = {key: value for key, value in encoder.facts.items() if key != "sha256"}
    if "data" in facts:
        facts["data"] = data_name(str(facts["data"]))
    described = [
        f"| {key} | {_plain(value)} |" for key, value in {"encoder": encoder.architecture.name, **facts}.items()
    ]
    parts = [
        "\n".join(front),
        loading_code(format, encoder, name),
        "Trained without labels.\n\n| | |\n|---|---|\n" + "\n".join(described) + "\n",
        _scores(run),
        f"Method: {method_class(method).paper}.\n" if method in METHODS else "",
        f"SHA-256 of the weights: `{encoder.facts.get('sha256', '')}`\n",
    ]
    return "\n".join(part for part in parts if part)


def data_name(name: str) -> str:
    """A path by its last part: a card is published, and where things lie on somebody's disk is nobody's business."""
    return Path(name).name if Path(name).is_absolute() else name


def _plain(value: object) -> str:
    """A value inside a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _scores(run: Run | str | Path) -> str:
    """The saved evaluations as a table, with intervals and baselines; empty where there are none."""
    try:
        found = Run(run).evaluations()
    except InputError:  # an encoder file alone has no evaluations
        return ""
    if not found:
        return "Not evaluated yet.\n"
    from barlow.evaluation import protocol_title  # loads scikit-learn, which an export without scores does not need

    titles = [protocol_title(str(e["protocol"]), e.get("settings") or {}) for e in found]
    names = [
        " | ".join(map(_plain, (title, data_name(e["data"]), e["metric"])))
        for title, e in zip(titles, found, strict=True)
    ]
    rows = [f"| {name} | {_value(e)} | {_beside(e)} | {e['n']:,} |" for name, e in zip(names, found, strict=True)]
    return (
        "| protocol | data | metric | value (95% interval) | baselines | n |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def _value(measured: Evaluation) -> str:
    low, high = measured["interval"]
    return f"{measured['value']:.4f} ({low:.4f} to {high:.4f})"


def _beside(e: Evaluation) -> str:
    return ", ".join(f"{_plain(name)} {b['value']:.4f}" for name, b in e.get("baselines", {}).items())
