"""The settings of a pretraining run: one tree of frozen dataclasses, its JSON, and its flat keyword form.

The command line, `barlow.pretrain(...)` and `config.json` are all made from these classes, so a field is
declared, documented and defaulted here and nowhere else. `None` means: worked out from the data or from
other settings, printed, and written to `run.json`.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_type_hints

from barlow.bounds import Bounds, Count, ImageSize, Seed, Workers, check
from barlow.errors import InputError, suggest
from barlow.records import exact

Form = Literal["auto", "gram", "correlation"]
Cache = Literal["auto", "memory", "disk", "none"]
Decay = Annotated[float, Bounds(0, 1, above=True, below=True)]


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how much of it is kept aside."""

    image_size: ImageSize | None = None
    """side of the views, in pixels"""
    channels: Annotated[int, Bounds(1, 2**12)] | None = None
    """channels to read (1 = grayscale, 3 = RGB)"""
    mean: tuple[Annotated[float, Bounds(-1e30, 1e30)], ...] | None = None
    """mean per channel, pixels on 0 to 1"""
    std: tuple[Annotated[float, Bounds(0, 1e30, above=True)], ...] | None = None
    """standard deviation per channel, pixels on 0 to 1"""
    split: str | None = None
    """part of the data to train on, where it has parts (train, unlabeled, ...)"""
    holdout: Annotated[float, Bounds(0, 0.5)] = 0.1
    """share of the samples never trained on, for k-NN and held-out loss (at most 2,000 samples)"""
    workers: Workers | None = None
    """processes that decode images; 0 decodes in the main process"""
    cache: Cache = "auto"
    """keep decoded images: auto, memory, disk, or none"""


@dataclass(frozen=True)
class ViewsConfig:
    """How the views of a sample are made."""

    recipe: str = "auto"
    """augmentation recipe by name, or a TOML file"""
    views: Annotated[int, Bounds(2, 100)] | None = None
    """views of each sample, the recipe's in turn; as many as the recipe has (two)"""


@dataclass(frozen=True)
class ModelConfig:
    """Encoder and projector."""

    encoder: str = "auto"
    """timm model name, whitenet, resnet10-narrow, resnet1d, mlp, or auto: resnet18 (on a CPU up to
    40 pixels: whitenet; signals: resnet1d; tables: mlp)"""
    stem: str = "auto"
    """first layers: small (3x3, no pooling), standard, or auto (small up to 64 pixels)"""
    projector: tuple[Annotated[int, Bounds(2, 2**20)], ...] = (1024, 1024)
    """widths of the projector's layers; the last is the width D of the embedding"""
    head: str = "mlp"
    """hidden layers of the projector: mlp, or rbf (radial basis functions)"""
    projector_norm: bool = True
    """batch normalisation in the projector"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    ema: Decay | None = None
    """decay of an averaged copy of the encoder, which is then what is evaluated and exported"""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    method: str = "barlow-twins"
    """barlow-twins (arXiv 2103.03230), mixed-barlow-twins (arXiv 2312.02151), or a baseline: simclr, moco-v2, byol,
    simsiam, swav, vicreg, w-mse, dino"""
    lambd: Annotated[float, Bounds(0, 1e6)] | None = None
    """weight of the off-diagonal terms; 1/128 up to D = 2048, .0051 above, at most batch / (32 D)"""
    lambd_reg: Annotated[float, Bounds(0, 1e6)] = 4.0
    """weight of the mixing terms, in units of lambd"""
    mix_alpha: Annotated[float, Bounds(0, 1e6, above=True)] = 1.0
    """mixing weight a ~ Beta(alpha, alpha)"""
    mix_per_sample: bool = False
    """draw one mixing weight per sample instead of one per batch"""
    mix_global: bool = False
    """many processes: mix with samples of all of them, not of the own process alone"""
    variant: str | None = None
    """barlow-twins: an ablation of the loss (feature-norm, invariance-only, cross-entropy, ...)"""
    temperature: Annotated[float, Bounds(0, 1e6, above=True)] | None = None
    """of simclr, moco-v2, swav, dino and of the variant cross-entropy; the paper's"""
    predictor: bool = False
    """barlow-twins: one branch goes through a predictor too, each view in turn"""
    stop_gradient: bool = False
    """barlow-twins: no gradient through one branch, each view in turn"""
    target_ema: Decay | None = None
    """decay of the slow network that makes one branch: moco-v2, byol, dino; barlow-twins when given"""
    form: Form = "auto"
    """how the loss is computed: gram (N x N), correlation (D x D), or auto (the cheaper)"""


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights move."""

    optimizer: str = "auto"
    """muon, adamw, adam, sgd, lars (the paper's), or auto: muon for whitenet, else adamw"""
    lr: Annotated[float, Bounds(0, 1e30, above=True)] | None = None
    """peak learning rate for a global batch of 256, scaled with the batch; LARS: the paper's table"""
    lr_biases: Annotated[float, Bounds(0, 1e3)] | None = None
    """the same for biases and norms; LARS .0048, Muon a tenth of lr, else as lr"""
    weight_decay: Annotated[float, Bounds(0, 1e3)] = 1e-6
    """weight decay; never on biases and norms"""
    warmup_epochs: Annotated[float, Bounds(0, 1e6)] = 10.0
    """linear warm-up, in epochs (at most a tenth of the run)"""
    clip: Annotated[float, Bounds(0, 1e30, above=True)] | None = None
    """largest norm of the gradient"""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how much at once, and on what."""

    epochs: Annotated[int, Bounds(1, 10**6)] = 100
    """passes over the data"""
    batch_size: Annotated[int, Bounds(2, 2**20)] = 256
    """samples per step, over all ranks"""
    seed: Seed = 0
    """seed of weights, order, views and mixing"""
    device: str = "auto"
    """cpu, cuda, mps, or auto"""
    precision: str = "auto"
    """float32, bfloat16, or auto (bfloat16 where the hardware has it); the loss is always float32"""
    compile: bool = False
    """compile the network with torch.compile"""
    micro_batch: str | None = None
    """samples per forward pass with the exact large-batch gradient: a number, or auto"""


@dataclass(frozen=True)
class OutputConfig:
    """What is written, and how often."""

    log_every: Count = 10
    """steps between logged lines"""
    validate_every: Count | None = None
    """epochs between validations (k-NN, held-out loss, rank); about ten a run"""
    checkpoint_minutes: Annotated[float, Bounds(0, 1e6, above=True)] = 5.0
    """longest time between checkpoints; as often as costs under a fiftieth of the time, at the end, on a signal"""
    checkpoint_steps: Count | None = None
    """steps between checkpoints, instead of by the clock"""
    keep_checkpoints: Count = 2
    """checkpoints kept"""
    trackers: tuple[str, ...] = ()
    """also log to wandb, mlflow"""


@dataclass(frozen=True)
class PretrainConfig:
    """All settings of `barlow pretrain`."""

    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        _validate(self)


def leaves(config: PretrainConfig | None = None) -> Iterator[tuple[str, str, Any]]:
    """Every leaf as (section, name, value); the names are unique over the sections."""
    config = config or PretrainConfig()
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for leaf in dataclasses.fields(part):
            yield section.name, leaf.name, getattr(part, leaf.name)


def config_from_settings(settings: Mapping[str, Any], base: PretrainConfig | None = None) -> PretrainConfig:
    """`base` with flat settings such as `epochs=10` laid over it; InputError names an unknown one."""
    section_of = {name: section for section, name, _ in leaves()}
    for name in settings:
        if name not in section_of:
            raise InputError(f"unknown setting '{name}'. {suggest(name, section_of)}")
    nested = config_to_dict(base or PretrainConfig())
    for name, value in settings.items():
        nested[section_of[name]][name] = _plain(value)
    if isinstance(settings.get("micro_batch"), int):  # people write 64 for "64"
        nested["training"]["micro_batch"] = str(settings["micro_batch"])
    return config_from_dict(nested)


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and torch as Python's own, also inside a list."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def config_to_dict(config: PretrainConfig) -> dict[str, dict[str, Any]]:
    """Plain values for JSON."""
    return dataclasses.asdict(config)


def config_from_dict(values: Mapping[str, Any]) -> PretrainConfig:
    """Read back strictly: an unknown or missing field, or a value of the wrong type, is an InputError."""
    training = values.get("training")
    if isinstance(training, dict) and "fsdp" in training:  # of versions that could spread weights over the ranks
        if training["fsdp"] is not False:
            raise InputError("this run was trained with --fsdp, which was removed: start a new run without it")
        values = {**values, "training": {name: value for name, value in training.items() if name != "fsdp"}}
    return exact(values, PretrainConfig, "config", may_lack=ADDED_LATER)


TRACKERS = ("wandb", "mlflow")
ADDED_LATER = frozenset(
    {"mix_global", "variant", "temperature", "predictor", "stop_gradient", "target_ema"}
    | {"head", "projector_norm", "views"}
)
"""Fields that runs of earlier versions lack; their defaults are what those versions did."""
CHOICES: dict[str, tuple[str, ...]] = {
    "head": ("mlp", "rbf"),
    "form": get_args(Form),
    "stem": ("auto", "small", "standard"),
    "optimizer": ("auto", "muon", "adamw", "adam", "sgd", "lars"),
    "precision": ("auto", "float32", "bfloat16"),
    "cache": get_args(Cache),
}


def _validate(config: PretrainConfig) -> None:
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for name, hint in get_type_hints(type(part), include_extras=True).items():
            check(flag(name), hint, getattr(part, name))
    for name, choices in CHOICES.items():
        value = next(value for _, leaf, value in leaves(config) if leaf == name)
        if value not in choices:
            raise InputError(f"unknown {name} '{value}'. {suggest(value, choices)}")
    micro = config.training.micro_batch
    if micro not in (None, "auto") and not re.fullmatch("0*([2-9]|[1-9][0-9]{1,6})", micro):
        raise InputError(f"--micro-batch must be a number of 2 or more, or auto, got '{micro}'")
    _validate_projector(config.model)
    for name in config.output.trackers:
        if name not in TRACKERS:
            raise InputError(f"unknown tracker '{name}'. {suggest(name, TRACKERS)}")


def _validate_projector(model: ModelConfig) -> None:
    if not model.projector:
        raise InputError("--projector names no width; try --projector 1024 1024")
    if model.head == "rbf" and not model.projector_norm:
        raise InputError("--head rbf measures distances of standardised features; leave --no-projector-norm out")
    if model.head == "rbf" and len(model.projector) < 2:
        raise InputError(
            f"--head rbf needs a hidden layer, got --projector {model.projector[0]}; give two widths or more"
        )


def flag(name: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + name.replace("_", "-")
