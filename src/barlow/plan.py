"""What a run will do: the settings, completed by what the data and the hardware say, before anything is built."""

import dataclasses
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
import torchvision

from barlow.config import PretrainConfig, flag
from barlow.data import Description, Source, describe, holdout_split
from barlow.data.memory import available_processors
from barlow.devices import has_fast_bfloat16, known_device
from barlow.errors import InputError
from barlow.methods import check_options, method_class
from barlow.models import Preprocess
from barlow.records import typed
from barlow.schedules import LARS_BIAS_LR, REFERENCE_BATCH, lars_lr, scaled_lr
from barlow.views import Recipe, get_recipe, recipe_from_toml

SMALL_IMAGE = 40  # pixels
SMALLEST_VIEW = 16  # below this, four stages of stride 2 leave nothing
LARGE_SIZES = (64, 96, 128, 160, 192, 224)
MOST_HELD_OUT = 2000  # enough for a k-NN score to +-1%; more would only take images from training
NARROW = 2048  # up to this width the released Mixed Barlow Twins' 1/128 is used, above it the official .0051
MOST_NOISE = 1 / 32  # lambda D / N: what N samples leave of correlations that are truly 0, against the diagonal's D
ENCODERS = {"image": "resnet18", "signal": "resnet1d", "table": "mlp"}
MOST_WORKERS = 16  # processes per rank; more only take memory
SGD_LR = 0.05
MUON_LR = 0.06  # for a batch of 256; every singular value of a step is about 1, so one rate serves all widths


@dataclass(frozen=True)
class Plan:
    """Everything a run needs that the settings left open. Written to run.json and printed before the first step."""

    data_name: str
    kind: str
    """image, signal or table"""
    n: int
    """samples in the data"""
    n_train: int
    n_held: int
    has_labels: bool
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    """stored value that counts as 1: 255 for 8-bit images"""
    recipe: str
    encoder: str
    lambd: float
    lr: float
    """peak rate of the weights, after scaling by the global batch"""
    lr_biases: float
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    validate_every: int
    """epochs"""
    local_batch: int
    """samples per step and rank"""
    world_size: int
    device: str
    precision: str
    workers: int
    spatial: tuple[int, int]
    """median height and width of the data, in pixels"""
    value_range: tuple[float, float] = (0.0, 1.0)
    """values that float images show as black and as white"""

    def preprocess(self) -> Preprocess:
        """The transform of evaluation that belongs to these views."""
        size = self.image_size if self.kind == "image" else 0
        resize = round(size * 256 / 224) if size > 64 else size
        return Preprocess(size, self.channels, self.mean, self.std, resize=resize, scale=self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def make_plan(
    config: PretrainConfig, source: Source, *, world_size: int = 1, local_rank: int = 0, encoder: str | None = None
) -> Plan:
    """Complete the settings from the data and the hardware.

    `encoder` is that of a run to resume, which may go on another device than it was chosen for.

    Raises InputError when the batch does not divide over the ranks or is larger than what there is to train on,
    or when a given mean, std, recipe or device does not fit.
    """
    check_options(config)
    about = describe(source, seed=config.training.seed)
    train, held = split_indices(config, source)
    batch = config.training.batch_size
    _check_batch(batch, len(train), len(held), world_size)
    steps = len(train) // batch
    total = steps * config.training.epochs
    channels = config.data.channels or about.channels
    size = config.data.image_size or choose_image_size(about)
    device = choose_device(config.training.device)
    encoder = encoder or choose_encoder(config.model.encoder, source.kind, size, device)
    lr, lr_biases = choose_lr(config, encoder)
    if device == "cuda" and world_size > 1:
        device = f"cuda:{local_rank}"
    return Plan(
        data_name=source.name,
        kind=source.kind,
        n=len(source),
        n_train=len(train),
        n_held=len(held),
        has_labels=source.labels is not None,
        image_size=size,
        channels=channels,
        mean=_per_channel("mean", config.data.mean, about.mean, channels),
        std=_per_channel("std", config.data.std, unit_of_each_channel(about.mean, about.std), channels),
        scale=255.0 if about.dtype == "uint8" else 1.0,
        recipe=config.views.recipe if config.views.recipe != "auto" else choose_recipe(source, channels, size),
        encoder=encoder,
        lambd=config.objective.lambd if config.objective.lambd is not None else choose_lambd(config),
        lr=lr,
        lr_biases=lr_biases,
        steps_per_epoch=steps,
        total_steps=total,
        warmup_steps=round(min(config.optimizer.warmup_epochs * steps, total / 10)),
        validate_every=config.output.validate_every or max(1, config.training.epochs // 10),
        local_batch=batch // world_size,
        world_size=world_size,
        device=device,
        precision=choose_precision(config.training.precision, device, source.kind),
        workers=choose_workers(config.data.workers, about),
        spatial=(about.height, about.width),
        value_range=about.value_range,
    )


def plan_from_dict(facts: Mapping[str, Any]) -> Plan:
    """The plan inside a run's facts. Raises InputError where it is not whole."""
    return typed(facts, Plan, "the run's run.json")


def split_indices(config: PretrainConfig, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and indices kept aside; a pure function of the seed. Labels are not consulted."""
    n = len(source)
    held = min(MOST_HELD_OUT, int(n * config.data.holdout))
    if held < 2:
        return np.arange(n), np.arange(0)
    return holdout_split(n, share=held / n, seed=config.training.seed)


def resolve_recipe(name: str) -> Recipe:
    """A recipe by name, or from a TOML file."""
    return recipe_from_toml(name) if name.endswith(".toml") else get_recipe(name)


def choose_image_size(about: Description) -> int:
    """Small images keep their own size; larger ones get the largest usual size that does not upscale the median."""
    side = min(about.height, about.width)
    if side <= LARGE_SIZES[0]:
        return max(SMALLEST_VIEW, side)
    return max(size for size in LARGE_SIZES if size <= side)


def unit_of_each_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[float, ...]:
    """What each channel is divided by: its standard deviation, on whatever scale the data has.

    A constant channel has none, and must not divide by zero. It gets its own value instead, or where that is 0 the
    largest deviation of the others. Constant is what varies by less than a float32 at the mean can show.
    """
    spare = max(std) or 1.0
    resolution = float(np.finfo(np.float32).eps)
    return tuple(s if s > resolution * abs(m) else abs(m) or spare for m, s in zip(mean, std, strict=True))


def choose_recipe(source: Source, channels: int, size: int) -> str:
    """The recipe that fits the kind of data: the papers' for photos, none that destroys what a digit means."""
    if source.kind != "image":
        return source.kind
    if channels == 1:
        return "digits" if size <= 32 else "grayscale"
    if channels != 3:
        return "multispectral"
    return "cifar" if size <= 32 else "tiny" if size <= 64 else "stl" if size <= 96 else "imagenet"


def choose_lambd(config: PretrainConfig) -> float:
    """1/128 up to D = 2048 as the released Mixed Barlow Twins, above it .0051 as the official code; N / (32 D) at most.

    Uncorrelated features have correlations of variance 1/N in a batch of N: the D (D - 1) of them add lambda D^2 / N
    to the loss, which no training lowers. The papers keep that to 1/49 (Barlow Twins) and 1/32 (Mixed) of D.
    """
    width = config.model.projector[-1]
    published = 1 / 128 if width <= NARROW else 0.0051
    return min(published, MOST_NOISE * config.training.batch_size / width)


def choose_encoder(name: str, kind: str, image_size: int, device: str) -> str:
    """On a CPU `whitenet` for the small images that it was measured on: a tenth of ResNet-18's work for a step."""
    if name != "auto":
        return name
    return "whitenet" if kind == "image" and device == "cpu" and image_size <= SMALL_IMAGE else ENCODERS[kind]


def choose_optimizer(name: str, encoder: str) -> str:
    """Muon where it was measured to learn faster, AdamW elsewhere: docs/experiments.md."""
    if name != "auto":
        return name
    return "muon" if encoder == "whitenet" else "adamw"


def choose_lr(config: PretrainConfig, encoder: str) -> tuple[float, float]:
    """Peak rates of weights and of biases, scaled by the global batch."""
    given, batch = config.optimizer, config.training.batch_size
    optimizer = choose_optimizer(given.optimizer, encoder)
    if optimizer == "muon":
        # Steps of fixed size average noise over the batch, so the rate grows with its root, not with itself.
        lr = (MUON_LR if given.lr is None else given.lr) * math.sqrt(batch / REFERENCE_BATCH)
        return lr, lr / 10 if given.lr_biases is None else given.lr_biases * math.sqrt(batch / REFERENCE_BATCH)
    if optimizer == "lars":
        base, biases = lars_lr(batch), LARS_BIAS_LR
    else:
        base = SGD_LR if optimizer == "sgd" else method_class(config.objective.method).adaptive_lr
        biases = given.lr if given.lr is not None else base
    base = given.lr if given.lr is not None else base
    biases = given.lr_biases if given.lr_biases is not None else biases
    return scaled_lr(base, batch), scaled_lr(biases, batch)


def choose_device(name: str) -> str:
    """The device's name; InputError when it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return str(known_device(name))


def choose_precision(name: str, device: str, kind: str = "image") -> str:
    """bfloat16 where the hardware multiplies it natively, else float32; small networks on a CPU gain nothing."""
    if name != "auto":
        return name
    gains = device.startswith("cuda") or kind == "image"
    return "bfloat16" if gains and has_fast_bfloat16(device) else "float32"


def choose_workers(given: int | None, about: Description) -> int:
    """Small images of one size are decoded once; everything else is decoded by one process per core of this rank."""
    if given is not None:
        return given
    if about.kind != "image" or (about.fixed_size and max(about.height, about.width) <= LARGE_SIZES[1]):
        return 0
    return min(MOST_WORKERS, available_processors())


def environment() -> dict[str, Any]:
    """Versions and hardware, for run.json."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    hardware = {"platform": platform.platform(), "machine": platform.machine(), "cores": os.cpu_count(), "gpus": gpus}
    return {**versions, "torchvision": torchvision.__version__, **hardware, "threads": torch.get_num_threads()}


def _check_batch(batch: int, n_train: int, n_held: int, world_size: int) -> None:
    if batch % world_size or batch // world_size < 2:
        raise InputError(f"--batch-size {batch} does not give each of {world_size} ranks 2 samples or more, evenly")
    if n_train < batch:
        aside = f" ({n_held} more are held out; --holdout 0 uses them)" if n_held else ""
        advice = f"use --batch-size {n_train} or less" if n_train >= 2 else "at least 2 are needed; check the path"
        samples = "sample" if n_train == 1 else "samples"
        raise InputError(f"only {n_train} {samples} to train on{aside}, fewer than --batch-size {batch}; {advice}")


def _per_channel(
    name: str, given: tuple[float, ...] | None, found: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    values = tuple(found) if given is None else given
    if len(values) != channels:
        raise InputError(f"{flag(name)} needs one value for each of {channels} channels, got {len(values)}")
    if not all(map(math.isfinite, values)):
        raise InputError(f"{flag(name)} must be finite in every channel, got {list(values)}")
    if name == "std" and not all(value > 0 for value in values):
        raise InputError(f"--std must be more than 0 in every channel, got {list(values)}")
    return values
