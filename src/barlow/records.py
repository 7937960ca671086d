"""What the JSON files of run folders hold, and the check against such types that everything read passes.

The classes name the fields that this package reads. Fields of other versions may stand beside them: they are kept.
This module is on the ground floor: it imports nothing of the package but the errors.
"""

import reprlib
from collections.abc import Container, Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, NotRequired, TypedDict, TypeVar, get_origin, get_type_hints

from barlow.errors import InputError, suggest

T = TypeVar("T")


class Facts(TypedDict, total=False):
    """run.json: what was worked out before the first step (`plan.Plan`), the machine, and the status."""

    data_name: str
    kind: str
    n: int
    n_train: int
    n_held: int
    has_labels: bool
    image_size: int
    channels: int
    mean: list[float]
    std: list[float]
    value_range: tuple[float, float]
    recipe: str
    encoder: str
    lambd: float
    steps_per_epoch: int
    total_steps: int
    device: str
    precision: str
    world_size: int
    data: "DataIdentity"
    environment: "Environment"
    status: str
    step: int
    wall_s: float
    skipped: list[tuple[str, str]]
    """name and reason of every sample that could not be read"""


class DataIdentity(TypedDict, total=False):
    """What tells one data set from another, see `data.content.identity`."""

    location: str | None
    """where the data lie; null for what has no place"""
    samples: int
    names: str
    sizes: str
    contents: str


class Environment(TypedDict):
    """The machine and the versions that a run was made on."""

    torch: str
    cores: int
    gpus: list[str]
    threads: NotRequired[int]


class Line(TypedDict):
    """A line of metrics.jsonl; every field beside these is a number, or null where nothing was measured."""

    kind: str
    """step, epoch or validation"""
    step: int
    epoch: int


class PerImage(TypedDict, total=False):
    """What an encoder did on every image, packed by `evaluation.paired.pack`; empty where it was not kept."""

    images: str
    shape: list[int]
    type: str
    zlib: str


class Score(TypedDict):
    """What a baseline reached, with its 95% interval."""

    value: float
    interval: NotRequired[tuple[float, float] | None]
    spread: NotRequired[float]
    """standard deviation over seeds, where there were several"""
    per_image: NotRequired[PerImage]


class Settings(TypedDict, total=False):
    """Settings of a protocol: those that its name is told with, and some of all; others stand beside them."""

    k: int
    temperature: float
    device: str
    overlap_checked: bool
    batch_size_of_extraction: int


class Evaluation(TypedDict):
    """evaluations/*.json: one score and everything needed to repeat or to doubt it."""

    protocol: str
    data: str
    metric: str
    value: float
    interval: tuple[float, float]
    n: int
    n_train: NotRequired[int]
    split: NotRequired[str]
    seed: NotRequired[int]
    settings: NotRequired["Settings"]
    encoder_hash: NotRequired[str]
    baselines: NotRequired[dict[str, Score]]
    warnings: NotRequired[list[str]]
    details: NotRequired[dict[str, Any]]
    spread: NotRequired[float]
    per_image: NotRequired[PerImage]


class Verdict(TypedDict):
    """The state in one word, the reason in a sentence, and the figures it rests on."""

    state: str
    text: str
    evidence: NotRequired[dict[str, float | str | bool | None]]


class Correlation(TypedDict):
    """A sample [s, s] of the cross-correlation matrix of `width` features."""

    matrix: list[list[float]]
    width: int


class ClassDistances(TypedDict):
    """Distances within and between classes."""

    ratio: float | None


Share = Literal["0.1", "0.3", "0.5", "0.7", "0.9"]


class Health(TypedDict, total=False):
    """health.json: the latest label-free diagnostics."""

    rankme: float | None
    effective_rank: float | None
    lidar: float | None
    alpha_req: float | None
    dead_share: float | None
    relative_spread: float
    alignment: float | None
    uniformity: float | None
    diagonal: float | None
    off_diagonal: float | None
    heldout_loss: float | None
    train_loss: float | None
    knn: float | None
    spectrum: list[float]
    correlation: Correlation
    class_distances: ClassDistances
    mixing: dict[str, dict[Share, float]]
    """deviation from linear mixing of the encoder and of the projector, by mixing weight"""
    verdict: Verdict


class EncoderRecord(TypedDict):
    """encoder.json: what is needed to build the encoder again and to show it images as in training."""

    format: int
    architecture: dict[str, Any]
    """`models.Architecture`"""
    feature_dim: int
    preprocess: dict[str, Any]
    """`models.Preprocess`"""
    sha256: str
    facts: dict[str, Any]
    """method, data, epochs, ...: for people"""


def typed(value: Any, kind: type[T], where: object, *, strict: bool = True) -> T:
    """A JSON value as `kind`: a dataclass, a TypedDict, a container of these. Fields that it does not name are dropped.

    Lists become tuples and whole numbers floats where `kind` says so; nothing else is converted. Without `strict`,
    numbers may be written as text, as XML writes them. Raises InputError, with the place inside the value, where it
    is of another type.
    """
    import msgspec  # here: the help of the command line need not wait for it

    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise InputError(f"{where} is damaged: {error}") from None


def exact(values: Mapping[str, Any], kind: type[T], where: str, *, may_lack: Container[str] = ()) -> T:
    """A dataclass, and the dataclasses in it, from exactly their fields, each of its type as in `typed`.

    Plain fields in `may_lack` have their defaults where they are missing. Choices (`Literal`) are taken as text: the
    dataclass checks them. Raises InputError that names the first field that is unknown, missing or of another type.
    """
    import msgspec

    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be an object, got {reprlib.repr(values)}")
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    missing = sorted(
        name for name, hint in hints.items() if name not in values and (name not in may_lack or is_dataclass(hint))
    )
    if unknown:
        raise InputError(f"{where} has an unknown field '{unknown[0]}'. {suggest(unknown[0], hints)}")
    if missing:
        raise InputError(f"{where} lacks the field '{missing[0]}'")
    fields: dict[str, Any] = {}
    for name in hints.keys() & values.keys():
        hint, value = hints[name], values[name]
        try:
            fields[name] = (
                exact(value, hint, name, may_lack=may_lack)
                if isinstance(hint, type) and is_dataclass(hint)
                else msgspec.convert(value, str if get_origin(hint) is Literal else hint)
            )
        except msgspec.ValidationError:
            wanted = hint.__name__ if isinstance(hint, type) else hint
            raise InputError(f"{where}.{name} must be {wanted}, got {reprlib.repr(value)}") from None
    return kind(**fields)
